"""The levels of a result, with names that stay apart, and their seconds in one line of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from loadtests.bench.results import FEWEST_BEYOND, Known, Latency, Point, Result, Tick

from . import look
from .marks import Row
from .words import duration, rate

MOST_TICKS = 900
"""Of a chart over time; more are drawn together."""
MOST_CURVES = 8
MARKS: Final[dict[Known, str]] = {"well": "", "few": "~", "at least": "≥ "}
"""Before a latency that is not what it seems."""


@dataclass(frozen=True)
class Level:
    """One point of a result, as it is drawn."""

    point: Point
    name: str
    colour: str
    offered: float
    """Requests/s, or requests in flight."""
    starts: float
    """Seconds of the whole run at which its measurement begins."""


def levels(result: Result) -> list[Level]:
    """In the order in which they were measured; time runs on from one to the next."""
    order = sorted({offered(point) for point in result.points})
    colours = look.levels(len(order))
    found: list[Level] = []
    names: dict[str, int] = {}
    clock = 0.0
    for point in result.points:
        name = level_name(point)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name} ({names[name]})"
        begin = min([-point.warmup_s, *(tick.at_s for tick in point.ticks)])
        end = max([point.seconds, *(tick.at_s + tick.seconds for tick in point.ticks)])
        clock -= begin
        tint = colours[order.index(offered(point))]
        found.append(Level(point, name, tint, offered(point), clock))
        clock += end
    return found


def offered(point: Point) -> float:
    """Requests/s sent (open loop), or requests in flight (closed loop)."""
    return point.load.rate if point.load.open else float(point.load.concurrency)


def level_name(point: Point) -> str:
    """``500/s``, ``16 in flight``."""
    if point.load.open:
        return rate(point.load.rate)
    return f"{point.load.concurrency} in flight"


def at(latency: Latency, percentile: float) -> float | None:
    """µs at a percentile; ``None`` where nothing was answered, or the result does not say."""
    return latency.percentiles_us.get(f"{percentile:g}") if latency.count else None


def left_out(point: Point, percentile: float) -> bool:
    """Whether a percentile says nothing: beyond p99, of too few requests."""
    return percentile > 99 and point.known(percentile) == "few"


def told(point: Point, percentile: float) -> str:
    """``12.3 ms``; ``≥ 1 s`` of requests without an answer, ``~12 ms`` of few, ``–`` of too few."""
    us = at(point.latency, percentile)
    if us is None or left_out(point, percentile):
        return duration(None)
    return MARKS[point.known(percentile)] + duration(us)


def told_mean(point: Point) -> str:
    """The mean latency, as `told` has a percentile."""
    if not point.latency.count:
        return duration(None)
    return MARKS["at least" if point.unanswered else "well"] + duration(point.latency.mean_us)


def marks_explained(points: Sequence[Point], percentiles: Sequence[float]) -> str:
    """What the marks of `told` mean, as far as there are any."""
    known = {
        (point.known(each), left_out(point, each))
        for point in points
        if point.latency.count
        for each in percentiles
    }
    said = []
    if ("few", False) in known:
        said.append(f"~: fewer than {FEWEST_BEYOND} requests lie beyond it, so it says little.")
    if ("few", True) in known:
        said.append(f"–: above p99, fewer than {FEWEST_BEYOND} requests lie beyond it.")
    if ("at least", False) in known:
        said.append(
            "≥: of requests without an answer, which count with their timeout; how much longer "
            "they would have taken is not known."
        )
    return " ".join(said)


def all_open(result: Result) -> bool:
    """Whether every level was an open loop."""
    return all(point.load.open for point in result.points)


def of_one_kind(result: Result) -> bool:
    """Whether all levels can stand on one axis: all open or all closed."""
    return len({point.load.open for point in result.points}) == 1


def axis_title(result: Result) -> str:
    """Of the axis of levels."""
    return "offered load (requests/s)" if all_open(result) else "requests in flight"


def spread_out(found: Sequence[Level], most: int = MOST_CURVES) -> list[Level]:
    """At most ``most`` of the levels, evenly chosen, first and last among them."""
    if len(found) <= most:
        return list(found)
    last = len(found) - 1
    return [found[round(i * last / (most - 1))] for i in range(most)]


@dataclass(frozen=True)
class Second:
    """One or several ticks of a level, in the line of time of the whole run."""

    level: Level
    at: float
    tick: Tick
    bounded: frozenset[str] = frozenset()
    """Of ``p50`` and ``p99``, what is only known from below."""

    def known(self, name: str) -> Known:
        """What ``p50`` or ``p99`` is worth."""
        return "at least" if name in self.bounded else "well"

    def row(self) -> Row:
        """What every chart over time wants to know, in numbers and in words."""
        tick = self.tick
        return {
            "at": round(self.at + tick.seconds / 2, 3),
            "level": self.level.name,
            "p50": tick.p50_us,
            "p99": tick.p99_us,
            "answered": tick.ok / tick.seconds,
            "failed": tick.failed / tick.seconds,
            "Level": self.level.name,
            "Second": f"{tick.at_s:.1f}" + (" (warm-up)" if tick.at_s < 0 else ""),
            "p50 ": MARKS[self.known("p50")] + duration(tick.p50_us),
            "p99 ": MARKS[self.known("p99")] + duration(tick.p99_us),
            "Answered": rate(tick.ok / tick.seconds),
            "Failed": rate(tick.failed / tick.seconds),
        }


def timeline(found: Sequence[Level]) -> tuple[list[Second], int]:
    """All ticks of all levels in time, and how many of the measured ones each stands for.

    Where there are too many to draw, neighbours are drawn together: their counts added, the median
    of their p50, the largest of their p99, means of the rest.
    """
    total = sum(len(level.point.ticks) for level in found)
    together = max(1, -(-total // MOST_TICKS))
    seconds = []
    for level in found:
        ticks = [tick for tick in level.point.ticks if tick.seconds > 0]
        warm = [tick for tick in ticks if tick.at_s < 0]
        for part in (warm, ticks[len(warm) :]):
            for i in range(0, len(part), together):
                joined = part[i : i + together]
                tick = _merged(joined)
                seconds.append(
                    Second(level, level.starts + tick.at_s, tick, _bounded(joined, tick))
                )
    return seconds, together


def _merged(ticks: Sequence[Tick]) -> Tick:
    if len(ticks) == 1:
        return ticks[0]
    p50 = [tick.p50_us for tick in ticks if tick.p50_us is not None]
    p99 = [tick.p99_us for tick in ticks if tick.p99_us is not None]
    versions: dict[str, int] = {}
    for tick in ticks:
        for version, answers in tick.versions.items():
            versions[version] = versions.get(version, 0) + answers
    return Tick(
        at_s=ticks[0].at_s,
        seconds=sum(tick.seconds for tick in ticks),
        sent=sum(tick.sent for tick in ticks),
        ok=sum(tick.ok for tick in ticks),
        failed=sum(tick.failed for tick in ticks),
        p50_us=median(p50) if p50 else None,
        p99_us=max(p99) if p99 else None,
        versions=versions,
        batch_rows=_mean([tick.batch_rows for tick in ticks]),
        queue_us=_mean([tick.queue_us for tick in ticks]),
        execute_us=_mean([tick.execute_us for tick in ticks]),
        client_cpu=_mean([tick.client_cpu for tick in ticks]) or 0.0,
        unanswered=sum(tick.unanswered for tick in ticks),
    )


def _bounded(ticks: Sequence[Tick], merged: Tick) -> frozenset[str]:
    """Percentiles of what was merged that requests without an answer have decided."""
    found = set()
    for name, percentile in (("p50", 50), ("p99", 99)):
        shown = getattr(merged, f"{name}_us")
        of = [getattr(each, f"{name}_us") for each in ticks if each.at_least(percentile)]
        if shown is not None and any(us is not None and us <= shown for us in of):
            found.add(name)
    return frozenset(found)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
