"""Makes what is loaded equal to what the registries want, and publishes routes.

aspired versions → policy → one action → load, warm up, publish → look again. All state
belongs to the event loop; loading and unloading happen in a few threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from gateway.config import LifecycleConfig
from gateway.errors import SluiceError
from gateway.lifecycle.loader import Loaded, Loader, one_line
from gateway.lifecycle.policy import Load, Unload, next_action
from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredModel
from gateway.registries.traffic import Traffic
from gateway.routing import DEFAULT_STICKY_HEADER, Route, Router, Sticky
from gateway.servable import Servable
from gateway.telemetry.logs import log

DRAIN_POLL: Final = 0.02


class ManagedModel:
    """One model: what is wanted of it and what there is."""

    __slots__ = ("aspired", "records", "traffic")

    def __init__(self, aspired: AspiredModel) -> None:
        self.aspired = aspired
        self.traffic: Traffic = aspired.traffic
        self.records: list[Record] = []

    @property
    def settled(self) -> bool:
        """Whether every aspired version is ready or failed."""
        done = {r.version for r in self.records if r.state in (State.READY, State.FAILED)}
        return done.issuperset(self.aspired.versions)

    @property
    def ready(self) -> bool:
        return any(record.state == State.READY for record in self.records)

    def current(self) -> dict[str, Record]:
        """Version → its newest record that is not on its way out."""
        return {r.version: r for r in self.records if r.state != State.DRAINING}


class Manager:
    """The lifecycle of all models."""

    def __init__(self, loader: Loader, router: Router[Servable], config: LifecycleConfig) -> None:
        self.models: dict[str, ManagedModel] = {}
        self.loads = {"ok": 0, "failed": 0}
        self.load_seconds = 0.0
        self.on_change: list[Callable[[str], object]] = []
        self._loader = loader
        self._router = router
        self._config = config
        self._pool = ThreadPoolExecutor(config.load_threads, "sluice-load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._unsettled: set[str] = set()
        self._closing = False

    # --- what is wanted

    def apply(self, wanted: Iterable[AspiredModel], gone: Iterable[str] = ()) -> None:
        """Takes a new wanted state of these models; `gone` ones are unloaded."""
        for aspired in wanted:
            model = self.models.get(aspired.name)
            if model is None:
                model = self.models[aspired.name] = ManagedModel(aspired)
            elif model.aspired == aspired:
                continue
            if aspired.error and aspired.error != model.aspired.error:
                log.error("%s: %s; what is loaded stays as it is", aspired.name, aspired.error)
            elif aspired.error:
                log.error("%s: %s", aspired.name, aspired.error)
            if aspired.traffic != model.traffic:
                log.info("%s: %s", aspired.name, traffic_line(aspired.traffic))
            model.aspired = aspired
            model.traffic = aspired.traffic
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
        model.traffic = traffic
        self._publish(model)
        log.info("%s: %s", name, traffic_line(traffic))

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
        return True

    @property
    def settled(self) -> bool:
        return not self._unsettled

    @property
    def ready(self) -> bool:
        """Ready for traffic: everything ready or failed, and at least one model ready."""
        models = self.models.values()
        return self.settled and any(model.ready for model in models)

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
                model.aspired.versions, model.records, time.monotonic(), self._config.policy
            )
            if action is None:
                break
            if isinstance(action, Load):
                self._start_load(model, action)
            else:
                self._start_unload(model, action)
        self._publish(model)
        if not model.aspired.versions and not model.records and not model.aspired.error:
            del self.models[name]
            self._router.withdraw(name)
        if name in self.models and not model.settled:
            self._unsettled.add(name)
        elif name in self._unsettled:
            self._unsettled.discard(name)
            self._changed.set()
        for listener in self.on_change:
            listener(name)

    def _start_load(self, model: ManagedModel, action: Load) -> None:
        record = Record(action.aspired)
        if action.retry is not None:
            record.attempts = action.retry.attempts
            model.records.remove(action.retry)
        model.records.append(record)
        self._spawn(self._load(model, record))

    async def _load(self, model: ManagedModel, record: Record) -> None:
        name, settings = model.aspired.name, model.aspired.settings
        loop = asyncio.get_running_loop()
        label = f"{name}/{record.version}"
        started = time.monotonic()
        loaded: Loaded | None = None

        def warming(runtime: str) -> None:
            record.runtime = runtime
            record.move(State.WARMING)

        def work() -> Loaded:
            record.move(State.LOADING)
            return self._loader.load(
                name, record.aspired, settings, lambda r: loop.call_soon_threadsafe(warming, r)
            )

        try:
            loaded = await loop.run_in_executor(self._pool, work)
            record.runtime = loaded.runtime
            record.servable = self._loader.servable(name, record.version, loaded, settings)
        except Exception as error:
            if loaded is not None:
                loaded.model.close()
            self._load_failed(label, record, error)
        else:
            took = time.monotonic() - started
            self.loads["ok"] += 1
            self.load_seconds += took
            record.move(State.READY, "; ".join(loaded.findings.notes))
            size = loaded.findings.max_batch_size
            batches = f"batches up to {size}" if size else "; ".join(loaded.findings.notes) or (
                "not batched"
            )
            log.info("%s is ready (%s, %.2f s, %s)", label, loaded.runtime, took, batches)
        self._reconcile(name)

    def _load_failed(self, label: str, record: Record, error: Exception) -> None:
        record.attempts += 1
        self.loads["failed"] += 1
        pause = self._config.retry_seconds * 2 ** min(record.attempts - 1, 5)
        record.retry_at = time.monotonic() + pause
        cause = str(error) if isinstance(error, SluiceError) else (
            f"{type(error).__name__}: {one_line(error)}"
        )
        record.move(State.FAILED, cause)
        log.error("%s failed to load: %s (next try in %.0f s)", label, cause, pause)
        name = label.rpartition("/")[0]
        asyncio.get_running_loop().call_later(pause + 0.01, self._reconcile, name)

    def _start_unload(self, model: ManagedModel, action: Unload) -> None:
        record = action.record
        if record.servable is None:
            model.records.remove(record)
            return
        record.move(State.DRAINING)
        self._spawn(self._unload(model, record, record.servable))

    async def _unload(self, model: ManagedModel, record: Record, servable: Servable) -> None:
        # Out of the table first; whoever holds a handle keeps the version alive.
        self._publish(model)
        while not servable.idle:
            await asyncio.sleep(DRAIN_POLL)
        await asyncio.get_running_loop().run_in_executor(self._pool, servable.close)
        model.records.remove(record)
        record.servable = None
        record.move(State.UNLOADED)
        log.info("%s/%s is unloaded", model.aspired.name, record.version)
        self._reconcile(model.aspired.name)

    # --- routes

    def _publish(self, model: ManagedModel) -> None:
        name = model.aspired.name
        versions: dict[str, Servable] = {}
        for record in model.records:
            if record.state == State.READY and record.servable is not None:
                versions[record.version] = record.servable
        traffic = model.traffic
        settings = model.aspired.settings
        stable = traffic.stable_version()
        weights = dict(traffic.weights)
        if not weights:
            newest = newest_version(versions, model.aspired.versions)
            stable = stable or newest
            weights = {stable: 1.0} if stable is not None else {}
        labels: dict[str, str] = {}
        if stable is not None:
            labels["stable"] = stable
        canary = traffic.canary_version()
        if canary is not None:
            labels["canary"] = canary
        labels.update(settings.labels)
        labels.update(traffic.labels)
        causes = [r.cause for r in model.records if r.state == State.FAILED]
        self._router.publish(
            Route(
                name,
                versions,
                weights,
                stable,
                labels,
                sticky_of(traffic),
                known_versions=tuple(
                    sorted({*model.aspired.versions, *versions}, key=lambda v: (len(v), v))
                ),
                reason=model.aspired.error or (causes[0] if causes else "it is still loading"),
            )
        )

    # --- the end

    def _spawn(self, work: object) -> None:
        task = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Unloads everything. Nothing may be pending."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in self.models.values():
            for record in model.records:
                if record.servable is not None:
                    record.servable.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def newest_version(versions: Iterable[str], aspired: Iterable[str]) -> str | None:
    """The newest ready version that is wanted, else the newest ready one."""
    ready = sorted(versions, key=lambda v: (len(v), v))
    wanted = [version for version in ready if version in set(aspired)]
    return (wanted or ready or [None])[-1]


def sticky_of(traffic: Traffic) -> Sticky:
    own = traffic.sticky
    if own is None or (own.header is None and own.parameter is None):
        return Sticky(DEFAULT_STICKY_HEADER)
    return Sticky(own.header.lower() if own.header else None, own.parameter)


def traffic_line(traffic: Traffic) -> str:
    """A split in words, for the log."""
    if not traffic.weights:
        return "all traffic goes to the newest ready version"
    total = sum(traffic.weights.values())
    parts = [f"{v} {w / total:.4g}".replace("e+00", "") for v, w in traffic.weights.items()]
    return f"split {', '.join(parts)}; stable is {traffic.stable_version()}"
