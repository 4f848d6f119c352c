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


def decide(need: int, budget: int, held: Iterable[Holding]) -> Fits | Evict | Wait | Never:
    """What has to happen before `need` more bytes may be taken, all of them in one budget."""
    holdings = list(held)
    total = sum(holding.size for holding in holdings)
    if need + total <= budget:
        return Fits()
    lasting = sum(h.size for h in holdings if h.stay is Stay.LASTING)
    if need + lasting > budget:
        return Never(lasting)
    over = need + total - budget - sum(h.size for h in holdings if h.stay is Stay.LEAVING)
    if over <= 0:
        return Wait(sure=True)
    idle = [h for h in holdings if h.stay is Stay.IDLE and h.size]
    chosen = least_recent(idle, over)
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
