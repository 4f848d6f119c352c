"""What a result says, in sentences and in a few figures. Nothing here is drawn."""

from __future__ import annotations

import math

from loadtests.bench.results import Point, Result

from .levels import all_open, at, level_name, offered, told
from .words import between, duration, joined, rate, share

KEPT_UP = 0.97
"""Of the offered load: answering less than this, a server fell behind."""
SLOW = 3.0
"""Times the p99 of the lowest load: from here on, requests wait."""


def headline(result: Result) -> Point | None:
    """The level that the large figures are of.

    The best of a search; else the highest open load that the server kept up with; else the level
    with the most answers a second. Levels that nothing was answered at come last.
    """
    if not result.points:
        return None
    if result.search and result.search.best is not None:
        best = result.search.best
        same = [p for p in result.points if math.isclose(offered(p), best, rel_tol=1e-6)]
        if same:
            return same[-1]
    kept = [point for point in result.points if kept_up(point)]
    if all_open(result) and kept:
        return max(kept, key=lambda point: point.load.rate)
    return max(result.points, key=lambda point: (point.rate, -offered(point)))


def kept_up(point: Point) -> bool:
    """Open loop: whether about all that was offered was answered well."""
    return point.load.open and point.ok > 0 and point.rate >= KEPT_UP * point.load.rate


def sentences(result: Result) -> list[str]:
    """A plain verdict, one thought a sentence."""
    found: list[str] = []
    if not result.points:
        return ["Nothing was measured."]
    if not any(each.ok for each in result.points):
        kinds: dict[str, int] = {}
        for each in result.points:
            for kind, count in each.errors.items():
                kinds[kind] = kinds.get(kind, 0) + count
        worst = sorted(kinds, key=lambda kind: (-kinds[kind], kind))[:3]
        why = f" What went wrong: {joined(worst)}." if worst else ""
        return [f"Not one request was answered well.{why}"]
    if result.search:
        found.append(_search(result))
    point = headline(result)
    assert point is not None
    found.append(_level(point))
    if len(result.points) > 1 and all_open(result):
        found += _saturation(result)
    unsteady = [level_name(point) for point in result.points if not point.steady]
    if unsteady:
        found.append(
            f"Latencies had not settled when the measurement began at {joined(unsteady)}: "
            "measure for longer, or with a longer warm-up."
        )
    return found


def _search(result: Result) -> str:
    search = result.search
    assert search is not None
    if not search.finished:
        return (
            "The search was not finished: the highest load that meets "
            f"{search.objective} is not known."
        )
    if search.best is None:
        lowest = min((load for load, _ in search.tried), default=None)
        at = f", not even {_load(result, lowest)}" if lowest is not None else ""
        return f"No load that was tried meets {search.objective}{at}."
    above = [load for load, met in search.tried if not met and load > search.best]
    limit = f"; {_load(result, min(above))} does not" if above else "; nothing higher was tried"
    return f"The highest load that meets {search.objective} is {_load(result, search.best)}{limit}."


def _load(result: Result, value: float) -> str:
    return rate(value) if all_open(result) else f"{value:g} in flight"


def _level(point: Point) -> str:
    latency = point.latency
    if not latency.count:
        return f"At {level_name(point)}, nothing was answered well."
    known = between(latency.p99) if point.known(99) == "well" else ""
    sure = f" (95 % confidence: {known})" if known else ""
    said = (
        f"At {level_name(point)} it answered {rate(point.rate)}: half of the requests "
        f"{_within(point, 50)}, 99 % {_within(point, 99)}{sure}"
    )
    if point.failed:
        part = share(point.error_rate)
        return f"{said}; {point.failed:,} of {point.sent:,} requests failed ({part})."
    return f"{said}; no request failed."


def _within(point: Point, percentile: float) -> str:
    """``within 12 ms``, and how sure that is."""
    said = duration(at(point.latency, percentile))
    match point.known(percentile):
        case "at least":
            return f"in {said} or more"
        case "few":
            return f"within about {said}"
        case _:
            return f"within {said}"


def _saturation(result: Result) -> list[str]:
    points = sorted(result.points, key=offered)
    behind = next((point for point in points if not kept_up(point)), None)
    if behind is None:
        top = points[-1]
        found = [f"It kept up with every load that was offered, up to {level_name(top)}."]
    else:
        part = share(behind.rate / behind.load.rate)
        found = [
            f"It fell behind at {level_name(behind)}, where it answered {rate(behind.rate)} "
            f"({part} of what was offered)."
        ]
    floor = max(at(points[0].latency, 99) or 0.0, 1.0)
    slow = next((p for p in points[1:] if (at(p.latency, 99) or 0.0) > SLOW * floor), None)
    unknown = not points[0].latency.count or points[0].at_least(99)
    if slow is not None and slow is not behind and not unknown:
        least = "at least " if slow.at_least(99) else ""
        found.append(
            f"From {level_name(slow)} on, requests wait: p99 is {told(slow, 99)}, {least}"
            f"{(at(slow.latency, 99) or 0.0) / floor:.1f} times that at {level_name(points[0])}."
        )
    return found


def bottlenecks(result: Result) -> list[str]:
    """Where the client was the limit, and why: one line a level."""
    return [
        f"{level_name(point)}: {point.client.bottleneck}"
        for point in result.points
        if point.client.bottleneck
    ]


def split_table(result: Result) -> list[tuple[str, int, float, float | None, str]]:
    """(version, answers, actual share, expected share, verdict) over all levels."""
    answers: dict[str, int] = dict.fromkeys(result.expected_split, 0)
    for point in result.points:
        for version, count in point.versions.items():
            answers[version] = answers.get(version, 0) + count
    total = sum(answers.values())
    if not total:
        return []
    rows: list[tuple[str, int, float, float | None, str]] = []
    for version in sorted(answers, key=lambda name: (not name.isdecimal(), len(name), name)):
        actual = answers[version] / total
        if not result.expected_split:
            rows.append((version, answers[version], actual, None, ""))
            continue
        wanted = result.expected_split.get(version, 0.0)
        rows.append((version, answers[version], actual, wanted, _chance(actual, wanted, total)))
    return rows


def _chance(actual: float, wanted: float, total: int) -> str:
    """Whether chance explains the difference, for independent requests: 99 %, normal limit."""
    error = math.sqrt(max(wanted * (1 - wanted), 0.0) / total)
    if abs(actual - wanted) <= 2.576 * error + 0.5 / total:
        return "as declared"
    return "more than declared" if actual > wanted else "less than declared"
