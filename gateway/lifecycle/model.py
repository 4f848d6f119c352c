"""One model in the lifecycle: what is wanted of it and what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gateway.lifecycle.logs import LoadLogs
from gateway.lifecycle.policy import WORKING, Versions, is_current, with_stand_in
from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredModel
from gateway.registries.traffic import Traffic
from gateway.servable import Servable

DEFAULT: Final = ""
"""Stands for whatever answers those who name no version."""
LOADED_OR_LOADING: Final = (*WORKING, State.READY)


class ManagedModel:
    """Owned by the manager."""

    __slots__ = (
        "acting", "asked", "aspired", "demanded", "logs", "lost", "records", "refused", "urgent",
        "used",
    )  # fmt: skip

    def __init__(self, aspired: AspiredModel) -> None:
        self.aspired = aspired
        self.records: list[Record] = []
        self.acting: str | None = None
        """The version that was last the stable one, or acted for it."""
        self.lost: Mapping[str, float] = {}
        """Versions of the split that cannot answer, as last told to the log."""
        self.refused: Mapping[str, str] = {}
        """Version → why it gets nothing of the split although it is ready."""
        self.demanded: set[str] = set()
        """Versions (and `DEFAULT`) that somebody asked for, of a model loaded on demand."""
        self.used: dict[str, float] = {}
        """Version → when it was last used (Unix seconds), of those that were unloaded since."""
        self.urgent = False
        """Whether another model waits for what is being loaded."""
        self.asked: dict[str, list[asyncio.Future[str]]] = {}
        """Version → who wants to know what comes of its load: see `Manager.load_now`."""
        self.logs = LoadLogs()

    @property
    def name(self) -> str:
        return self.aspired.name

    @property
    def traffic(self) -> Traffic:
        return self.aspired.traffic

    @property
    def on_demand(self) -> bool:
        return self.aspired.settings.on_demand

    @property
    def desired(self) -> Versions:
        """What should be loaded now."""
        aspired = self.aspired
        versions = aspired.versions
        if aspired.settings.on_demand:
            wanted = self.demanded - {DEFAULT}
            if DEFAULT in self.demanded:
                wanted |= self.default_versions()
            versions = {v: each for v, each in versions.items() if v in wanted}
            if DEFAULT not in self.demanded:
                return versions
        return with_stand_in(versions, aspired.stand_ins, self.records)

    def default_versions(self) -> set[str]:
        """The versions that those who name none need: of the split, else the newest."""
        versions, traffic = self.aspired.versions, self.traffic
        named = {version for version, weight in traffic.weights.items() if weight}
        stable = traffic.stable_version()
        if stable is not None:
            named.add(stable)
        named &= versions.keys()
        if not named and versions:
            named.add(list(versions)[-1])
        return named

    @property
    def active(self) -> Sequence[Record]:
        """What the policy looks at: all but the failed loads that nobody asks for any more."""
        if not self.on_demand:
            return self.records
        desired = self.desired
        return [r for r in self.records if r.state != State.FAILED or r.version in desired]

    @property
    def settled(self) -> bool:
        """Whether every version that should be loaded is ready or failed."""
        done = {r.version for r in self.records if r.state in (State.READY, State.FAILED)}
        return done.issuperset(self.desired)

    @property
    def ready(self) -> bool:
        return any(record.state == State.READY for record in self.records)

    @property
    def available(self) -> bool:
        """Whether requests are answered: by what is loaded, or will be when one comes."""
        return self.ready or (self.on_demand and bool(self.aspired.versions) and not self.failed())

    def failed(self) -> bool:
        """Whether the versions that those who name none need have all failed."""
        current = self.current()
        needed = self.default_versions()
        return bool(needed) and all(
            v in current and current[v].state == State.FAILED for v in needed
        )

    def current(self) -> dict[str, Record]:
        """Version → its newest record that is not on its way out."""
        return {r.version: r for r in self.records if r.state != State.DRAINING}

    def servables(self) -> dict[str, Servable]:
        """Version → what answers for it: of two loads of one version, the one wanted now."""
        desired = self.desired
        ready = [r for r in self.records if r.state == State.READY]
        ready.sort(key=lambda record: is_current(record, desired))
        return {r.version: r.servable for r in ready if r.servable is not None}

    # --- loads that were asked for

    def ask(self, versions: Iterable[str]) -> dict[str, asyncio.Future[str]]:
        """Version → what will have come of its load; see `tell`."""
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[str]] = {v: loop.create_future() for v in versions}
        for version, future in futures.items():
            self.asked.setdefault(version, []).append(future)
        return futures

    def tell(self) -> None:
        """Tells who asked what has come of it: nothing (it is ready), or why it is not."""
        desired = self.desired
        for version in list(self.asked):
            outcome = self._outcome(version, desired)
            if outcome is not None:
                self.give(version, outcome)

    def give(self, version: str, outcome: str) -> None:
        for future in self.asked.pop(version):
            if not future.done():  # nobody waits any more
                future.set_result(outcome)

    def _outcome(self, version: str, desired: Versions) -> str | None:
        found = [r for r in self.records if r.version == version and is_current(r, desired)]
        if any(record.state == State.READY for record in found):
            return ""
        for record in found:
            # One that may be tried now will be: that is what was asked for.
            if record.state == State.FAILED and record.retry_at:
                return record.cause
        return None if version in desired else self.aspired.error or "it is not wanted any more"

    # --- on demand

    def needed(self, version: str) -> dict[str, Record | None]:
        """The versions that a request for `version` (or `DEFAULT`) needs now, with their
        records; stand-ins are among them once they are wanted."""
        current = self.current()
        if version != DEFAULT:
            return {version: current.get(version)}
        names = set(self.default_versions())
        if DEFAULT in self.demanded:
            names |= self.desired.keys() & self.aspired.stand_ins.keys()
        return {name: current.get(name) for name in names}

    def group(self, record: Record) -> list[Record]:
        """The records that are used and unloaded together with this one: those of the split, so
        that none of it is missing while others of it serve."""
        if DEFAULT not in self.demanded:
            return [record]
        names = self.needed(DEFAULT).keys()
        if record.version not in names:
            return [record]
        return [r for r in self.records if r.version in names and r.state in LOADED_OR_LOADING]

    def forget(self, version: str) -> None:
        """Nobody asks for this version any more."""
        if version in self.needed(DEFAULT):
            self.demanded.discard(DEFAULT)
        self.demanded.discard(version)
