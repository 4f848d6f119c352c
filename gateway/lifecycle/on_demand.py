"""Models that are loaded when somebody asks for them, and unloaded when nobody does any more or
others need their memory. Who waits meanwhile: `gateway.lifecycle.demand`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gateway.errors import NotLoaded, SluiceError, without_folders
from gateway.lifecycle.budget import Holding, Stay
from gateway.lifecycle.model import DEFAULT, ManagedModel
from gateway.lifecycle.policy import WORKING
from gateway.lifecycle.states import Record, State
from gateway.routing import Router
from gateway.servable import Servable
from gateway.telemetry.logs import log
from gateway.times import local_time

IDLE_LOOKS: Final = 4
"""How often idle models are looked for within `lifecycle.on_demand_idle`."""
LEAVING: Final = (State.DRAINING, State.UNLOADED, State.FAILED)


class OnDemand:
    """Owned by the event loop, and by the manager, whose `models` it shares.

    `idle`: seconds after which an unused model is unloaded, 0 = never. `reconcile` takes a model's
    next actions, `unload` unloads a version and `hurry` loads one at once.
    """

    def __init__(
        self,
        models: Mapping[str, ManagedModel],
        router: Router[Servable],
        idle: float,
        reconcile: Callable[[str], object],
        unload: Callable[[ManagedModel, Record, str], object],
        hurry: Callable[[Record], object],
    ) -> None:
        self._models = models
        self._router = router
        self._idle = idle
        self._reconcile = reconcile
        self._unload = unload
        self._hurry = hurry
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # --- loading: see `gateway.lifecycle.demand.Loading`

    def want(self, model: str, version: str, *, urgent: bool = False) -> SluiceError | None:
        """Somebody asks for a model that is not loaded: loads it, unless that has just failed.
        `urgent`: another model waits, which may have a thread that loads."""
        managed = self._models.get(model)
        if managed is None or not managed.on_demand:
            return None
        failure = self._failure(managed, version)
        if failure is not None and failure.retry_after:
            return failure
        if urgent:
            managed.urgent = True  # also what is loaded instead, should this one fail
        if version not in managed.demanded:
            managed.demanded.add(version)
            self._reconcile(model)
        if urgent:
            for record in managed.needed(version).values():
                if record is not None and record.state in WORKING:
                    self._hurry(record)
        return None

    def outlook(self, model: str, version: str) -> SluiceError | bool:
        """True where asking again makes sense now, False while it is loading; the error where it
        could not be loaded."""
        route = self._router.table.get(model)
        managed = self._models.get(model)
        if route is None or managed is None or not route.on_demand:
            return True
        if version == DEFAULT:
            if route.targets:
                return True
        elif version in route.versions or version not in route.on_demand:
            return True
        # What nobody asks for any more had to make room: it has to be asked for again.
        return self._failure(managed, version) or version not in managed.demanded

    def give_up(self, model: ManagedModel) -> None:
        """What failed to load is tried again at the next request, not before."""
        route = self._router.table.get(model.name)
        if route is None:
            return
        for version in list(model.demanded):
            serves = bool(route.targets) if version == DEFAULT else version in route.versions
            if not serves and self._failure(model, version) is not None:
                model.demanded.discard(version)

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

    # --- unloading

    def holding(self, record: Record, size: int, asking: Record | None) -> Holding:
        """What may become of the memory of a version, seen from another that needs some."""
        if record.state in LEAVING:
            return Holding(record, size, Stay.LEAVING)
        model = self._models.get(record.model)
        if model is None or not model.on_demand:
            return Holding(record, size, Stay.LASTING)
        if (
            asking is not None
            and asking.model == record.model
            and DEFAULT in model.demanded
            and asking.version in model.needed(DEFAULT)
        ):
            # Neither does a new version replace one in use before it is ready, nor one of a split
            # another.
            return Holding(record, size, Stay.LASTING)
        if record.servable is not None and not record.servable.idle:
            return Holding(record, size, Stay.BUSY)
        group = model.group(record)
        loaded = [r for r in group if r.servable is not None]
        if not loaded or not all(r.servable.idle for r in loaded if r.servable is not None):
            return Holding(record, size, Stay.BUSY)
        last_used = max(r.last_used for r in loaded)
        missing = [r.place for r in group if r.servable is None]
        if not missing:
            return Holding(record, size, Stay.IDLE, last_used)
        if not all(missing):
            return Holding(record, size, Stay.BUSY)
        # The others of its split wait for memory themselves. Whoever has waited for longer may
        # have this one's, else two splits could wait for each other.
        first = asking is not None and 0 < asking.place < min(missing)
        return Holding(record, size, Stay.IDLE if first else Stay.BUSY, last_used, yields=True)

    def evict(self, record: Record) -> int:
        """Unloads a version that is idle, and what is of no use without it; how many."""
        model = self._models[record.model]
        group = [r for r in model.group(record) if r.state == State.READY]
        if not group:
            return 0  # it has gone with another one
        why = (
            f"not used since {local_time(max(r.last_used for r in group))}; loaded again on demand"
        )
        for each in group:
            model.used[each.version] = each.last_used
            model.forget(each.version)
            log.info("%s/%s is unloaded for now: %s", model.name, each.version, why)
            self._unload(model, each, why)
        model.demanded.update(model.asked)  # by hand: that goes on
        self._reconcile(model.name)
        return len(group)

    def watch_idle(self, held: Iterable[Record]) -> None:
        """Unloads those of `held` (looked at each time) that nobody uses for too long."""
        if self._idle and self._timer is None and not self._closed and any(True for _ in held):
            self._timer = asyncio.get_running_loop().call_later(
                self._idle / IDLE_LOOKS, self._look_for_idle, held
            )

    def _look_for_idle(self, held: Iterable[Record]) -> None:
        self._timer = None
        since = time.time() - self._idle
        for record in list(held):
            if record.state != State.READY:
                continue
            holding = self.holding(record, 0, None)
            if holding.stay is Stay.IDLE and holding.last_used <= since:
                self.evict(record)
        self.watch_idle(held)

    def close(self) -> None:
        """Looks for idle ones no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
