"""Percentile curves from HdrHistograms."""

from __future__ import annotations

import math

from loadtests.bench import hdr
from loadtests.bench.results import FEWEST_BEYOND

PER_NINE = 24
"""Points of a curve between 90 % and 99 %, between 99 % and 99.9 %, ..."""


def curve(histogram: str) -> list[tuple[float, float, bool]]:
    """(nines, µs, whether many requests lie beyond it), from the smallest up to the largest.

    ``nines`` is -log10(1 - share): 1 is 90 %, 2 is 99 %, 3 is 99.9 %. Empty where nothing was
    counted.
    """
    if not histogram:
        return []
    found = hdr.decode(histogram)
    total = found.get_total_count()
    if total <= 0:
        return []
    last = math.log10(total)
    steps = math.ceil(last * PER_NINE)
    nines = [step / PER_NINE for step in range(steps) if step / PER_NINE < last] + [last]
    shares = [100.0 * (1.0 - 10.0**-nine) for nine in nines]
    values = found.get_percentile_to_value_dict(shares)
    points = [
        (round(nine, 4), float(values[share]), 10.0**-nine * total >= FEWEST_BEYOND)
        for nine, share in zip(nines, shares, strict=True)
    ]
    largest = float(found.get_max_value())
    points[-1] = (points[-1][0], largest, points[-1][2])
    return points
