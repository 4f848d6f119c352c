"""The child process: loads one model when it is told to, and serves it until the gateway ends.

Nothing is imported here that an environment of the model's own need not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import msgspec

from gateway.batching.clock import LoopClock
from gateway.batching.curve import CostCurve
from gateway.errors import ModelLoadError, SluiceError
from gateway.isolation import messages as m
from gateway.isolation.arena import Arena, SegmentLike
from gateway.isolation.channel import Channel
from gateway.isolation.home import Home
from gateway.isolation.memory import Segment, Table
from gateway.isolation.own_metrics import Numbers
from gateway.isolation.serving import DeliveringRunner, Serving
from gateway.isolation.warm import warm_again
from gateway.lifecycle.dispatchers import contract_of, make_dispatcher
from gateway.lifecycle.loading import inline_seconds, load_here, one_line
from gateway.lifecycle.probe import Findings
from gateway.model_settings import LimitSettings, ModelSettings
from runtimes.interface import Artifact, Model, Runtime

TRIM_SECONDS = 5.0
METRICS_SECONDS = 1.0
"""How often a model's own numbers are sent, if they have changed."""
NO_BOUND = 1 << 60
MOST_TOLD = 16_000
"""Most characters of a traceback that the gateway is sent; the end says most."""


class Child:
    """One process for one model. Everything but loading happens on its event loop."""

    def __init__(self, end: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self.done = self._loop.create_future()
        self._channel = Channel(self._loop, end, self._messages, lambda why: end_now())
        self._arena = Arena(Segment, NO_BOUND)
        self._arena.on_segment = self._show
        self._home = Home(self._loop, self._channel, self._arena)
        self._table: Table | None = None
        self._serving: Serving | None = None
        self._model: Model | None = None
        self._numbers = Numbers(self._channel.send)
        self._loop.call_later(TRIM_SECONDS, self._trim)
        self._loop.call_later(METRICS_SECONDS, self._tell_numbers)

    def _tell_numbers(self) -> None:
        self._loop.call_later(METRICS_SECONDS, self._tell_numbers)
        self._numbers.tell()

    def _show(self, number: int, segment: SegmentLike) -> None:
        assert isinstance(segment, Segment)
        self._channel.send((m.SEGMENT, number, segment.size), segment.fd)

    def _trim(self) -> None:
        self._loop.call_later(TRIM_SECONDS, self._trim)
        for number in self._arena.trim():
            self._channel.send((m.DROP, number))

    def _messages(self, released: list[int], messages: list[list[Any]]) -> None:
        for block in released:
            self._arena.give(block)
        for message in messages:
            self._message(message)
        if len(self._channel.incoming) or self._channel.incoming.released:
            self._channel.release_later()

    def _message(self, message: list[Any]) -> None:
        kind = message[0]
        if kind in (m.REQUEST, m.CANCEL, m.CREDIT):
            assert self._serving is not None
            self._serving.take(message)
        elif kind == m.SEGMENT:
            self._channel.incoming.add(message[1], self._channel.fds.popleft(), message[2])
        elif kind == m.DROP:
            self._channel.incoming.drop(message[1])
        elif kind == m.HOME_ANSWER:
            self._home.answer(message)
        elif kind == m.PING:
            self._channel.send((m.PONG,))
        elif kind == m.TABLE:
            self._table = Table(self._channel.fds.popleft())
        elif kind == m.PRELOAD:
            threading.Thread(target=self._preload, args=(message[1],), daemon=True).start()
        elif kind == m.LOAD:
            threading.Thread(target=self._load, args=(message[1],), daemon=True).start()
        elif kind == m.CLOSE:
            self._close()

    # --- loading, in a thread

    def _preload(self, modules: list[str]) -> None:
        preload(modules)
        self._tell(self._channel.send, (m.PRELOADED,))

    def _load(self, order: dict[str, Any]) -> None:
        try:
            settings = msgspec.msgpack.decode(order["settings"], type=ModelSettings)
            artifact = Artifact(
                order["model"],
                order["version"],
                Path(order["path"]),
                settings,
                self._home,
                alone=order["alone"],
                isolated=True,
            )
            runtime = runtime_of(order)
            known = order["known"]
            if known is None:
                loaded = load_here(artifact, runtime, order["max_batch_size"], self._warming)
                model, findings = loaded.model, loaded.findings
            else:
                # Of a model that was loaded before, all is known, and somebody waits: but not
                # to be the one who meets a cold model.
                model = runtime.load(artifact)
                curve = CostCurve()
                for rows, seconds in known[2]:
                    curve.observe(rows, seconds)
                findings = Findings(known[0], curve, list(known[1]))
                warm_again(model, findings, settings, artifact.path.parent)
        except ModelLoadError as error:
            story = traceback.format_exc()
            failure: SluiceError = ModelLoadError(with_install_line(error, order))
        except SluiceError as error:
            story = traceback.format_exc()
            failure = error
        except BaseException as error:
            story = traceback.format_exc()
            text = with_install_line(error, order)
            failure = ModelLoadError(
                text if isinstance(error, ImportError) else f"{type(error).__name__}: {text}"
            )
        else:
            self._tell(self._loaded, order, settings, model, findings)
            return
        self._tell(self._channel.send, (m.LOAD_FAILED, m.tell_error(failure), story[-MOST_TOLD:]))

    def _warming(self, runtime: str) -> None:
        self._tell(self._channel.send, (m.WARMING,))

    def _tell(self, action: Any, *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(action, *arguments)

    def _loaded(
        self, order: dict[str, Any], settings: ModelSettings, model: Model, findings: Findings
    ) -> None:
        try:
            assert self._table is not None
            name, version = order["model"], order["version"]
            serving = Serving(self._channel, self._arena, self._table, name, version)
            dispatcher = make_dispatcher(
                name, version, model, findings, contract_of(model, findings), unbounded(settings),
                LoopClock(self._loop), inline_seconds(order["inline_us"]), serving.stats,
                lambda runner: DeliveringRunner(runner, serving, self._channel),
            )  # fmt: skip
            serving.serve(dispatcher)
            self._serving = serving
            self._model = model
            facts = m.tell_facts(model)
            facts["instances"] = dispatcher.instances
            costs = [(2**n, findings.curve.predict(2**n)) for n in range(11)]
            found = {
                "max_batch_size": findings.max_batch_size,
                "notes": findings.notes,
                "curve": [(rows, cost) for rows, cost in costs if cost is not None],
            }
            self._channel.send((m.LOADED, facts, found))
        except Exception as error:
            failure = ModelLoadError(f"{type(error).__name__}: {one_line(error)}")
            story = traceback.format_exc()[-MOST_TOLD:]
            self._channel.send((m.LOAD_FAILED, m.tell_error(failure), story))

    # --- the end

    def _close(self) -> None:
        """In order: the dispatcher, then the model."""
        try:
            if self._serving is not None:
                self._serving.dispatcher.close()
            if self._model is not None:
                self._model.close()
        finally:
            if not self.done.done():
                self.done.set_result(None)


def unbounded(settings: ModelSettings) -> ModelSettings:
    """Without the bounds of the queue, which the gateway keeps."""
    from msgspec.structs import replace

    batching = settings.batching
    queue = replace(batching.queue, max_requests=0, max_rows=NO_BOUND, max_bytes=NO_BOUND)
    levels = {n: replace(q, max_requests=None) for n, q in batching.priority_queues.items()}
    batching = replace(batching, queue=queue, priority_queues=levels)
    return replace(settings, batching=batching, limits=LimitSettings())


def runtime_of(order: dict[str, Any]) -> Runtime:
    """A runtime like the gateway's, found by its class."""
    module, _, name = order["runtime"].partition(":")
    made: Any = importlib.import_module(module)
    for part in name.split("."):
        made = getattr(made, part)
    runtime: Runtime = made()
    return runtime


def with_install_line(error: BaseException, order: dict[str, Any]) -> str:
    """The error's text; in an environment of the model's own, with what to type for a module
    that is missing there."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__ or cause.__context__
    text = one_line(error)
    if cause is None or not order["foreign"]:
        return text
    top = (cause.name or "").partition(".")[0]
    package = order["package"] if order["runtime"].startswith(f"{top}.") else top
    pip = Path(sys.prefix) / "bin" / "pip"
    return f"{cause}; type: {pip} install {order['packages'].get(top, package)}"


def preload(modules: list[str]) -> None:
    """Imports what takes long. What fails will say so when a model needs it."""
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)


def end_now() -> None:
    """Ends this process and what it has started, at once: the gateway is gone."""
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def watch(lifeline: int) -> None:
    """Ends with the gateway, which holds the other end, also when the loop hangs."""
    with contextlib.suppress(OSError):
        os.read(lifeline, 1)
    end_now()


async def serve(end: socket.socket) -> None:
    await Child(end).done


def main(channel: int, lifeline: int) -> None:
    """Runs until the gateway says so, or ends."""
    # The gateway ends us when it is done; whoever signals the whole group means the gateway.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=watch, args=(lifeline,), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    end = socket.socket(fileno=channel)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(end))
    else:
        uvloop.run(serve(end))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of the model's that do not end must not keep us
