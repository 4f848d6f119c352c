"""The counts of every version, also of those that are unloaded: counters never go back.

A version's numbers are those of all its loads together. They stay for as long as the model is
known; of the versions that are gone, those of the last few.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.servable import Servable
from gateway.telemetry.stats import ServableStats

MOST_RETIRED: Final = 32
"""Versions of a model that are not loaded any more and still have numbers."""
MOST_LOADS: Final = 4
"""Loads of a version that may still count: an old one ends its last requests."""


@dataclass(frozen=True)
class Counted:
    """One version's numbers; `servable` is what answers now, `None` for an unloaded one."""

    name: str
    version: str
    stats: ServableStats
    decoupled: bool
    servable: Servable | None


class CountedVersion:
    """The numbers of one version, of all its loads."""

    def __init__(self) -> None:
        self.servable: Servable | None = None
        self.decoupled = False
        self._ended: ServableStats | None = None
        self._parts: list[ServableStats] = []

    def take(self, servable: Servable | None) -> None:
        """Hears what answers now."""
        self.servable = servable
        if servable is None or any(part is servable.stats for part in self._parts):
            return
        self.decoupled = servable.decoupled
        self._parts.append(servable.stats)
        if len(self._parts) > MOST_LOADS:
            self._ended = self._ended or ServableStats()
            self._ended.take(self._parts.pop(0))

    def stats(self) -> ServableStats:
        if self._ended is None and len(self._parts) == 1:
            return self._parts[0]
        total = ServableStats()
        for part in (*([self._ended] if self._ended is not None else []), *self._parts):
            total.take(part)
        return total


class Counts:
    """The numbers of all models. `answering` gives what answers of a model now."""

    def __init__(
        self, answering: Callable[[str], Iterable[Servable]], known: Container[str]
    ) -> None:
        self._answering = answering
        self._known = known
        self._models: dict[str, dict[str, CountedVersion]] = {}

    def changed(self, model: str) -> None:
        """Hears that other versions of a model may answer now."""
        answering = {servable.version: servable for servable in self._answering(model)}
        versions = self._models.setdefault(model, {})
        for version, servable in answering.items():
            # Behind the others: the last to go is the last to be forgotten.
            versions[version] = versions.pop(version) if version in versions else CountedVersion()
            versions[version].take(servable)
        retired = [version for version in versions if version not in answering]
        for version in retired[: max(0, len(retired) - MOST_RETIRED)]:
            del versions[version]
        for version in retired[-MOST_RETIRED:]:
            versions[version].take(None)

    def all(self) -> Iterator[Counted]:
        """Every version of every model that is still known."""
        for name in [name for name in self._models if name not in self._known]:
            del self._models[name]
        for name, versions in list(self._models.items()):
            for version, each in list(versions.items()):
                yield Counted(name, version, each.stats(), each.decoupled, each.servable)
