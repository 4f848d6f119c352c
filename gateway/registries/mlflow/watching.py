"""Asking an MLflow registry again and again, without ever blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from gateway.errors import RegistryError, printable
from gateway.registries.base import Snapshot
from gateway.registries.polling import pause_after
from gateway.telemetry.logs import log
from gateway.threads import in_thread

LONGEST_PAUSE: Final = 30.0
"""Seconds between two tries at a registry that cannot be read (or the interval, if longer)."""
GAP: Final = 0.2
"""Shortest time in seconds between two looks, however many hints there are."""


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
        return pause_after(self._poll_seconds, self._failures, LONGEST_PAUSE)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hinted.wait(), seconds)
        self._hinted.clear()

    async def _look(self) -> Snapshot | None:
        """A snapshot; `None`, with one line in the log, while there is none to be had."""
        writes = self._writes
        try:
            snapshot = await in_thread(self._registry.scan)
        except Exception as error:
            self._failures += 1
            what = str(error)
            if not isinstance(error, RegistryError):
                what = f"{self._registry.source} cannot be read: {type(error).__name__}: {error}"
                log.debug("%s", what, exc_info=error)
            text = f"{printable(what, 1000)}; serving goes on with what is loaded"
            if not self._registry.trouble:
                log.error("%s", text)
                self._registry.trouble = text
            return None
        self._failures = 0
        if writes != self._writes:  # what is in effect may be newer
            return None
        return snapshot
