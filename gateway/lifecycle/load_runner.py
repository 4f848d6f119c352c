"""One load from beginning to end: fetch, set memory aside, load and warm up, measure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from gateway.artifacts.base import Fetcher
from gateway.config import LifecycleConfig
from gateway.errors import FetchError
from gateway.isolation.model import ChildModel
from gateway.lifecycle.budget import MIB, mib
from gateway.lifecycle.closing import Closings
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.loading import Loaded
from gateway.lifecycle.memory import Memory
from gateway.lifecycle.resident import own_share, resident
from gateway.lifecycle.states import Record, State
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredVersion
from gateway.threads import Threads

T = TypeVar("T")
END_SECONDS: Final = 2.0
"""Longest time for what is loading to end with the gateway; then it is left behind."""


class Dropped(Exception):
    """A version is not wanted any more before its loading began."""


class LoadRunner:
    """Loads versions in a few threads, fetches in others: a slow download keeps no model waiting
    that is there. Owned by the event loop.

    Models that were loaded for nothing are closed by `closings`.
    """

    def __init__(
        self,
        loader: Loader,
        config: LifecycleConfig,
        fetcher: Fetcher | None,
        memory: Memory,
        closings: Closings,
    ) -> None:
        self.fetching = 0
        """Versions whose files are being fetched now."""
        self.fetched_bytes = 0
        """Bytes of files that were fetched so far."""
        self._loader = loader
        self._fetcher = fetcher
        self._memory = memory
        self._closings = closings
        # What hangs, a model or an origin, must not keep the process from ending.
        self._load_pool = Threads(config.load_threads, "sluice-load")
        self._fetch_pool = Threads(config.fetch_threads, "sluice-fetch")
        self._steps: dict[Record, Future[object]] = {}
        """What a version waits for: its estimate, or its load, perhaps in the pool's queue."""
        self._counting = threading.Lock()
        self._left: set[Future[object]] = set()
        """Loads that went on when whoever waited for them was cancelled."""
        self._running = 0
        self._changes = 0
        """Loads that began or ended, and unloads that ended, so far."""

    async def run(
        self, record: Record, settings: ModelSettings, wanted: Callable[[], bool]
    ) -> Loaded:
        """Loads a version; `wanted` says whether it still should be.

        Raises `Dropped`, or whatever went wrong.
        """
        aspired = await self._fetched(record)
        if not wanted():
            raise Dropped
        await self._set_aside(record, aspired, settings)
        if not wanted():
            raise Dropped
        return await self._loaded(record, aspired, settings)

    def unloaded(self) -> None:
        """A version is closed: what is measured meanwhile says nothing."""
        self._changes += 1

    def hurry(self, record: Record) -> None:
        """Another model waits for this version, perhaps with the pool's only thread."""
        record.urgent = True
        step = self._steps.get(record)
        if step is not None:
            self._load_pool.hurry(step)

    async def close(self) -> None:
        """Waits a moment for what is loading; the threads do not keep the process from ending."""
        self._load_pool.close()
        self._fetch_pool.close()
        end = time.monotonic() + END_SECONDS
        while self._left and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)  # what came late is handed on to be closed

    # --- the steps

    async def _fetched(self, record: Record) -> AspiredVersion:
        """The version with its files here. Raises `FetchError`."""
        aspired = record.aspired
        origin = aspired.origin
        if origin is None:
            return aspired
        fetcher = self._fetcher
        if fetcher is None:
            raise FetchError(f"{origin.uri} cannot be fetched: there is no cache")

        heard = 0

        def told(here: int, all_of_it: int) -> None:
            nonlocal heard
            with self._counting:
                self.fetched_bytes += max(here - heard, 0)
            heard = max(here, heard)
            if record.dropped:
                raise Dropped  # nobody wants it any more
            record.progress = (
                f"{mib(here)} of {mib(all_of_it)}" if all_of_it >= here > 0 else mib(here)
            )

        def fetch() -> None:
            if record.dropped:
                raise Dropped
            record.move(State.FETCHING, record.cause)
            with self._counting:
                self.fetching += 1
            try:
                with record.log.hearing():
                    record.lease = fetcher.fetch(origin, told)
            finally:
                with self._counting:
                    self.fetching -= 1

        future = self._fetch_pool.submit(fetch)
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda _: record.release())
            raise
        finally:
            record.progress = ""
        assert record.lease is not None
        return replace(aspired, path=record.lease.path)

    async def _set_aside(
        self, record: Record, aspired: AspiredVersion, settings: ModelSettings
    ) -> None:
        """Waits for the memory that it is thought to take. Raises `ModelLoadError`."""
        need = settings.memory_mb * MIB
        if self._memory.budget and not need:
            need = await self._step(
                record, lambda: self._loader.estimate(record.model, aspired, settings)
            )
            record.log.write(f"estimate: {mib(need)}")
        await self._memory.reserve(record, need)

    async def _loaded(
        self, record: Record, aspired: AspiredVersion, settings: ModelSettings
    ) -> Loaded:
        loop = asyncio.get_running_loop()

        def warming(runtime: str) -> None:
            record.runtime = runtime
            record.move(State.WARMING, record.cause)

        def work() -> tuple[Loaded, int]:
            if record.dropped:
                raise Dropped
            record.move(State.LOADING, record.cause)
            before = resident()
            with record.log.hearing():
                loaded = self._loader.load(
                    record.model,
                    aspired,
                    settings,
                    lambda runtime: loop.call_soon_threadsafe(warming, runtime),
                )
            if isinstance(loaded.model, ChildModel):
                return loaded, own_share(loaded.model.child.pid)
            return loaded, resident() - before

        alone = self._running == 0
        self._running += 1
        self._changes += 1
        changes = self._changes

        def unused(result: tuple[Loaded, int]) -> None:
            label = f"{record.model}/{record.version}"
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._closings.start, label, result[0].model)

        try:
            loaded, measured = await self._step(record, work, unused)
        finally:
            alone = alone and self._changes == changes
            self._running -= 1
            self._changes += 1
        # A child's memory is its own, whoever else loads.
        alone = alone or isinstance(loaded.model, ChildModel)
        size = self._size(record, loaded, settings, measured if alone else None)
        self._memory.settle(record, size)
        return loaded

    async def _step(
        self, record: Record, work: Callable[[], T], unused: Callable[[T], object] | None = None
    ) -> T:
        """Runs it in its turn, or at once what is urgent. `unused` is given, in any thread, what
        comes too late."""
        pool = self._load_pool
        future = pool.at_once(work) if record.urgent else pool.submit(work)
        self._steps[record] = future  # type: ignore[assignment]
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancelled():
                self._left.add(future)  # type: ignore[arg-type]
                future.add_done_callback(lambda done: self._came_late(done, unused))
            raise
        finally:
            del self._steps[record]

    def _came_late(self, future: Future[T], unused: Callable[[T], object] | None) -> None:
        if unused is not None and not future.cancelled() and future.exception() is None:
            unused(future.result())
        self._left.discard(future)

    def _size(
        self, record: Record, loaded: Loaded, settings: ModelSettings, grown: int | None
    ) -> int:
        """Bytes that a loaded version counts for. `grown`: what this process took meanwhile;
        `None` where others were loading too."""
        expected = self._memory.held.get(record, 0)
        if grown is not None:
            record.log.write(f"measured: {mib(max(grown, 0))}")
        if grown is not None:
            # What was free in this process before may have been enough: not less than a part.
            record.measured = max(grown, 0 if settings.memory_mb else expected // 4)
        return expected if settings.memory_mb or grown is None else record.measured
