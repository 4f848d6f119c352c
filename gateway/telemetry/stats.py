"""Counts of one servable, as plain numbers that the hot path adds to and a scrape reads."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from functools import cache
from typing import Final

from gateway.errors import Cancelled, InferenceFailed, SluiceError, Unavailable

SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
MAX_ANSWERS: Final = 256
"""Places in a stream of answers that are counted apart."""
DURATIONS: Final = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def error_name(error: SluiceError) -> str:
    """The value of the label `code` for an error: its class in snake case."""
    return _snake_case(type(error).__name__)


@cache
def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def failure_reason(error: SluiceError) -> str:
    """Triton's word for why a request failed: REJECTED, CANCELED, BACKEND or OTHER."""
    if isinstance(error, Cancelled):
        return "CANCELED"
    if isinstance(error, Unavailable):
        return "REJECTED"
    return "BACKEND" if isinstance(error, InferenceFailed) else "OTHER"


class Histogram:
    """Counts per bucket (upper bounds inclusive, the last one open) and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def take(self, other: Histogram) -> None:
        """Adds another one's observations."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The value below which `share` of the observations lie, interpolated; `None` if none."""
        target = self.count * share
        if not target:
            return None
        seen = 0.0
        lower = 0.0
        for bound, count in zip((*self.bounds, self.bounds[-1]), self.counts, strict=True):
            if count and seen + count >= target:
                return lower + (bound - lower) * (target - seen) / count
            seen += count
            lower = bound
        return self.bounds[-1]


class Duration:
    """How often something happened and how many nanoseconds it took in all."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, count: int, seconds: float) -> None:
        self.count += count
        self.ns += int(seconds * 1e9)

    def take(self, other: Duration) -> None:
        """Adds another one's counts."""
        self.count += other.count
        self.ns += other.ns


class BatchSizeStats:
    """What the batches of one size took."""

    __slots__ = ("compute_infer", "compute_input", "compute_output")

    def __init__(self) -> None:
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()


class ServableStats:
    """All counts of one version. Durations are summed over requests, as Triton does it."""

    __slots__ = (
        "answers", "batch_rows", "batch_sizes", "closed", "compute_infer", "compute_input",
        "compute_output", "execute_seconds", "execution_count", "fail", "failures",
        "first_answer_seconds", "inference_count", "last_inference", "queue", "queue_seconds",
        "request_seconds", "requests", "streamed", "success",
    )  # fmt: skip

    def __init__(self) -> None:
        self.success = Duration()
        self.fail = Duration()
        self.queue = Duration()
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()
        self.inference_count = 0
        self.execution_count = 0
        self.last_inference = 0
        """Milliseconds since the epoch."""
        self.batch_sizes: defaultdict[int, BatchSizeStats] = defaultdict(BatchSizeStats)
        self.closed: Counter[str] = Counter()
        """Why batches were closed → how many."""
        self.failures: Counter[str] = Counter()
        """Triton's reason → failed requests."""
        self.requests: Counter[tuple[str, str]] = Counter()
        """(protocol, code) → requests that ended."""
        self.request_seconds: defaultdict[str, Histogram] = defaultdict(Histogram)
        """Protocol → from decoded to answered."""
        self.queue_seconds = Histogram()
        self.execute_seconds = Histogram()
        self.batch_rows = Histogram(ROWS)
        self.streamed = 0
        """Answers of a decoupled model."""
        self.answers: list[Duration] = []
        """Those at each place in their stream, and how long after the one before them they came;
        of the first places alone."""
        self.first_answer_seconds = Histogram()
        """From the arrival of a decoupled model's request."""

    def executed(
        self,
        requests: int,
        rows: int,
        reason: str,
        waited: float,
        assemble: float,
        infer: float,
    ) -> None:
        """One batch ran; `waited` is the sum over its requests, the rest is the batch's own."""
        self.inference_count += rows
        self.execution_count += 1
        self.closed[reason] += 1
        self.batch_rows.observe(rows)
        self.execute_seconds.observe(infer)
        self.queue.add(requests, waited)
        self.queue_seconds.observe(waited / requests, requests)
        self.compute_input.add(requests, assemble * requests)
        self.compute_infer.add(requests, infer * requests)
        size = self.batch_sizes[rows]
        size.compute_input.add(1, assemble)
        size.compute_infer.add(1, infer)
        self.last_inference = int(time.time() * 1000)

    def split(self, requests: int, rows: int, seconds: float) -> None:
        """The answers of one batch were cut apart in `seconds`."""
        self.compute_output.add(requests, seconds * requests)
        self.batch_sizes[rows].compute_output.add(1, seconds)

    def answered(self, index: int, since_last: float, since_arrival: float) -> None:
        """A decoupled model gave an answer, the one at `index` in its stream."""
        self.streamed += 1
        if not index:
            self.first_answer_seconds.observe(since_arrival)
        if index < MAX_ANSWERS:
            if index == len(self.answers):
                self.answers.append(Duration())
            self.answers[index].add(1, since_last)

    def failed(self, protocol: str, code: str, reason: str, seconds: float) -> None:
        """One request ended with an error."""
        self.fail.add(1, seconds)
        self.failures[reason] += 1
        self.requests[protocol, code] += 1
        self.request_seconds[protocol].observe(seconds)

    def take(self, other: ServableStats) -> None:
        """Adds another load's numbers, but for those by batch size and by place in a stream."""
        for name in DURATIONS:
            getattr(self, name).take(getattr(other, name))
        for name in ("queue_seconds", "execute_seconds", "batch_rows", "first_answer_seconds"):
            getattr(self, name).take(getattr(other, name))
        for name in ("closed", "failures", "requests"):
            getattr(self, name).update(dict(getattr(other, name)))
        for protocol, histogram in list(other.request_seconds.items()):
            self.request_seconds[protocol].take(histogram)
        self.inference_count += other.inference_count
        self.execution_count += other.execution_count
        self.streamed += other.streamed
        self.last_inference = max(self.last_inference, other.last_inference)
