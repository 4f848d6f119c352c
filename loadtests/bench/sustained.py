"""Whether a server keeps up with a load for good, or only has not yet fallen far behind.

A load slightly above what a server gets through does not break a run of a few seconds: a backlog
grows, and latencies with it, but they may still be within an objective when the run is over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from loadtests.bench.results import Point, Tick

ANSWERED: Final = 0.97
"""Share of what was due that must have been answered by the end."""
GROWTH: Final = 1.5
"""A backlog grows where the latency of the last quarter is so many times that of the first, and"""
SLOPE: Final = 0.01
"""has grown by this share of the time between them: chance does not do both."""


def backlog(point: Point) -> str:
    """Why the load of an open loop cannot be sustained, in words; empty: it can, as far as the run
    shows. A closed loop waits for its answers: there is no backlog."""
    if not point.load.open or not point.sent:
        return ""
    ticks = [tick for tick in point.ticks if tick.at_s >= 0 and tick.sent]
    quarter = max(len(ticks) // 4, 1)
    first, last = _median_us(ticks[:quarter]), _median_us(ticks[-quarter:])
    # As many as are usually under way are no backlog (Little's law), nor is what chance does to
    # so many arrivals.
    under_way = point.load.rate * (first or 0.0) / 1e6
    answered = point.rate * point.seconds + point.failed
    if answered < ANSWERED * point.sent - under_way - math.sqrt(point.sent):
        return (
            f"{max(answered, 0) / point.sent:.1%} of what was due was answered in time: the server "
            "falls behind"
        )
    if first is None or last is None or len(ticks) < 4:
        return ""
    grown = (last - first) / 1e6
    if last > GROWTH * first and grown > SLOPE * 0.75 * point.seconds:
        return (
            f"latencies grew from {first / 1e3:.3g} to {last / 1e3:.3g} ms in the run (medians of "
            "its first and last quarter): the server falls behind"
        )
    return ""


def _median_us(ticks: Sequence[Tick]) -> float | None:
    found = [tick.p50_us for tick in ticks if tick.p50_us is not None]
    return float(np.median(found)) if found else None
