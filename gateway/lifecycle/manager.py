"""Makes what is loaded equal to what the registries want, and publishes routes.

aspired versions → policy → one action → load, warm up, publish → look again. All state
belongs to the event loop; fetching, loading and unloading happen in threads.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Final

from gateway.artifacts.base import Fetcher
from gateway.config import LifecycleConfig
from gateway.errors import ModelLoadError, SluiceError
from gateway.lifecycle.budget import MIB
from gateway.lifecycle.closing import Closable, Closings
from gateway.lifecycle.demand import Demand
from gateway.lifecycle.load_runner import Dropped, LoadRunner
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.loading import Loaded, one_line
from gateway.lifecycle.memory import Memory
from gateway.lifecycle.model import DEFAULT, ManagedModel
from gateway.lifecycle.on_demand import OnDemand
from gateway.lifecycle.policy import Load, is_current, next_action
from gateway.lifecycle.resident import Trimmer
from gateway.lifecycle.routes import lost_lines, lost_shares, route_of, traffic_line
from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredModel
from gateway.registries.traffic import Traffic
from gateway.routing import Route, Router
from gateway.servable import Servable
from gateway.telemetry.logs import log
from runtimes.interface import AsyncModel, Model

DRAIN_POLL: Final = 0.02
CLOSE_SECONDS: Final = 5.0
"""Longest time for connections to other servers to be closed at the end."""
CLOSING_SECONDS: Final = 30.0
"""Longest time for all models to be closed at the end; they are closed at the same time."""


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
        self.ended_loads = {"ok": 0, "failed": 0}
        self.load_seconds = 0.0
        """Time that those took that ended well."""
        self.on_demand = OnDemand(
            self.models,
            router,
            config.on_demand_idle,
            self._reconcile,
            self._unload_now,
            lambda record: self.runner.hurry(record),
        )
        self.memory = Memory(
            config.memory_budget_mb * MIB,
            config.memory_wait,
            self.on_demand.holding,
            self.on_demand.evict,
        )
        self._closings = Closings()
        self.runner = LoadRunner(loader, config, fetcher, self.memory, self._closings)
        self.demand = Demand(self.on_demand, self.usual_seconds, config)
        self.on_change: list[Callable[[str], object]] = [self.demand.changed]
        """Told the name of a model whose route may have changed, after it was published."""
        self._loader = loader
        self._router = router
        self._config = config
        self._trimmer = Trimmer()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._unsettled: set[str] = set()
        self._was_settled = False
        self._closing = False

    # --- what is wanted

    def apply(self, wanted: Iterable[AspiredModel], gone: Iterable[str] = ()) -> None:
        """Takes a new wanted state of these models; `gone` ones are unloaded."""
        changed: list[str] = []
        resized: list[ManagedModel] = []
        for aspired in wanted:
            model = self.models.get(aspired.name)
            if model is None:
                model = self.models[aspired.name] = ManagedModel(aspired)
                traffic, error = Traffic(), ""
            elif model.aspired is aspired or model.aspired == aspired:
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
            if aspired.settings.on_demand and not model.on_demand and model.ready:
                model.demanded.add(DEFAULT)  # it is loaded, and in use perhaps
            if aspired.settings.memory_mb != model.aspired.settings.memory_mb:
                resized.append(model)
            model.aspired = aspired
            changed.append(aspired.name)
        for name in gone:
            if name in self.models:
                log.info("%s is gone from its registry; unloading it", name)
                old = self.models[name].aspired
                self.models[name].aspired = AspiredModel(name, {}, old.settings)
                changed.append(name)
        self._reconcile(*changed)
        for model in resized:
            for record in list(model.records):
                self._resize(model, record)

    def set_traffic(self, name: str, traffic: Traffic) -> None:
        """Lets a split take effect now; the registry has stored it already."""
        model = self.models[name]
        model.aspired = replace(model.aspired, traffic=traffic)
        log.info("%s: %s", name, traffic_line(traffic))
        self._reconcile(name)

    def load_now(
        self, name: str, versions: Iterable[str] | None = None
    ) -> dict[str, asyncio.Future[str]]:
        """Loads these versions (`None`: those that requests need) without waiting for a request,
        or for the time of the next try of one that failed.

        Gives, for each of them, what comes of its load: the future's result is empty once it is
        ready, else it is why it failed or is not wanted any more. It is there whatever becomes of
        the version afterwards: a load on demand that failed is forgotten in the same turn of the
        loop, so that looking at the records may come too late. Each caller has futures of its
        own and may cancel them. Nothing is given for a model that is not known.
        """
        model = self.models.get(name)
        if model is None:
            return {}
        versions = None if versions is None else tuple(versions)
        if model.on_demand:
            model.demanded.update((DEFAULT,) if versions is None else versions)
        for record in model.records:
            if record.state == State.FAILED and (versions is None or record.version in versions):
                record.retry_at = 0.0
        self._reconcile(name)
        futures = model.ask(model.desired if versions is None else versions)
        model.tell()
        return futures

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

    def usual_seconds(self) -> float:
        """How long a load takes, as a guess."""
        return self.load_seconds / max(self.ended_loads["ok"], 1)

    @property
    def settled(self) -> bool:
        return not self._unsettled

    @property
    def ready(self) -> bool:
        """Ready for traffic: at least one model is, and there was a moment at which everything
        was ready or failed. What is loaded or tried again later does not matter any more."""
        models = self.models.values()
        return self._was_settled and (
            any(model.available for model in models)
            or (bool(models) and all(model.aspired.unloaded for model in models))
        )

    def failed(self) -> dict[str, str]:
        """Model or model/version → why it cannot serve."""
        causes: dict[str, str] = {}
        for name, model in self.models.items():
            if model.aspired.error:
                causes[name] = model.aspired.error
            for record in model.current().values() if model.records else ():
                if record.state == State.FAILED:
                    causes[f"{name}/{record.version}"] = record.cause
        return causes

    # --- one action at a time

    def _reconcile(self, *names: str) -> None:
        """Takes the next actions for these models and publishes their routes, all at once."""
        if self._closing:
            return
        models = [model for name in names if (model := self.models.get(name)) is not None]
        for model in models:
            self._act(model)
        self._publish(models)
        for model in models:
            for listener in self.on_change:
                listener(model.name)
        gone = [model.name for model in models if self._tidy(model)]
        if gone:
            self._router.withdraw(*gone)
            for name in gone:
                self.demand.changed(name)

    def _act(self, model: ManagedModel) -> None:
        while True:
            action = next_action(model.desired, model.active, time.monotonic(), self._config.policy)
            if action is None:
                break
            if isinstance(action, Load):
                self._start_load(model, action)
            else:
                self._unload_now(model, action.record)
        desired = model.desired
        possible = {**model.aspired.stand_ins, **model.aspired.versions}
        for record in list(model.records):
            if record.state == State.FETCHING:
                record.dropped = not is_current(record, desired)
                if record.dropped:
                    self.memory.leave(record, Dropped())
            elif (
                record.state == State.FAILED
                and model.on_demand
                and not is_current(record, possible)
            ):
                model.records.remove(record)

    def _tidy(self, model: ManagedModel) -> bool:
        """Whether nothing is left of the model: it is forgotten."""
        name = model.name
        if self.models.get(name) is not model:
            return False
        model.tell()
        aspired = model.aspired
        if not (aspired.versions or model.records or aspired.error or aspired.unloaded):
            del self.models[name]
        if name in self.models and not model.settled:
            self._unsettled.add(name)
            return False
        model.urgent = False
        if name in self._unsettled:
            self._unsettled.discard(name)
            self._changed.set()
        return name not in self.models

    def _start_load(self, model: ManagedModel, action: Load) -> None:
        record = Record(action.aspired, model.name, model.logs.of(action.aspired.version))
        if action.retry is not None:
            record.attempts = action.retry.attempts
            record.cause = action.retry.cause
            model.records.remove(action.retry)
        record.urgent = model.urgent
        model.records.append(record)
        self._spawn(self._load(model, record))

    async def _load(self, model: ManagedModel, record: Record) -> None:
        name, settings = model.aspired.name, model.aspired.settings
        started = time.monotonic()

        def wanted() -> bool:
            return record in model.records and is_current(record, model.desired)

        try:
            loaded = await self.runner.run(record, settings, wanted)
        except Dropped:
            self._dropped(model, record)
            self._release(record)
        except Exception as error:
            self._failed(name, record, error)
            self._release(record)
        else:
            try:
                if record not in model.records:
                    raise Dropped
                record.servable = self._loader.servable(name, record.version, loaded, settings)
            except Exception as error:
                if isinstance(error, Dropped):
                    self._dropped(model, record)
                else:
                    self._failed(name, record, error)
                self._spawn(self._close(record, loaded.model))
            else:
                self._loaded(name, record, loaded, time.monotonic() - started)
                if settings.memory_mb != model.aspired.settings.memory_mb:
                    self._resize(model, record)
        self._reconcile(name)
        if model.on_demand and record.state == State.FAILED:
            self.on_demand.give_up(model)
            self._tidy(model)
        self._was_settled = self._was_settled or self.settled

    def _dropped(self, model: ManagedModel, record: Record) -> None:
        if record in model.records:
            model.records.remove(record)
        record.move(State.UNLOADED)

    def _release(self, record: Record) -> None:
        """Gives back what a version held that nothing is left of."""
        record.release()
        self.memory.release(record)

    def _loaded(self, name: str, record: Record, loaded: Loaded, took: float) -> None:
        self.ended_loads["ok"] += 1
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
        self.on_demand.watch_idle(self.memory.held)

    def _resize(self, model: ManagedModel, record: Record) -> None:
        """What a loaded version counts for, now that its settings say something else of it."""
        size = model.aspired.settings.memory_mb * MIB or record.measured
        if size and record.state == State.READY and self.memory.held.get(record) != size:
            self.memory.settle(record, size)

    def _failed(
        self, name: str, record: Record, error: Exception, what: str = "failed to load"
    ) -> None:
        record.attempts += 1
        self.ended_loads["failed"] += 1
        pause = self._config.retry_seconds * 2 ** min(record.attempts - 1, 5)
        # What failed together need not be tried again together.
        pause *= random.uniform(0.8, 1.2)
        record.retry_at = time.monotonic() + pause
        cause = (
            str(error)
            if isinstance(error, SluiceError)
            else (f"{type(error).__name__}: {one_line(error)}")
        )
        record.log.failure(error)
        record.move(State.FAILED, cause)
        log.error("%s/%s %s: %s (next try in %.0f s)", name, record.version, what, cause, pause)
        asyncio.get_running_loop().call_later(pause + 0.01, self._reconcile, name)

    def _broken(self, name: str, record: Record, cause: str) -> None:
        """A ready version can run nothing any more: out of the routes, and loaded anew later."""
        servable = record.servable
        if record.state != State.READY or servable is None:
            return
        record.servable = None
        self._failed(name, record, ModelLoadError(cause), "broke")
        self._reconcile(name)
        self._spawn(self._close(record, servable))

    def _unload_now(self, model: ManagedModel, record: Record, why: str = "") -> None:
        if record.servable is None:
            record.dropped = True
            model.records.remove(record)
            self.memory.leave(record, Dropped())
            record.move(State.UNLOADED)
            return
        record.move(State.DRAINING, why)
        self._spawn(self._unload(model, record, record.servable))

    async def _unload(self, model: ManagedModel, record: Record, servable: Servable) -> None:
        # It is out of the table already; whoever holds a handle keeps the version alive.
        while not servable.idle:
            await asyncio.sleep(DRAIN_POLL)
        await self._close(record, servable)
        model.records.remove(record)
        record.servable = None
        record.move(State.UNLOADED)
        log.info("%s/%s is unloaded", model.aspired.name, record.version)
        self._reconcile(model.aspired.name)

    async def _close(self, record: Record, closable: Closable) -> None:
        # Not in the pool: what is loading there must not keep this one's memory.
        await self._closings.close(f"{record.model}/{record.version}", closable)
        self.runner.unloaded()
        self._release(record)
        self._trimmer.soon(self.runner.unloaded)

    # --- routes

    def _publish(self, models: Iterable[ManagedModel]) -> None:
        routes: list[Route[Servable]] = []
        for model in models:
            route = route_of(model)
            if route.stable in route.versions:
                model.acting = route.stable
            routes.append(route)
            # Before that, loading (or having unloaded) is all there is to say.
            if model.settled and not model.aspired.unloaded:
                lost = lost_shares(route)
                new = {v: share for v, share in lost.items() if model.lost.get(v) != share}
                model.lost = lost
                for line in lost_lines(model, route, new):
                    log.warning("%s: %s", model.name, line)
        self._router.publish_all(routes)

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
        self.demand.close()
        self._trimmer.close()
        self.on_demand.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        loaded: list[Model] = []
        for name, model in self.models.items():
            for version in list(model.asked):
                model.give(version, "the gateway is ending")
            for record in model.records:
                if record.servable is not None:
                    self._closings.start(f"{name}/{record.version}", record.servable)
                    loaded.append(record.servable.model)
        await self.runner.close()
        await self._closings.wait(CLOSING_SECONDS)
        for model in self.models.values():
            for record in model.records:
                record.release()
        closing = [
            each.closing
            for each in loaded
            if isinstance(each, AsyncModel) and each.closing is not None
        ]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_SECONDS)
