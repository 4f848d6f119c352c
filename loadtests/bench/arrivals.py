"""When requests are due: chosen before the first one leaves, whatever the answers do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from loadtests.errors import BenchError

KINDS: Final = ("poisson", "constant")
BLOCK: Final = 4096
"""Distances drawn at a time."""


def due_times(
    rate: float, kind: str = "poisson", *, seed: int = 1, part: int = 0, parts: int = 1
) -> Iterator[tuple[int, int]]:
    """Endless (number, ns from the start) of the requests that process `part` of `parts` sends.

    The requests of all processes together are the same ones at the same times however many
    processes there are: each draws them all and takes every `parts`-th. ``constant``: equal
    distances of 1/`rate` seconds, ``poisson``: exponentially distributed ones. Raises `BenchError`
    for another `kind`, or a rate that is not a positive number.
    """
    if kind not in KINDS:
        raise BenchError(f"arrivals {kind!r} are not known; choose poisson or constant")
    if not (0 < rate < float("inf")):
        raise BenchError(f"rate {rate!r} is not a positive number of requests a second")
    return _constant(rate, part, parts) if kind == "constant" else _poisson(rate, seed, part, parts)


def _constant(rate: float, part: int, parts: int) -> Iterator[tuple[int, int]]:
    number = part
    while True:
        # Not a sum of distances: nothing adds up to a drift.
        yield number, int(number / rate * 1e9)
        number += parts


def _poisson(rate: float, seed: int, part: int, parts: int) -> Iterator[tuple[int, int]]:
    random = np.random.default_rng(seed)
    first, start = 0, 0.0
    while True:
        times = start + np.cumsum(random.exponential(1 / rate, BLOCK))
        skip = (part - first) % parts
        mine = (times[skip::parts] * 1e9).astype(np.int64).tolist()
        yield from zip(range(first + skip, first + BLOCK, parts), mine, strict=True)
        first, start = first + BLOCK, float(times[-1])
