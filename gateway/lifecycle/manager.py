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
from gateway.errors import ModelLoadError, NotLoaded, SluiceError, without_folders
from gateway.lifecycle.budget import MIB, Holding, Stay
from gateway.lifecycle.closing import Closings
from gateway.lifecycle.demand import Demand
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.loading import Loaded, one_line
from gateway.lifecycle.loads import Dropped, Loads
from gateway.lifecycle.memory import Memory
from gateway.lifecycle.model import DEFAULT, ManagedModel
from gateway.lifecycle.policy import Load, Unload, is_current, next_action
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
IDLE_LOOKS: Final = 4
"""How often idle models are looked for within `lifecycle.on_demand_idle`."""


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
        self.memory = Memory(
            config.memory_budget_mb * MIB, config.memory_wait, self._holding, self._evict
        )
        self.demand = Demand(self, config)
        self.on_change: list[Callable[[str], object]] = [self.demand.changed]
        """Told the name of a model whose route may have changed, after it was published."""
        self._loader = loader
        self._router = router
        self._config = config
        self._loads = Loads(loader, config, fetcher, self.memory)
        self._trimmer = Trimmer()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._unsettled: set[str] = set()
        self._was_settled = False
        self._closing = False
        self._closings = Closings()
        self._idle_timer: asyncio.TimerHandle | None = None

    # --- what is wanted

    def apply(self, wanted: Iterable[AspiredModel], gone: Iterable[str] = ()) -> None:
        """Takes a new wanted state of these models; `gone` ones are unloaded."""
        changed: list[str] = []
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
            model.aspired = aspired
            changed.append(aspired.name)
        for name in gone:
            if name in self.models:
                log.info("%s is gone from its registry; unloading it", name)
                old = self.models[name].aspired
                self.models[name].aspired = AspiredModel(name, {}, old.settings)
                changed.append(name)
        self._reconcile(*changed)

    def set_traffic(self, name: str, traffic: Traffic) -> None:
        """Lets a split take effect now; the registry has stored it already."""
        model = self.models[name]
        model.aspired = replace(model.aspired, traffic=traffic)
        log.info("%s: %s", name, traffic_line(traffic))
        self._reconcile(name)

    def load_now(self, name: str, versions: Iterable[str] | None = None) -> None:
        """Loads these versions (`None`: those that requests need) without waiting for a request,
        or for the time of the next try of one that failed."""
        model = self.models.get(name)
        if model is None:
            return
        if model.on_demand:
            model.demanded.update((DEFAULT,) if versions is None else versions)
        for record in model.records:
            if record.state == State.FAILED and (versions is None or record.version in versions):
                record.retry_at = 0.0
        self._reconcile(name)

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

    # --- on demand: see `gateway.lifecycle.demand.Loading`

    def want(self, model: str, version: str, *, urgent: bool = False) -> SluiceError | None:
        """Somebody asks for a model that is not loaded: loads it, unless that has just failed."""
        managed = self.models.get(model)
        if managed is None or not managed.on_demand:
            return None
        failure = self._failure(managed, version)
        if failure is not None and failure.retry_after:
            return failure
        if version not in managed.demanded:
            managed.demanded.add(version)
            before = set(managed.records)
            self._reconcile(model)
            for record in managed.records:
                if record not in before:
                    record.urgent = urgent
        return None

    def outlook(self, model: str, version: str) -> SluiceError | bool:
        """True where asking again makes sense now, False while it is loading; the error where it
        could not be loaded."""
        route = self._router.table.get(model)
        managed = self.models.get(model)
        if route is None or managed is None or not route.on_demand:
            return True
        if version == DEFAULT:
            if route.targets:
                return True
        elif version in route.versions or version not in route.on_demand:
            return True
        return self._failure(managed, version) or False

    @property
    def usual_seconds(self) -> float:
        """How long a load takes, as a guess."""
        return self.load_seconds / max(self.loads["ok"], 1)

    def _failure(self, model: ManagedModel, version: str) -> NotLoaded | None:
        """Why it could not be loaded; `retry_after` is 0 when it may be tried again now."""
        needed = model.needed(version)
        failed = [r for r in needed.values() if r is not None and r.state == State.FAILED]
        if not failed or len(failed) < len(needed):
            return None
        last = max(failed, key=lambda record: record.since)
        which = f"version {version} of model" if version else "model"
        error = NotLoaded(
            f"{which} '{model.name}' could not be loaded: {without_folders(last.cause)}",
            model.name,
            version,
        )
        error.retry_after = max(min(r.retry_at for r in failed) - time.monotonic(), 0.0)
        return error

    def _give_up(self, model: ManagedModel) -> None:
        """What failed to load on demand is tried again at the next request, not before."""
        route = self._router.table.get(model.name)
        if route is None:
            return
        for version in list(model.demanded):
            serves = bool(route.targets) if version == DEFAULT else version in route.versions
            if not serves and self._failure(model, version) is not None:
                model.demanded.discard(version)

    def _holding(self, record: Record, size: int, asking: Record | None) -> Holding:
        """What may become of the memory of a version, seen from another that needs some."""
        model = self.models.get(record.model)
        stay = Stay.LASTING
        last_used = record.last_used
        if record.state in (State.DRAINING, State.UNLOADED, State.FAILED):
            stay = Stay.LEAVING
        elif model is not None and model.on_demand:
            group = model.group(record)
            stay = Stay.BUSY
            if all(r.servable is not None and r.servable.idle for r in group):
                stay = Stay.IDLE
                last_used = max(r.last_used for r in group)
            if (
                asking is not None
                and asking.model == record.model
                and DEFAULT in model.demanded
                and asking.version in model.needed(DEFAULT)
            ):
                # Neither does a new version replace one in use before it is ready, nor one of
                # a split another.
                stay = Stay.LASTING
        return Holding(record, size, stay, last_used)

    def _evict(self, record: Record) -> None:
        """Unloads an on-demand version that is idle, and what is of no use without it."""
        model = self.models[record.model]
        group = [r for r in model.group(record) if r.state == State.READY]
        why = f"not used since {ago(max(r.last_used for r in group))}; loaded again on demand"
        for each in group:
            model.used[each.version] = each.last_used
            model.forget(each.version)
            log.info("%s/%s is unloaded for now: %s", model.name, each.version, why)
            self._start_unload(model, Unload(each), why)
        self._reconcile(model.name)

    def _look_for_idle(self) -> None:
        self._idle_timer = None
        since = time.time() - self._config.on_demand_idle
        for record in list(self.memory.held):
            if record.state != State.READY:
                continue
            holding = self._holding(record, 0, None)
            if holding.stay is Stay.IDLE and holding.last_used <= since:
                self._evict(record)
        self._watch_idle()

    def _watch_idle(self) -> None:
        idle = self._config.on_demand_idle
        if idle and self._idle_timer is None and not self._closing and self.memory.held:
            self._idle_timer = asyncio.get_running_loop().call_later(
                idle / IDLE_LOOKS, self._look_for_idle
            )

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
        for model in models:
            self._tidy(model)

    def _act(self, model: ManagedModel) -> None:
        while True:
            action = next_action(model.desired, model.active, time.monotonic(), self._config.policy)
            if action is None:
                break
            if isinstance(action, Load):
                self._start_load(model, action)
            else:
                self._start_unload(model, action)
        desired = model.desired
        possible = {**model.aspired.stand_ins, **model.aspired.versions}
        for record in list(model.records):
            if record.state == State.FETCHING and not is_current(record, desired):
                self.memory.leave(record, Dropped())
            elif (
                record.state == State.FAILED
                and model.on_demand
                and not is_current(record, possible)
            ):
                model.records.remove(record)

    def _tidy(self, model: ManagedModel) -> None:
        name = model.name
        if self.models.get(name) is not model:
            return
        aspired = model.aspired
        if not (aspired.versions or model.records or aspired.error or aspired.unloaded):
            del self.models[name]
            self._router.withdraw(name)
            self.demand.changed(name)
        if name in self.models and not model.settled:
            self._unsettled.add(name)
        elif name in self._unsettled:
            self._unsettled.discard(name)
            self._changed.set()

    def _start_load(self, model: ManagedModel, action: Load) -> None:
        record = Record(action.aspired, model.name, model.logs.of(action.aspired.version))
        if action.retry is not None:
            record.attempts = action.retry.attempts
            record.cause = action.retry.cause
            model.records.remove(action.retry)
        model.records.append(record)
        self._spawn(self._load(model, record))

    async def _load(self, model: ManagedModel, record: Record) -> None:
        name, settings = model.aspired.name, model.aspired.settings
        started = time.monotonic()

        def wanted() -> bool:
            return record in model.records and is_current(record, model.desired)

        try:
            loaded = await self._loads.run(record, settings, wanted)
        except Dropped:
            self._dropped(model, record)
        except Exception as error:
            self._load_failed(name, record, error)
        else:
            try:
                if record not in model.records:
                    raise Dropped
                record.servable = self._loader.servable(name, record.version, loaded, settings)
            except Exception as error:
                loaded.model.close()
                if isinstance(error, Dropped):
                    self._dropped(model, record)
                else:
                    self._load_failed(name, record, error)
            else:
                self._loaded(name, record, loaded, time.monotonic() - started)
        self._reconcile(name)
        if model.on_demand and record.state == State.FAILED:
            self._give_up(model)
            self._tidy(model)
        self._was_settled = self._was_settled or self.settled

    def _dropped(self, model: ManagedModel, record: Record) -> None:
        if record in model.records:
            model.records.remove(record)
        record.move(State.UNLOADED)
        record.release()
        self.memory.release(record)

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
        self._watch_idle()

    def _load_failed(
        self, name: str, record: Record, error: Exception, what: str = "failed to load"
    ) -> None:
        record.attempts += 1
        self.loads["failed"] += 1
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
        record.release()
        record.move(State.FAILED, cause)
        if record.servable is None and what == "failed to load":
            self.memory.release(record)
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
        self._spawn(self._close(name, record, servable))

    def _start_unload(self, model: ManagedModel, action: Unload, why: str = "") -> None:
        record = action.record
        if record.servable is None:
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
        await self._close(model.aspired.name, record, servable)
        model.records.remove(record)
        record.servable = None
        record.release()
        record.move(State.UNLOADED)
        log.info("%s/%s is unloaded", model.aspired.name, record.version)
        self._reconcile(model.aspired.name)

    async def _close(self, name: str, record: Record, servable: Servable) -> None:
        # Not in the pool: what is loading there must not keep this one's memory.
        await self._closings.close(f"{name}/{record.version}", servable)
        self._loads.unloaded()
        self.memory.release(record)
        self._trimmer.soon(self._loads.unloaded)

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
        if self._idle_timer is not None:
            self._idle_timer.cancel()
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
        self._loads.close()


def ago(when: float) -> str:
    """A moment (Unix seconds) as the time of day, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
