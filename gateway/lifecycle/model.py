"""One model in the lifecycle: what is wanted of it and what there is."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.lifecycle.policy import Versions, is_current, with_stand_in
from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredModel
from gateway.registries.traffic import Traffic
from gateway.servable import Servable


class ManagedModel:
    """Owned by the manager."""

    __slots__ = ("acting", "aspired", "lost", "records")

    def __init__(self, aspired: AspiredModel) -> None:
        self.aspired = aspired
        self.records: list[Record] = []
        self.acting: str | None = None
        """The version that was last the stable one, or acted for it."""
        self.lost: Mapping[str, float] = {}
        """Versions of the split that cannot answer, as last told to the log."""

    @property
    def name(self) -> str:
        return self.aspired.name

    @property
    def traffic(self) -> Traffic:
        return self.aspired.traffic

    @property
    def desired(self) -> Versions:
        """What should be loaded now."""
        return with_stand_in(self.aspired.versions, self.aspired.stand_ins, self.records)

    @property
    def settled(self) -> bool:
        """Whether every version that should be loaded is ready or failed."""
        done = {r.version for r in self.records if r.state in (State.READY, State.FAILED)}
        return done.issuperset(self.desired)

    @property
    def ready(self) -> bool:
        return any(record.state == State.READY for record in self.records)

    def current(self) -> dict[str, Record]:
        """Version → its newest record that is not on its way out."""
        return {r.version: r for r in self.records if r.state != State.DRAINING}

    def servables(self) -> dict[str, Servable]:
        """Version → what answers for it: of two loads of one version, the one wanted now."""
        desired = self.desired
        ready = [r for r in self.records if r.state == State.READY]
        ready.sort(key=lambda record: is_current(record, desired))
        return {r.version: r.servable for r in ready if r.servable is not None}
