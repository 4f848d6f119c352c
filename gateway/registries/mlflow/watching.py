"""Asking an MLflow registry again and again, without ever blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from gateway.errors import RegistryError
from gateway.registries.base import Snapshot
from gateway.telemetry.logs import log

JITTER: Final = 0.1
"""Part of the interval by which it varies, so that many gateways do not ask at the same time."""
LONGEST_PAUSE: Final = 30.0
"""Seconds between two tries at a registry that cannot be read (or the interval, if longer)."""
GAP: Final = 0.2
"""Shortest time in seconds between two looks, however many hints there are."""

T = TypeVar("T")


class Scanned(Protocol):
    """What is watched."""

    source: str
    trouble: str

    def scan(self) -> Snapshot: ...


class Watching:
    """The loop behind `MlflowRegistry.watch`."""

    def __init__(self, registry: Scanned, poll_seconds: float) -> None:
        self._registry = registry
        self._poll_seconds = poll_seconds
        self._hinted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writes = 0
        self._failures = 0

    def hint(self) -> None:
        """Look now; for the event loop. Any number of hints is one look."""
        self._hinted.set()

    def wrote(self) -> None:
        """Something was changed through us: what was read before that is out of date. For any
        thread."""
        self._writes += 1
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hinted.set)

    async def run(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """Until cancelled."""
        self._loop = asyncio.get_running_loop()
        last: Snapshot | None = None
        while True:
            snapshot = await self._look()
            if snapshot is not None and snapshot is not last:
                last = snapshot
                await changed(snapshot)
            await asyncio.sleep(min(GAP, self._poll_seconds))
            await self._wait(self.pause())

    def pause(self) -> float:
        """Seconds until the next look: longer and longer while there is no answer."""
        pause = self._poll_seconds * 2.0 ** min(self._failures, 10)
        pause = min(pause, max(self._poll_seconds, LONGEST_PAUSE))
        return pause * random.uniform(1 - JITTER, 1 + JITTER)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hinted.wait(), seconds)
        self._hinted.clear()

    async def _look(self) -> Snapshot | None:
        """A snapshot; `None`, with one line in the log, while there is none to be had."""
        writes = self._writes
        try:
            snapshot = await in_thread(self._registry.scan)
        except RegistryError as error:
            self._failures += 1
            text = f"{error}; serving goes on with what is loaded"
            if not self._registry.trouble:
                log.error("%s", text)
                self._registry.trouble = text
            return None
        self._failures = 0
        if writes != self._writes:  # what is in effect may be newer
            return None
        return snapshot


async def in_thread(work: Callable[[], T]) -> T:
    """What `work` gives; in a thread that nobody waits for when the process ends: a server that
    hangs must not keep a gateway from stopping."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def end(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(end, result, failure)

    threading.Thread(target=run, name="sluice-mlflow", daemon=True).start()
    return await done
