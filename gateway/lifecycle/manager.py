"""Makes what is loaded equal to what the registries want, and publishes routes.

aspired versions → policy → one action → load, warm up, publish → look again. All state
belongs to the event loop; loading and unloading happen in a few threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from gateway.artifacts.base import Fetcher
from gateway.config import LifecycleConfig
from gateway.errors import FetchError, ModelLoadError, SluiceError
from gateway.lifecycle.closing import Closings
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.loading import Loaded, one_line
from gateway.lifecycle.model import ManagedModel
from gateway.lifecycle.policy import Load, Unload, next_action
from gateway.lifecycle.routes import lost_lines, lost_shares, route_of, traffic_line
from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredModel, AspiredVersion
from gateway.registries.traffic import Traffic
from gateway.routing import Router
from gateway.servable import Servable
from gateway.telemetry.logs import log
from runtimes.interface import AsyncModel, Model

DRAIN_POLL: Final = 0.02
CLOSE_SECONDS: Final = 5.0
"""Longest time for connections to other servers to be closed at the end."""
CLOSING_SECONDS: Final = 30.0
"""Longest time for all models to be closed at the end; they are closed at the same time."""


class Dropped(Exception):
    """A version is not wanted any more before its loading began."""


class Manager:
    """The lifecycle of all models."""

    def __init__(
        self,
        loader: Loader,
        router: Router[Servable],
        config: LifecycleConfig,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.models: dict[str, ManagedModel] = {}
        self.loads = {"ok": 0, "failed": 0}
        self.load_seconds = 0.0
        self.on_change: list[Callable[[str], object]] = []
        """Told the name of a model whose route may have changed, after it was published."""
        self._loader = loader
        self._fetcher = fetcher
        self._router = router
        self._config = config
        self._pool = ThreadPoolExecutor(config.load_threads, "sluice-load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._unsettled: set[str] = set()
        self._was_settled = False
        self._closing = False
        self._closings = Closings()

    # --- what is wanted

    def apply(self, wanted: Iterable[AspiredModel], gone: Iterable[str] = ()) -> None:
        """Takes a new wanted state of these models; `gone` ones are unloaded."""
        for aspired in wanted:
            model = self.models.get(aspired.name)
            if model is None:
                model = self.models[aspired.name] = ManagedModel(aspired)
                traffic, error = Traffic(), ""
            elif model.aspired == aspired:
                continue
            else:
                traffic, error = model.traffic, model.aspired.error
            if aspired.error and aspired.error != error:
                kept = "; what is loaded stays as it is" if model.records else ""
                log.error("%s: %s%s", aspired.name, aspired.error, kept)
            elif error and not aspired.error:
                log.info("%s: its documents can be read again", aspired.name)
            if aspired.traffic != traffic:
                log.info("%s: %s", aspired.name, traffic_line(aspired.traffic))
            model.aspired = aspired
            self._reconcile(aspired.name)
        for name in gone:
            if name in self.models:
                log.info("%s is gone from its registry; unloading it", name)
                old = self.models[name].aspired
                self.models[name].aspired = AspiredModel(name, {}, old.settings)
                self._reconcile(name)

    def set_traffic(self, name: str, traffic: Traffic) -> None:
        """Lets a split take effect now; the registry has stored it already."""
        model = self.models[name]
        model.aspired = replace(model.aspired, traffic=traffic)
        log.info("%s: %s", name, traffic_line(traffic))
        self._publish(model)
        for listener in self.on_change:
            listener(name)

    async def wait_settled(self, timeout: float) -> bool:
        """Waits until every aspired version is ready or failed; False if that takes too long."""
        deadline = time.monotonic() + timeout
        while not self.settled:
            self._changed.clear()
            left = deadline - time.monotonic()
            try:
                await asyncio.wait_for(self._changed.wait(), max(left, 0.0))
            except TimeoutError:
                return self.settled
        self._was_settled = True
        return True

    @property
    def settled(self) -> bool:
        return not self._unsettled

    @property
    def ready(self) -> bool:
        """Ready for traffic: at least one model is, and there was a moment at which everything
        was ready or failed. What is loaded or tried again later does not matter any more."""
        return self._was_settled and any(model.ready for model in self.models.values())

    def failed(self) -> dict[str, str]:
        """Model or model/version → why it cannot serve."""
        causes: dict[str, str] = {}
        for name, model in self.models.items():
            if model.aspired.error:
                causes[name] = model.aspired.error
            for record in model.current().values():
                if record.state == State.FAILED:
                    causes[f"{name}/{record.version}"] = record.cause
        return causes

    # --- one action at a time

    def _reconcile(self, name: str) -> None:
        model = self.models.get(name)
        if model is None or self._closing:
            return
        while True:
            action = next_action(
                model.desired, model.records, time.monotonic(), self._config.policy
            )
            if action is None:
                break
            if isinstance(action, Load):
                self._start_load(model, action)
            else:
                self._start_unload(model, action)
        self._publish(model)
        for listener in self.on_change:
            listener(name)
        if not model.aspired.versions and not model.records and not model.aspired.error:
            del self.models[name]
            self._router.withdraw(name)
        if name in self.models and not model.settled:
            self._unsettled.add(name)
        elif name in self._unsettled:
            self._unsettled.discard(name)
            self._changed.set()

    def _start_load(self, model: ManagedModel, action: Load) -> None:
        record = Record(action.aspired)
        if action.retry is not None:
            record.attempts = action.retry.attempts
            record.cause = action.retry.cause
            model.records.remove(action.retry)
        model.records.append(record)
        self._spawn(self._load(model, record))

    async def _load(self, model: ManagedModel, record: Record) -> None:
        name, settings = model.aspired.name, model.aspired.settings
        loop = asyncio.get_running_loop()
        started = time.monotonic()

        def warming(runtime: str) -> None:
            record.runtime = runtime
            record.move(State.WARMING, record.cause)

        def work() -> Loaded:
            if record.state == State.UNLOADED:
                raise Dropped
            aspired = self._fetch(record)
            record.move(State.LOADING, record.cause)
            return self._loader.load(
                name, aspired, settings, lambda r: loop.call_soon_threadsafe(warming, r)
            )

        future = self._pool.submit(work)
        try:
            loaded = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(close_model)
            raise
        except Dropped:
            return
        except Exception as error:
            self._load_failed(name, record, error)
        else:
            try:
                if record not in model.records:
                    raise Dropped
                record.servable = self._loader.servable(name, record.version, loaded, settings)
            except Exception as error:
                close_model(future)
                if isinstance(error, Dropped):
                    return
                self._load_failed(name, record, error)
            else:
                self._loaded(name, record, loaded, time.monotonic() - started)
        self._reconcile(name)
        self._was_settled = self._was_settled or self.settled

    def _fetch(self, record: Record) -> AspiredVersion:
        """The version with its files here; for a thread. Raises `FetchError`."""
        aspired = record.aspired
        if aspired.origin is None:
            return aspired
        if self._fetcher is None:
            raise FetchError(f"{aspired.origin.uri} cannot be fetched: there is no cache")
        record.move(State.FETCHING, record.cause)
        record.lease = self._fetcher.fetch(aspired.origin, lambda here, all_of_it: None)
        return replace(aspired, path=record.lease.path)

    def _loaded(self, name: str, record: Record, loaded: Loaded, took: float) -> None:
        self.loads["ok"] += 1
        assert record.servable is not None
        record.servable.dispatcher.on_broken = lambda cause: self._broken(name, record, cause)
        self.load_seconds += took
        record.runtime = loaded.runtime
        notes = "; ".join(loaded.findings.notes)
        record.move(State.READY, notes)
        size = loaded.findings.max_batch_size
        batches = f"batches up to {size}" if size else "not batched"
        log.info(
            "%s/%s is ready (%s, %.2f s, %s)",
            name, record.version, loaded.runtime, took, notes or batches,
        )  # fmt: skip

    def _load_failed(
        self, name: str, record: Record, error: Exception, what: str = "failed to load"
    ) -> None:
        record.attempts += 1
        self.loads["failed"] += 1
        pause = self._config.retry_seconds * 2 ** min(record.attempts - 1, 5)
        record.retry_at = time.monotonic() + pause
        cause = (
            str(error)
            if isinstance(error, SluiceError)
            else (f"{type(error).__name__}: {one_line(error)}")
        )
        record.release()
        record.move(State.FAILED, cause)
        log.error("%s/%s %s: %s (next try in %.0f s)", name, record.version, what, cause, pause)
        asyncio.get_running_loop().call_later(pause + 0.01, self._reconcile, name)

    def _broken(self, name: str, record: Record, cause: str) -> None:
        """A ready version can run nothing any more: out of the routes, and loaded anew later."""
        servable = record.servable
        if record.state != State.READY or servable is None:
            return
        record.servable = None
        self._load_failed(name, record, ModelLoadError(cause), "broke")
        self._reconcile(name)
        self._spawn(self._closings.close(f"{name}/{record.version}", servable))

    def _start_unload(self, model: ManagedModel, action: Unload) -> None:
        record = action.record
        if record.servable is None:
            model.records.remove(record)
            record.move(State.UNLOADED)
            return
        record.move(State.DRAINING)
        self._spawn(self._unload(model, record, record.servable))

    async def _unload(self, model: ManagedModel, record: Record, servable: Servable) -> None:
        # It is out of the table already; whoever holds a handle keeps the version alive.
        while not servable.idle:
            await asyncio.sleep(DRAIN_POLL)
        # Not in the pool: what is loading there must not keep this one's memory.
        await self._closings.close(f"{model.aspired.name}/{record.version}", servable)
        model.records.remove(record)
        record.servable = None
        record.release()
        record.move(State.UNLOADED)
        log.info("%s/%s is unloaded", model.aspired.name, record.version)
        self._reconcile(model.aspired.name)

    # --- routes

    def _publish(self, model: ManagedModel) -> None:
        route = route_of(model)
        if route.stable in route.versions:
            model.acting = route.stable
        self._router.publish(route)
        if model.settled:  # before that, loading is all there is to say
            lost = lost_shares(route)
            new = {v: share for v, share in lost.items() if model.lost.get(v) != share}
            model.lost = lost
            for line in lost_lines(model, route, new):
                log.warning("%s: %s", model.name, line)

    # --- the end

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Unloads everything, all at the same time. Nothing may be pending.

        Models that are not closed in time are left behind, for the process to end with.
        """
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        loaded: list[Model] = []
        for name, model in self.models.items():
            for record in model.records:
                if record.servable is not None:
                    self._closings.start(f"{name}/{record.version}", record.servable)
                    loaded.append(record.servable.model)
        await self._closings.wait(CLOSING_SECONDS)
        closing = [
            each.closing
            for each in loaded
            if isinstance(each, AsyncModel) and each.closing is not None
        ]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)


def close_model(future: Future[Loaded]) -> None:
    """Gives back a model that was loaded for nothing."""
    if not future.cancelled() and future.exception() is None:
        future.result().model.close()
