"""Does a model fit into the memory budget, and if not, what has to go? Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

MIB = 2**20


class Stay(Enum):
    """What may become of the memory that something holds."""

    IDLE = "on demand, and nobody uses it: it can be unloaded"
    BUSY = "on demand and in use, or about to be: it may become idle"
    LEAVING = "being unloaded"
    LASTING = "loaded for good"


@dataclass(frozen=True)
class Holding:
    """Memory that one version has, or that is set aside for it."""

    key: Hashable
    size: int
    """In bytes."""
    stay: Stay
    last_used: float = 0.0
    """When it was last used, by any clock that all of them share."""
    yields: bool = False
    """Whether it is idle to those who wait for memory longer than what it waits for itself."""


class Sums:
    """What is held, added up: a verdict costs what has to go, not all that is there."""

    def __init__(self, holdings: Iterable[Holding] = ()) -> None:
        self.total = 0
        """Bytes of all, as `leaving`, `lasting` and `spare` (the idle) are of some."""
        self.leaving = 0
        self.lasting = 0
        self.spare = 0
        self.idle: dict[Hashable, Holding] = {}
        for holding in holdings:
            self.add(holding)

    def add(self, holding: Holding) -> None:
        self._count(holding, holding.size)
        if holding.stay is Stay.IDLE and holding.size:
            self.idle[holding.key] = holding

    def remove(self, holding: Holding) -> None:
        self._count(holding, -holding.size)
        self.idle.pop(holding.key, None)

    def _count(self, holding: Holding, size: int) -> None:
        self.total += size
        match holding.stay:
            case Stay.LEAVING:
                self.leaving += size
            case Stay.LASTING:
                self.lasting += size
            case Stay.IDLE:
                self.spare += size


@dataclass(frozen=True)
class Fits:
    """There is room."""


@dataclass(frozen=True)
class Evict:
    """There is room once these are unloaded: the least recently used ones, no more than needed."""

    keys: tuple[Hashable, ...]


@dataclass(frozen=True)
class Wait:
    """There will be room. `sure`: once all that is leaving is gone; else when something that is
    in use becomes idle, which may take any time."""

    sure: bool


@dataclass(frozen=True)
class Never:
    """There is no room beside what stays."""

    lasting: int
    """Bytes of what stays."""


def decide(need: int, budget: int, held: Sums) -> Fits | Evict | Wait | Never:
    """What has to happen before `need` more bytes may be taken, all of them in one budget."""
    if need + held.total <= budget:
        return Fits()
    if need + held.lasting > budget:
        return Never(held.lasting)
    over = need + held.total - budget - held.leaving
    if over <= 0:
        return Wait(sure=True)
    chosen = least_recent(list(held.idle.values()), over) if over <= held.spare else None
    if chosen is None:
        return Wait(sure=False)
    return Evict(tuple(holding.key for holding in chosen))


def least_recent(idle: Sequence[Holding], over: int) -> list[Holding] | None:
    """The least recently used ones that together hold `over` bytes; `None` if all do not."""
    chosen: list[Holding] = []
    for holding in sorted(idle, key=lambda each: each.last_used):
        chosen.append(holding)
        over -= holding.size
        if over <= 0:
            break
    if over > 0:
        return None
    # One that came late may be large enough to spare an early one. `over` is minus the excess.
    for holding in list(chosen):
        if holding.size <= -over:
            chosen.remove(holding)
            over += holding.size
    return chosen


def mib(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / MIB:.0f} MiB" if size >= 10 * MIB else f"{size / MIB:.1f} MiB"
