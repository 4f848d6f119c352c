"""How far the figures of a run can be trusted.

Requests that follow each other are not independent: one pause of the server is felt by hundreds of
them, and an interval made as if they were is far too narrow. So the run is cut into some twenty
batches that are long against such pauses ("10 to 30 are enough": B. Schmeiser, "Batch size effects
in the analysis of simulation output", Operations Research 30, 1982), and whole batches are what is
varied: by Student's t for a rate, by a bootstrap over batches for a percentile (H. Künsch, "The
jackknife and the bootstrap for general stationary observations", Annals of Statistics 17, 1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from loadtests.bench.histogram import Counts, highest_of
from loadtests.bench.results import Interval

BATCHES: Final = 20
FEWEST: Final = 10
SHORTEST_S: Final = 0.25
"""Seconds of a batch, at least."""
BEYOND: Final = 10
"""Values beyond a percentile, at least, for an interval of it."""
DRAWS: Final = 1000
T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t for 95 %, by degrees of freedom from 1."""


def grouped(count: int, most: int = BATCHES) -> list[slice]:
    """`count` ticks in order, in at most `most` batches of equally many; the last may lack some."""
    size = -(-count // most) if count else 1
    return [slice(at, at + size) for at in range(0, count, size) if at + size <= count]


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Of the mean of batches; ``None`` below `FEWEST` of them."""
    count = len(values)
    if count < FEWEST:
        return None
    array = np.asarray(values, np.float64)
    mean, error = float(array.mean()), float(array.std(ddof=1)) / count**0.5
    t = T_975[min(count - 1, len(T_975)) - 1]
    return Interval(max(mean - t * error, 0.0), mean + t * error)


def percentile_interval(
    batches: Sequence[Counts], percent: float, seed: int = 1
) -> Interval | None:
    """Of a percentile of all values, in µs; ``None`` where batches, or values beyond the
    percentile, are too few to say."""
    filled = [each for each in batches if len(each)]
    values = sum(len(each) for each in filled)
    if len(filled) < FEWEST or values * min(percent, 100 - percent) / 100 < BEYOND:
        return None
    whole = Counts.merged(filled)
    table = np.zeros((len(filled), len(whole.buckets)), np.float64)
    for row, each in enumerate(filled):
        table[row, np.searchsorted(whole.buckets, each.buckets)] = each.counts
    cumulated = np.cumsum(table, axis=1)
    random = np.random.default_rng(seed)
    count = len(filled)
    found = []
    for times in random.multinomial(count, np.full(count, 1 / count), DRAWS):
        drawn = times @ cumulated
        wanted = max(int(percent * drawn[-1] / 100 + 0.5), 1)
        found.append(int(np.searchsorted(drawn, wanted)))
    low, high = np.quantile(found, (0.025, 0.975), method="nearest").astype(np.int64)
    ends = highest_of(whole.buckets[[low, high]])
    return Interval(float(ends[0]), float(ends[1]))
