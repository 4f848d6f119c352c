"""Results in words and numbers: rows of a table, and the lines around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from loadtests.bench.differences import SAME, UNKNOWN, Change, Differences
from loadtests.bench.objective import limits
from loadtests.bench.results import FEWEST_BEYOND, Interval, Known, Latency, Point, Result, Tick

LEVELS = (
    "LEVEL", "RATE", "P50", "P99", "P99.9", "MAX", "ERRORS", "QUEUE", "EXECUTE", "BATCH", "CLIENT",
)  # fmt: skip
"""Columns of `level_row`; QUEUE, EXECUTE and BATCH are the server's word."""
CHANGES = ("LEVEL", "", "A", "B", "RATIO", "")
WIDE: Final = 0.3
"""Share of a figure beyond which an interval is not shown as a share: latencies vary by factors, so
it is not the same to both sides."""
MARKS: Final[dict[Known, str]] = {"well": "", "few": "~", "at least": ">= "}
"""Before a latency that is not what it seems."""


def duration(us: float | None) -> str:
    """``850 µs``, ``1.23 ms``, ``4.56 s``."""
    if us is None:
        return ""
    if us < 999.5:
        return f"{us:.0f} µs"
    if us < 999_500:
        return f"{us / 1e3:.3g} ms" if us < 99_950 else f"{us / 1e3:.0f} ms"
    return f"{us / 1e6:.3g} s"


def rate(value: float) -> str:
    """``1234/s``; below 100 with a digit behind the point."""
    return f"{value:.0f}/s" if value >= 100 else f"{value:.3g}/s"


def share(value: float) -> str:
    """A share as percent: ``0``, ``0.012 %``, ``3.1 %``."""
    if not value:
        return "0"
    return f"{value * 100:.2g} %" if value < 0.1 else f"{value * 100:.1f} %"


def within(interval: Interval | None, value: float, say: Callable[[float], str]) -> str:
    """`` ±4%`` of a figure, to the farther end of its interval, and where that says little both
    ends: `` (110 ms to 1.4 s)``; empty without an interval."""
    if interval is None or value <= 0:
        return ""
    half = max(interval.high - value, value - interval.low) / value
    if half > WIDE:
        return f" ({say(interval.low)} to {say(interval.high)})"
    return f" ±{half * 100:.2g}%" if half < 0.1 else f" ±{half * 100:.0f}%"


def level_row(point: Point) -> list[str]:
    """One level, in the columns of `LEVELS`."""
    latency, server = point.latency, point.server
    client = f"{point.client.cpu:.2f} cores" + (" !" if point.client.bottleneck else "")
    timed = server is not None and server.executions > 0
    return [
        point.load.name,
        rate(point.rate) + within(point.rate_ci, point.rate, rate),
        shown(point, 50) + sure(point, 50, latency.p50),
        shown(point, 99) + sure(point, 99, latency.p99),
        shown(point, 99.9) if point.known(99.9) != "few" else "",
        shown(point, 100),
        share(point.error_rate),
        duration(server.queue_us) if server is not None and timed else "",
        duration(server.execute_us) if server is not None and timed else "",
        f"{server.batch_rows:.3g}" if server is not None and timed else "",
        client,
    ]


def at(latency: Latency, percentile: float) -> str:
    return duration(latency.at(percentile)) if latency.count else ""


def shown(point: Point, percentile: float) -> str:
    """A latency; ``>= 1 s`` where it is that of requests which were not answered, ``~12 ms`` where
    few requests lie beyond it."""
    words = at(point.latency, percentile)
    return MARKS[point.known(percentile)] + words if words else ""


def sure(point: Point, percentile: float, interval: Interval | None) -> str:
    """`within`, of a latency that is known from both sides."""
    if not point.latency.count or point.at_least(percentile):
        return ""
    return within(interval, point.latency.at(percentile), duration)


def head(result: Result) -> str:
    """What was measured, in a line."""
    target = result.target
    where = target.http if target.protocol.http else f"grpc {target.grpc}"
    version = f" version {target.version}" if target.version else ""
    server = result.versions.get("server", "")
    said = f" ({server})" if server not in ("", "not told") else ""
    return f"{target.model}{version} at {where}{said}, {target.protocol}, {result.payload}"


def remarks(result: Result) -> list[str]:
    """What has to be said beside the table: errors, versions, search, the client, notes."""
    lines = []
    for point in result.points:
        if point.errors:
            kinds = ", ".join(f"{count} {kind}" for kind, count in most(point.errors))
            lines.append(f"{point.load.name}: {point.failed} of {point.sent} failed: {kinds}")
        if not point.steady:
            lines.append(
                f"{point.load.name}: latencies had not settled when the measurement began; "
                "give a longer --warmup"
            )
    lines += [*(f"! {line}" for line in limits(result.points)), *shares(result)]
    if result.search is not None:
        lines.append(found(result))
    return lines + result.notes + few(result)


def few(result: Result) -> list[str]:
    """What ``~`` means, where there is one."""
    marked = any(
        point.latency.count and point.known(percentile) == "few"
        for point in result.points
        for percentile in (50, 99)
    )
    if not marked:
        return []
    return [f"~: fewer than {FEWEST_BEYOND} requests lie beyond it; give a longer --duration"]


def shares(result: Result) -> list[str]:
    """Which version answered how much, where there are several."""
    total: dict[str, int] = {}
    for point in result.points:
        for version, count in point.versions.items():
            total[version] = total.get(version, 0) + count
    names = sorted({*total, *result.expected_split}, key=lambda name: (len(name), name))
    if len(names) < 2:
        return []
    every = max(sum(total.values()), 1)
    words = []
    for name in names:
        declared = result.expected_split.get(name)
        wanted = "" if declared is None else f" (declared {share(declared)})"
        words.append(f"{name} {share(total.get(name, 0) / every)}{wanted}")
    return [f"versions: {', '.join(words)}"]


def found(result: Result) -> str:
    """What a search came to."""
    search = result.search
    assert search is not None
    if not search.finished:
        loads = f"{len(search.tried)} load{'' if len(search.tried) == 1 else 's'}"
        return (
            f"search not finished; {loads} tried: the highest with {search.objective} is not known"
        )
    if search.best is None:
        return f"no load meets {search.objective}"
    points = [
        p
        for p in result.points
        if (p.load.rate if p.load.open else p.load.concurrency) == search.best
    ]
    name = points[0].load.name if points else f"{search.best:g}"
    return f"highest load with {search.objective}: {name}"


def most(errors: dict[str, int], count: int = 4) -> Iterable[tuple[str, int]]:
    """The kinds of errors that were most frequent."""
    return sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:count]


def tick_line(tick: Tick) -> str:
    """One second of a run."""
    per_s = rate(tick.ok / tick.seconds) if tick.seconds > 0 else ""
    parts = [per_s]
    if tick.p50_us is not None:
        parts.append(f"p50 {duration(tick.p50_us)}")
    if tick.p99_us is not None:
        parts.append(f"p99 {duration(tick.p99_us)}")
    if tick.failed:
        parts.append(f"{tick.failed} failed")
    return "  ".join(part for part in parts if part)


def point_line(point: Point) -> str:
    """A level that is over, in a line."""
    parts = [rate(point.rate)]
    if point.latency.count:
        parts += [f"{name} {shown(point, value)}" for name, value in (("p50", 50), ("p99", 99))]
    if point.failed:
        parts.append(f"{point.failed} of {point.sent} failed")
    return "  ".join(parts)


def change_rows(found: Differences) -> list[list[str]]:
    """Levels of a comparison, in the columns of `CHANGES`."""
    rows = []
    for level in found.levels:
        for index, change in enumerate(level.changes):
            if change.metric == "errors" and not (change.a or change.b):
                continue
            rows.append([level.name if index == 0 else "", *change_cells(change)])
    if found.best is not None:
        rows.append(["search", *change_cells(found.best)])
    return rows


SHOWN: Final[dict[str, Callable[[float], str]]] = {
    "rate": rate, "errors": share, "p50": duration, "p99": duration,
}  # fmt: skip


def load(value: float) -> str:
    """What a search came to."""
    return f"{value:g}" if value else "none"


def change_cells(change: Change) -> list[str]:
    show = SHOWN.get(change.metric, load)
    ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
    a, b = MARKS[change.a_known] + show(change.a), MARKS[change.b_known] + show(change.b)
    return [change.metric, a, b, ratio, verdict(change)]


def verdict(change: Change) -> str:
    """``same``, ``worse``, ``better, within the tolerance``, ..."""
    words = change.verdict
    if words == UNKNOWN:
        return f"{words}: requests had no answer"
    if words == SAME:
        return words
    if not change.beyond:
        words += ", by how much is not known" if change.bounded else ", within the tolerance"
    if not change.sure:
        words += " (no confidence interval)"
    return words


def change_remarks(found: Differences) -> list[str]:
    """What has to be said beside the table of a comparison."""
    return [f"{level.name}: {note}" for level in found.levels for note in level.notes] + found.notes
