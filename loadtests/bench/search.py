"""The highest load that meets an objective: bracket, bisect, confirm.

Loads are compared on a geometric scale: between 100/s and 110/s lies as much as between 1,000/s
and 1,100/s. It is assumed that whatever meets the objective does so at lower loads too. Noise
breaks that near the boundary, which is why a load is claimed only after a longer run of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

MAX_STEPS: Final = 40


@dataclass(frozen=True)
class Bounds:
    """Where to search: loads from ``low`` to ``high``, first ``start``."""

    low: float
    high: float
    start: float
    precision: float = 0.05
    """The answer is at most this share below the boundary."""
    whole: bool = False
    """Whole numbers only: concurrency."""


@dataclass
class Found:
    """``best`` has met the objective in a run of full length; ``None``: no load did."""

    best: float | None = None
    tried: list[tuple[float, bool]] = field(default_factory=list)
    """In order, confirmations too."""
    at_limit: bool = False
    """The highest load of all met it: the boundary lies above."""


Meets = Callable[[float, bool], bool]
"""(load, whether to confirm) → whether the load meets the objective."""


def find(meets: Meets, bounds: Bounds) -> Found:
    """Searches. ``meets`` measures, and may be asked about a load twice: second to confirm it."""
    found = Found()

    def ask(load: float, confirm: bool = False) -> bool:
        answer = meets(load, confirm)
        found.tried.append((load, answer))
        return answer

    good, bad = _bracket(ask, bounds)
    good, bad = _bisect(ask, bounds, good, bad)
    _confirm(ask, bounds, found, good, bad)
    return found


def _bracket(ask: Callable[[float], bool], bounds: Bounds) -> tuple[float | None, float | None]:
    """Doubles or halves from the start: a load that is met and one that is not, where there are
    both within the bounds."""
    load = _rounded(min(max(bounds.start, bounds.low), bounds.high), bounds)
    if ask(load):
        good = load
        while good < bounds.high:
            load = _rounded(min(good * 2, bounds.high), bounds)
            if not ask(load):
                return good, load
            good = load
        return good, None
    bad = load
    while bad > bounds.low:
        load = _rounded(max(bad / 2, bounds.low), bounds)
        if ask(load):
            return load, bad
        bad = load
    return None, bad


def _bisect(
    ask: Callable[[float], bool], bounds: Bounds, good: float | None, bad: float | None
) -> tuple[float | None, float | None]:
    for _ in range(MAX_STEPS):
        if good is None or bad is None or not _apart(good, bad, bounds):
            break
        middle = _rounded(math.sqrt(good * bad), bounds)
        if bounds.whole:
            middle = min(max(middle, good + 1), bad - 1)
        if ask(middle):
            good = middle
        else:
            bad = middle
    return good, bad


def _confirm(
    ask: Callable[[float, bool], bool],
    bounds: Bounds,
    found: Found,
    good: float | None,
    bad: float | None,
) -> None:
    """Longer runs, each a step lower than the one before, until one meets the objective."""
    load = good
    while load is not None:
        if ask(load, True):
            found.best = load
            found.at_limit = bad is None and load == good
            return
        if load <= bounds.low:
            return
        lower = _rounded(max(load / (1 + bounds.precision), bounds.low), bounds)
        if bounds.whole:
            lower = min(lower, load - 1)
        # Steps grow: what fails by far shall not cost a hundred runs.
        bounds = _wider(bounds)
        load = lower


def _wider(bounds: Bounds) -> Bounds:
    return replace(bounds, precision=min(bounds.precision * 1.5, 1.0))


def _apart(good: float, bad: float, bounds: Bounds) -> bool:
    if bounds.whole:
        return bad - good > max(1.0, good * bounds.precision)
    return bad > good * (1 + bounds.precision)


def _rounded(load: float, bounds: Bounds) -> float:
    """Four digits are enough for a rate, and read better."""
    if bounds.whole:
        return float(min(max(round(load), math.ceil(bounds.low)), math.floor(bounds.high)))
    if load in (bounds.low, bounds.high):
        return load
    return min(max(float(f"{load:.4g}"), bounds.low), bounds.high)
