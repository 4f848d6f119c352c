"""Counts of latencies in HdrHistogram's buckets: 1 µs to one hour, three significant digits.

The buckets are those of HdrHistogram, so the counts can be written as one; they are filled, added
and read by numpy, thousands of values at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from loadtests.bench import hdr
from loadtests.bench.hdr import HIGHEST
from loadtests.bench.results import PERCENTILES, Interval, Latency

_HALF: Final = 10
"""A power of two in microseconds and above has 2**10 buckets."""
_MASK: Final = 2 ** (_HALF + 1) - 1

Ints = npt.NDArray[np.int64]


def bucket_of(values: Ints) -> Ints:
    """The buckets of whole microseconds; what is beyond either end counts as the end."""
    values = np.clip(values, 0, HIGHEST)
    bits = np.frexp((values | _MASK).astype(np.float64))[1].astype(np.int64)
    shift = bits - (_HALF + 1)
    found: Ints = (shift << _HALF) + (values >> shift)
    return found


def lowest_of(buckets: Ints) -> Ints:
    """The smallest microseconds that count in each bucket."""
    shift = np.maximum((buckets >> _HALF) - 1, 0)
    found: Ints = (buckets - (shift << _HALF)) << shift
    return found


def highest_of(buckets: Ints) -> Ints:
    """The largest microseconds that count in each bucket."""
    shift = np.maximum((buckets >> _HALF) - 1, 0)
    found: Ints = lowest_of(buckets) + (1 << shift) - 1
    return found


class Counts:
    """How many values fell into which bucket; only buckets that have any are held."""

    __slots__ = ("buckets", "counts", "total")

    def __init__(self) -> None:
        self.buckets: Ints = np.empty(0, np.int64)
        self.counts: Ints = np.empty(0, np.int64)
        self.total = 0
        """Sum of the values, in µs, as they were before they had a bucket."""

    @classmethod
    def of(cls, values: Ints) -> Self:
        """The counts of whole microseconds."""
        self = cls()
        self.buckets, self.counts = np.unique(bucket_of(values), return_counts=True)
        self.total = int(values.sum())
        return self

    @classmethod
    def merged(cls, parts: Iterable[Counts]) -> Self:
        """All counts together."""
        self = cls()
        listed = list(parts)
        if not listed:
            return self
        every = np.concatenate([each.buckets for each in listed])
        self.buckets, where = np.unique(every, return_inverse=True)
        weights = np.concatenate([each.counts for each in listed])
        self.counts = np.bincount(where, weights, minlength=len(self.buckets)).astype(np.int64)
        self.total = sum(each.total for each in listed)
        return self

    def __len__(self) -> int:
        """How many values."""
        return int(self.counts.sum())

    def percentile(self, percent: float) -> int | None:
        """µs that at least `percent` of the values do not exceed: the inverse of their
        distribution, at the upper end of its bucket. ``None`` where there is no value."""
        if not len(self.buckets):
            return None
        cumulated = np.cumsum(self.counts)
        at = np.searchsorted(cumulated, rank(percent, int(cumulated[-1])))
        return int(highest_of(self.buckets[at : at + 1])[0])

    def encoded(self) -> str:
        """As a compressed V2 HdrHistogram, base64; empty without the package."""
        lowest = lowest_of(self.buckets).tolist()
        return hdr.encode(zip(lowest, self.counts.tolist(), strict=True))

    def latency(self, p50: Interval | None = None, p99: Interval | None = None) -> Latency:
        """What a result says of them. Without a value, all figures are 0."""
        count = len(self)
        return Latency(
            count=count,
            mean_us=self.total / max(count, 1),
            percentiles_us={f"{each:g}": float(self.percentile(each) or 0) for each in PERCENTILES},
            histogram=self.encoded(),
            p50=p50,
            p99=p99,
        )


def rank(percent: float, count: int) -> int:
    """Which of `count` values in order, from 1, is the percentile."""
    # Less than the error of the product: 99.9 % of 1,000 are 999.
    return min(max(math.ceil(percent * count / 100 - 1e-9 * count), 1), max(count, 1))
