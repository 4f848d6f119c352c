"""Objectives: ``p99<=20ms,error<=0.1%``. Of a search, and of what must hold (``--slo``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.bench.results import PERCENTILES, Point
from loadtests.errors import BenchError

LATENCIES: Final = (*(f"p{p:g}" for p in PERCENTILES if p < 100), "max", "mean")
UNITS: Final = {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}
MAX_ERRORS: Final = 0.001
"""Share of requests that may fail where an objective says nothing of errors."""
_FORM: Final = re.compile(r"([a-z][a-z0-9.]*)\s*(<=|>=|<|>)\s*([0-9]*\.?[0-9]+)\s*(\S*)")
EXAMPLE: Final = "type it as 'p99<=20ms', 'error<=0.1%' or 'rate>=500', joined by commas"


@dataclass(frozen=True)
class Bound:
    """One comparison. ``limit``: µs (latency), share from 0 to 1 (errors), requests/s (rate)."""

    text: str
    metric: str
    sign: str
    limit: float

    def value(self, point: Point) -> float | None:
        """What was measured, in the unit of ``limit``; ``None``: nothing was answered well."""
        if self.metric == "error":
            return point.error_rate
        if self.metric == "rate":
            return point.rate
        if not point.latency.count:
            return None
        if self.metric == "mean":
            return point.latency.mean_us
        return point.latency.at(self.percentile)

    @property
    def percentile(self) -> float:
        """Of a latency; 100 for the largest."""
        return 100.0 if self.metric == "max" else float(self.metric[1:])

    def at_least(self, point: Point) -> bool:
        """Whether the value is known only from below: requests had no answer."""
        if self.metric in ("error", "rate"):
            return False
        if self.metric == "mean":
            return point.unanswered > 0
        return point.at_least(self.percentile)

    def met(self, point: Point) -> bool:
        """Whether it holds."""
        value = self.value(point)
        if value is None or self.at_least(point):
            return False
        if self.sign == "<=":
            return value <= self.limit
        if self.sign == "<":
            return value < self.limit
        return value >= self.limit if self.sign == ">=" else value > self.limit

    def unsure(self, point: Point) -> bool:
        """Whether the limit lies within the confidence interval of what was measured."""
        within = {"p50": point.latency.p50, "p99": point.latency.p99, "rate": point.rate_ci}
        interval = within.get(self.metric)
        return interval is not None and interval.low < self.limit < interval.high

    def shown(self, point: Point) -> str:
        """What was measured, in words."""
        value = self.value(point)
        if value is None:
            return f"{self.metric}: nothing was answered"
        if self.metric == "error":
            return f"error {value:.3%}"
        if self.metric == "rate":
            return f"rate {value:.6g}/s"
        least = ">= " if self.at_least(point) else ""
        return f"{self.metric} {least}{value / 1e3:.4g} ms"


@dataclass(frozen=True)
class Objective:
    """Bounds that must all hold."""

    text: str
    bounds: tuple[Bound, ...]

    def met(self, point: Point) -> bool:
        """Whether all bounds hold, and the server was not silent for long: in a closed loop nobody
        asks one that is, and there is nothing to bound."""
        return not point.silent_s and all(bound.met(point) for bound in self.bounds)

    def missed(self, point: Point) -> list[str]:
        """What does not hold: ``p99 23.1 ms, wanted p99<=20ms``."""
        found = [f"{b.shown(point)}, wanted {b.text}" for b in self.bounds if not b.met(point)]
        return [*found, silent(point)] if point.silent_s else found

    def unsure(self, point: Point) -> list[Bound]:
        """Bounds whose limit the confidence interval contains."""
        return [bound for bound in self.bounds if bound.unsure(point)]

    def with_errors(self) -> Objective:
        """With a bound on errors too (`MAX_ERRORS`), unless it has one: a server that refuses nine
        requests of ten answers the tenth quickly."""
        if any(bound.metric == "error" for bound in self.bounds):
            return self
        most = Bound(f"error<={MAX_ERRORS:.3g}".replace("0.001", "0.1%"), "error", "<=", MAX_ERRORS)
        return Objective(f"{self.text},{most.text}", (*self.bounds, most))


def silent(point: Point) -> str:
    """That the server was, in words."""
    return f"nothing was answered for {point.silent_s:.1f} of {point.seconds:g} s"


def limits(points: Sequence[Point]) -> list[str]:
    """The levels whose figures say more about the client, and why the last of them does: a line, or
    none."""
    limited = [point for point in points if point.client.bottleneck]
    if not limited:
        return []
    names = ", ".join(point.load.name for point in limited)
    of = f" (of {limited[-1].load.name})" if len(limited) > 1 else ""
    return [f"at {names} the client was the limit{of}: {limited[-1].client.bottleneck}"]


def caveats(points: Sequence[Point]) -> list[str]:
    """What must be known of the levels before their figures are believed, a line each."""
    found = [f"{point.load.name}: {silent(point)}" for point in points if point.silent_s]
    lossy = [point for point in points if point.unanswered]
    if lossy:
        names = ", ".join(point.load.name for point in lossy)
        found.append(
            f"{names}: requests that were not answered (timeout, overrun, connection) count in the "
            f"latencies with the timeout of {lossy[0].load.timeout_s:g} s, as the least that an "
            "answer would have taken"
        )
    return found


def parse(text: str) -> Objective:
    """Reads an objective. Raises `BenchError` that says what to type."""
    words = [word.strip() for word in text.split(",")]
    bounds = tuple(_bound(word) for word in words)
    seen: set[tuple[str, bool]] = set()
    for bound in bounds:
        kind = bound.metric, bound.sign.startswith("<")
        if kind in seen:
            raise BenchError(f"'{text}' bounds {bound.metric} twice; leave one out")
        seen.add(kind)
    return Objective(",".join(words), bounds)


def _bound(word: str) -> Bound:
    match = _FORM.fullmatch(word)
    if match is None:
        raise BenchError(f"'{word}' is no objective; {EXAMPLE}")
    metric, sign, number, unit = match.groups()
    if metric not in (*LATENCIES, "error", "rate"):
        known = ", ".join((*LATENCIES, "error", "rate"))
        raise BenchError(f"'{metric}' in '{word}' is not measured; there are {known}")
    value = float(number)
    if metric == "rate":
        if unit not in ("", "/s") or sign.startswith("<"):
            raise BenchError(f"'{word}': a rate is bounded from below, as 'rate>=500'")
        return Bound(word, metric, sign, value)
    if sign.startswith(">"):
        raise BenchError(f"'{word}': {metric} is bounded from above; type '{metric}<={number}...'")
    if metric == "error":
        share = value / 100 if unit == "%" else value
        if unit not in ("", "%") or share > 1:
            raise BenchError(f"'{word}': a share of errors is 'error<=0.1%' or 'error<=0.001'")
        return Bound(word, metric, sign, share)
    if unit not in UNITS:
        wrong = f"unit '{unit}' is unknown" if unit else "the unit is missing"
        raise BenchError(f"'{word}': {wrong}; type '{metric}{sign}{number}ms' (us, ms or s)")
    if not value:
        raise BenchError(f"'{word}' cannot be met; give a latency above 0")
    return Bound(word, metric, sign, value * UNITS[unit])
