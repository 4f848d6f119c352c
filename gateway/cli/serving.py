"""Runs a gateway until it is told to stop: the loop, the signals, the exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import closing
from typing import Final

from gateway.app import Gateway, tune_process
from gateway.cli import exits
from gateway.cli.welcome import welcome
from gateway.config import Config
from gateway.errors import ModelLoadError
from gateway.lifecycle.allocator import Reserve, keep_memory, share_heap
from gateway.telemetry import logs
from gateway.telemetry.logs import log

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run(config: Config) -> int:
    """Serves until a signal comes and returns the exit code. Raises `SluiceError` before that."""
    logs.set_up(config.telemetry.log_level, config.telemetry.log_format)
    share_heap()
    work = serve(config)
    if sys.platform != "win32":
        try:
            import uvloop
        except ImportError:
            log.warning("uvloop is not installed; serving on asyncio's own loop, which is slower")
        else:
            return uvloop.run(work)
    return asyncio.run(work)


async def serve(config: Config) -> int:
    """Starts, serves, drains and closes one gateway."""
    stop = Stop()
    gateway = Gateway(config)
    try:
        if await stop.unless(gateway.start(announce=lambda: announce(gateway))):
            tune_process()
            keep_memory()
            with closing(Reserve(lambda: gateway.admission.large)):
                welcome(gateway)
                await stop.asked.wait()
                await drain(gateway, stop)
    except ModelLoadError as error:
        raise exits.Failure(f"--strict: {error}", exits.MODEL_FAILED) from None
    finally:
        await gateway.close()
    log.info("stopped")
    return exits.OK


def announce(gateway: Gateway) -> None:
    """The log line once the ports are open; models may take longer."""
    where = gateway.addresses()
    log.info("listening: HTTP %s, gRPC %s; loading models", where["http"], where["grpc"])


async def drain(gateway: Gateway, stop: Stop) -> None:
    """Answers what is in flight; after SIGTERM it waits first, for load balancers to notice."""
    grace = gateway.config.drain.grace if stop.signal == signal.SIGTERM else 0.0
    if grace:
        log.info("draining: answering for %g s more (a second signal cuts that short)", grace)
        stop.second = asyncio.Event()
        await stop.unless(gateway.drain(grace), stop.second)
        stop.second = None
    else:
        log.info("draining: waiting for %d requests in flight", gateway.admission.in_flight)
    await gateway.drain(0.0)


class Stop:
    """What the process's signals ask for. A signal too many ends the process at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.second: asyncio.Event | None = None
        """Set by the next signal, instead of ending the process."""
        self.signal = signal.SIGINT
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            try:
                loop.add_signal_handler(number, self._receive, number)
            except NotImplementedError:  # Windows has no loop signals
                signal.signal(
                    number, lambda n, _: loop.call_soon_threadsafe(self._receive, signal.Signals(n))
                )

    def _receive(self, number: signal.Signals) -> None:
        if not self.asked.is_set():
            self.signal = number
            self.asked.set()
        elif self.second is not None and not self.second.is_set():
            self.second.set()
        else:
            log.warning("stopped at once; requests in flight are lost")
            sys.stdout.flush()
            os._exit(exits.INTERRUPTED)

    async def unless(
        self, work: Coroutine[None, None, None], event: asyncio.Event | None = None
    ) -> bool:
        """Does `work` unless the signal comes first (then it is cancelled, and False)."""
        doing = asyncio.ensure_future(work)
        waiting = asyncio.ensure_future((event or self.asked).wait())
        try:
            await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                await doing
                return True
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
            return False
        finally:
            waiting.cancel()
