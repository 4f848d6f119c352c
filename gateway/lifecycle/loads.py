"""One load from beginning to end: fetch, set memory aside, load and warm up, measure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from gateway.artifacts.base import Fetcher
from gateway.config import LifecycleConfig
from gateway.errors import FetchError
from gateway.isolation.model import ChildModel
from gateway.lifecycle.budget import MIB, mib
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.loading import Loaded
from gateway.lifecycle.memory import Memory
from gateway.lifecycle.resident import own_share, resident
from gateway.lifecycle.states import Record, State
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredVersion

T = TypeVar("T")


class Dropped(Exception):
    """A version is not wanted any more before its loading began."""


class Loads:
    """Loads versions in a few threads, fetches in others: a slow download keeps no model waiting
    that is there. Owned by the event loop."""

    def __init__(
        self, loader: Loader, config: LifecycleConfig, fetcher: Fetcher | None, memory: Memory
    ) -> None:
        self._loader = loader
        self._fetcher = fetcher
        self._memory = memory
        self._load_pool = ThreadPoolExecutor(config.load_threads, "sluice-load")
        self._fetch_pool = ThreadPoolExecutor(config.fetch_threads, "sluice-fetch")
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

    def close(self) -> None:
        self._load_pool.shutdown(wait=False, cancel_futures=True)
        self._fetch_pool.shutdown(wait=False, cancel_futures=True)

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

        def told(here: int, all_of_it: int) -> None:
            if record.state == State.UNLOADED:
                raise Dropped  # nobody wants it any more
            record.progress = (
                f"{mib(here)} of {mib(all_of_it)}" if all_of_it >= here > 0 else mib(here)
            )

        def fetch() -> None:
            if record.state == State.UNLOADED:
                raise Dropped
            record.move(State.FETCHING, record.cause)
            with record.log.hearing():
                record.lease = fetcher.fetch(origin, told)

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
            need = await asyncio.wrap_future(
                self._load_pool.submit(self._loader.estimate, record.model, aspired, settings)
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
            if record.state == State.UNLOADED:
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
        future = in_own_thread(work) if record.urgent else self._load_pool.submit(work)
        try:
            loaded, measured = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(close_model)
            raise
        finally:
            alone = alone and self._changes == changes
            self._running -= 1
            self._changes += 1
        # A child's memory is its own, whoever else loads.
        alone = alone or isinstance(loaded.model, ChildModel)
        size = self._size(record, loaded, settings, measured if alone else None)
        self._memory.settle(record, size)
        return loaded

    def _size(
        self, record: Record, loaded: Loaded, settings: ModelSettings, grown: int | None
    ) -> int:
        """Bytes that a loaded version counts for. `grown`: what this process took meanwhile;
        `None` where others were loading too."""
        expected = self._memory.held.get(record, 0)
        if grown is not None:
            record.log.write(f"measured: {mib(max(grown, 0))}")
        if settings.memory_mb or grown is None:
            return expected
        # What was free in this process before may have been enough: not less than a part.
        return max(grown, expected // 4)


def in_own_thread(work: Callable[[], T]) -> Future[T]:
    """Runs it beside the pool: whoever waits for it may have a thread of the pool."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="sluice-load-inner", daemon=True).start()
    return future


def close_model(future: Future[tuple[Loaded, int]]) -> None:
    """Gives back a model that was loaded for nothing."""
    if not future.cancelled() and future.exception() is None:
        future.result()[0].model.close()
