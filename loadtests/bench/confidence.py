"""How far the figures of a run can be trusted.

Requests that follow each other are not independent: one pause of the server is felt by hundreds of
them, and an interval made as if they were is far too narrow. So the run is cut into a few batches
that are long against such pauses, and whole batches are what varies: Student's t over means of
batches for a rate, and over the batches' percentiles, around that of the whole run, for a
percentile ("sectioning": S. Asmussen, P. W. Glynn, "Stochastic Simulation", 2007, III.5). Where
batches still resemble their neighbours, the interval is widened by their correlation. Logarithms
are taken of latencies, which vary by factors.

Near saturation no run of seconds is long enough: with 80 % of a single server's capacity, about 85
of 100 such intervals of p99 contain the true value after 10 s, 92 after 30 s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from loadtests.bench.histogram import Counts
from loadtests.bench.results import FEWEST_BEYOND, Interval

BATCHES: Final = 8
FEWEST: Final = 5
SHORTEST_S: Final = 0.25
"""Seconds of a batch, at least."""
MOST_ALIKE: Final = 0.8
"""Correlation of neighbouring batches that is taken into account, at most."""
Z: Final = 1.959964
"""95 % of a normal distribution are within so many standard deviations."""
T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t for 95 %, by degrees of freedom from 1."""


def grouped(count: int, most: int = BATCHES) -> list[slice]:
    """All of `count` ticks in order, in `most` batches or fewer that differ by a tick at most."""
    parts = min(count, most)
    edges = [part * count // parts for part in range(parts + 1)] if parts else []
    return [slice(first, last) for first, last in pairwise(edges)]


def mean_interval(values: Sequence[float], centre: float) -> Interval | None:
    """Of a mean, from those of batches in order, around `centre`, that of the whole; ``None`` below
    `FEWEST` batches."""
    if len(values) < FEWEST:
        return None
    half = _half(values, centre)
    return Interval(max(centre - half, 0.0), centre + half)


def percentile_interval(batches: Sequence[Counts], percent: float) -> Interval | None:
    """Of a percentile of all values, in µs, which it contains; ``None`` where batches, or values
    beyond the percentile, are too few to say."""
    filled = [each for each in batches if len(each)]
    values = sum(len(each) for each in filled)
    if len(filled) < FEWEST or values * min(percent, 100 - percent) / 100 < FEWEST_BEYOND:
        return None
    middle = Counts.merged(filled).percentile(percent) or 0
    logs = [math.log(max(each.percentile(percent) or 0, 1)) for each in filled]
    centre = math.log(max(middle, 1))
    half = _half(logs, centre)
    return Interval(
        min(math.exp(centre - half), float(middle)), max(math.exp(centre + half), float(middle))
    )


def _half(values: Sequence[float], centre: float) -> float:
    """Half of the interval around `centre`, from the values of batches in order."""
    count = len(values)
    array = np.asarray(values, np.float64)
    error = math.sqrt(float(((array - centre) ** 2).sum()) / (count - 1) / count)
    off = array - array.mean()
    squares = float((off**2).sum())
    like = float((off[1:] * off[:-1]).sum()) / squares if squares > 0 else 0.0
    like = min(max(like, 0.0), MOST_ALIKE)
    error *= math.sqrt((1 + like) / (1 - like))
    return T_975[min(count - 1, len(T_975)) - 1] * error


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % confidence of a share (E. B. Wilson, 1927), 0 to 1; all of it where nothing is known."""
    if not total:
        return 0.0, 1.0
    share, square = hits / total, Z * Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    half /= 1 + square / total
    # At both ends the bound is the share itself, but for rounding.
    low = 0.0 if not hits else max(middle - half, 0.0)
    return low, 1.0 if hits == total else min(middle + half, 1.0)
