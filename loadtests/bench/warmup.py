"""When a server has warmed up: caches filled, batches grown, models compiled.

The rule is MSER-5 (K. P. White Jr., M. J. Cobb, S. C. Spratt: "A comparison of five steady-state
truncation heuristics for simulation", Winter Simulation Conference 2000): of all the beginnings
that could be left out, that one is, without which the standard error of the mean of the rest is
smallest. If that is more than half of what there is, the mean has not settled yet, and more is
needed. MSER-5 looks at means of five observations; here an observation is the mean latency of the
requests due in one tenth of a second (half a second counts as much in a silent time as in a busy
one), up to the oldest request that has no answer yet. An overload, whose latencies grow and grow,
never settles: there is a longest time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

SLOT: Final = 100_000_000
"""ns of an observation."""
GROUP: Final = 5
"""Observations in a mean."""
SHORTEST_S: Final = 3.0
LONGEST_S: Final = 30.0
"""Seconds after which the measurement begins, settled or not."""
SLACK: Final = 0.1
"""Where the halves of the time differ by less than this share, a beginning that MSER would leave
out by chance (it finds one in noise, too) is not waited for."""

Floats = npt.NDArray[np.float64]


def truncation(values: Floats) -> int | None:
    """How many of the first `values` MSER leaves out; ``None`` where that is more than half of
    them: they have not settled, or are too few (below 6)."""
    count = len(values)
    if count < 6:
        return None
    # Sums over what is left, for every number left out.
    rest = np.arange(count, 0, -1)
    total = np.cumsum(values[::-1])[::-1]
    squares = np.cumsum(values[::-1] ** 2)[::-1]
    error = (squares - total**2 / rest) / rest**2
    # With fewer than three left their error is small by chance.
    last = count - 3
    found = int(np.argmin(error[: last + 1]))
    return found if found <= count // 2 else None


def group_means(due: npt.NDArray[Any], latency: npt.NDArray[Any], until: int) -> Floats:
    """Means of `GROUP` slots, in order, for requests `due` (ns from the start) before `until`.
    A slot without requests has the value of the one before it."""
    slots = until // SLOT // GROUP * GROUP
    if slots <= 0:
        return np.empty(0)
    inside = due < slots * SLOT
    where = due[inside] // SLOT
    counts = np.bincount(where, minlength=slots)
    sums = np.bincount(where, latency[inside].astype(np.float64), minlength=slots)
    filled = np.flatnonzero(counts)
    if not len(filled):
        return np.empty(0)
    means = sums[filled] / counts[filled]
    held = means[np.maximum(np.searchsorted(filled, np.arange(slots), side="right") - 1, 0)]
    grouped: Floats = held.reshape(-1, GROUP).mean(axis=1)
    return grouped


def settled(due: npt.NDArray[Any], latency: npt.NDArray[Any], until: int) -> bool:
    """Whether the latencies (µs) of the requests due before `until` (ns) have settled: by MSER-5,
    or because the second quarter and the second half have the same mean (see `SLACK`)."""
    means = group_means(due, latency, until)
    if len(means) * GROUP * SLOT < SHORTEST_S * 1e9:
        return False
    if truncation(means) is not None:
        return True
    half = len(means) // 2
    before, after = means[half // 2 : half].mean(), means[half:].mean()
    steady: bool = abs(after - before) <= SLACK * after
    return steady
