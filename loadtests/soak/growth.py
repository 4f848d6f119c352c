"""How fast something grows: a slope that no single peak can bend, with its confidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from loadtests.soak.results import Sample

EARLY: Final = 0.25
"""The part of a soak that is not judged: caches fill."""
GROUPS: Final = 20
"""Neighbouring samples depend on each other, medians of so many groups hardly do."""
Z95: Final = 1.96


@dataclass(frozen=True)
class Slope:
    """Growth an hour, between ``low`` and ``high`` with 95 % confidence."""

    an_hour: float
    low: float
    high: float
    hours: float
    """How long it was looked at."""

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def words(self) -> str:
        """``+1.2 MiB an hour (-0.3 to +2.5)``."""
        return f"{self.an_hour:+.1f} MiB an hour ({self.low:+.1f} to {self.high:+.1f})"


def slope(samples: Sequence[Sample], read: Callable[[Sample], float | None]) -> Slope | None:
    """Theil and Sen's, over the medians of groups; ``None`` for fewer than `GROUPS` samples."""
    if not samples:
        return None
    start = samples[0].at_s + EARLY * (samples[-1].at_s - samples[0].at_s)
    points = [
        (each.at_s / 3600, value)
        for each in samples
        if each.at_s >= start and (value := read(each)) is not None
    ]
    if len(points) < GROUPS:
        return None
    cuts = [round(i * len(points) / GROUPS) for i in range(GROUPS + 1)]
    groups = [points[cuts[i] : cuts[i + 1]] for i in range(GROUPS)]
    middles = [(median(at for at, _ in group), median(y for _, y in group)) for group in groups]
    slopes = sorted(
        (y - other_y) / (x - other_x)
        for i, (x, y) in enumerate(middles)
        for other_x, other_y in middles[:i]
    )
    # Which of the slopes bound the true one: the variance of Kendall's S.
    spread = Z95 * math.sqrt(GROUPS * (GROUPS - 1) * (2 * GROUPS + 5) / 18)
    low = math.floor((len(slopes) - spread) / 2)
    high = math.ceil((len(slopes) + spread) / 2)
    return Slope(median(slopes), slopes[low], slopes[high], points[-1][0] - points[0][0])
