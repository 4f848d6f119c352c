"""Two results beside each other: what differs by more than chance explains.

A difference counts where the two 95 % confidence intervals do not overlap, which is stricter than
a test at 5 %. Where a run was too short for an interval, the tolerance alone decides. A latency
that is only known from below, since requests were not answered, differs from a smaller one and from
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from loadtests.bench.confidence import wilson
from loadtests.bench.objective import limits, silent
from loadtests.bench.results import Interval, Known, Point, Result
from loadtests.errors import BenchError

SAME: Final = "same"
BETTER: Final = "better"
WORSE: Final = "worse"
UNKNOWN: Final = "not known"


def _loads(name: str, *, opened: bool = False) -> Callable[[Result], str]:
    """A field of the levels, where they have it; of open loops only, with ``opened``."""

    def of(result: Result) -> str:
        found = {
            getattr(point.load, name) for point in result.points if point.load.open or not opened
        }
        return ", ".join(sorted(map(str, found)))

    return of


def _versions(name: str) -> Callable[[Result], str]:
    return lambda result: result.versions.get(name, "")


KIND: Final[tuple[tuple[str, Callable[[Result], str]], ...]] = (
    ("model", lambda result: result.target.model),
    ("protocol", lambda result: result.target.protocol.value),
)
"""What makes two measurements ones of different things."""
CONTEXT: Final[tuple[tuple[str, Callable[[Result], str]], ...]] = (
    *KIND,
    ("version", lambda result: result.target.version),
    ("requests", lambda result: result.payload),
    ("header names", lambda result: ", ".join(sorted(name for name, _ in result.target.headers))),
    ("cpu", lambda result: result.machine.get("cpu", "")),
    ("cores", lambda result: result.machine.get("cores", "")),
    ("server", _versions("server")),
    ("seconds", _loads("seconds")),
    ("warm-up (s)", _loads("warmup_s")),
    ("timeout (s)", _loads("timeout_s")),
    ("connections", _loads("connections")),
    ("processes", _loads("processes")),
    ("arrivals", _loads("arrivals", opened=True)),
    ("max in flight", _loads("max_in_flight", opened=True)),
    ("routing keys", lambda result: result.keys),
)


class Incomparable(BenchError):
    """Measurements of different things, or of different loads."""


@dataclass(frozen=True)
class Change:
    """One figure of one level in both. Latencies in µs, rates in requests/s, errors as a share."""

    metric: str
    a: float
    b: float
    verdict: str
    """`SAME`: not more than chance explains; `BETTER` or `WORSE`: how B differs from A; `UNKNOWN`:
    too many requests were not answered to say."""
    beyond: bool
    """Whether the difference is larger than the tolerance as well."""
    sure: bool = True
    """Whether both have an interval; else the tolerance alone has decided."""
    a_known: Known = "well"
    """What ``a`` is worth; of a percentile."""
    b_known: Known = "well"

    @property
    def ratio(self) -> float | None:
        """B over A; ``None`` where A is 0, or one of them is only known from below."""
        if not self.a or self.bounded:
            return None
        return self.b / self.a

    @property
    def bounded(self) -> bool:
        """Whether the difference may be larger than it seems."""
        return "at least" in (self.a_known, self.b_known)

    @property
    def fails(self) -> bool:
        """Whether B is worse, beyond the tolerance."""
        return self.verdict == WORSE and self.beyond


@dataclass(frozen=True)
class Level:
    """A level that both have."""

    name: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether B is worse in something."""
        return any(change.fails for change in self.changes)


@dataclass(frozen=True)
class Differences:
    """B against A."""

    tolerance: float
    levels: tuple[Level, ...]
    best: Change | None = None
    """The loads that a search found, where both searched for the same."""
    notes: list[str] = field(default_factory=list)

    @property
    def worse(self) -> bool:
        """Whether B is worse beyond the tolerance, anywhere."""
        return any(level.fails for level in self.levels) or bool(self.best and self.best.fails)


def compare(a: Result, b: Result, tolerance: float = 0.05, *, force: bool = False) -> Differences:
    """B against A, level by level. ``tolerance``: a share of A's figure. Raises `Incomparable` for
    different models or protocols, unless it is to be done by ``force``, and where they have no
    level in common."""
    for what, of in KIND:
        if of(a) != of(b) and not force:
            raise Incomparable(
                f"the {what} is {of(a)} in A and {of(b)} in B, so the server alone explains no "
                "difference; measure the same again, or compare them all the same with --force"
            )
    ours = {point.load.name: point for point in a.points}
    theirs = {point.load.name: point for point in b.points}
    levels = tuple(
        _level(name, point, theirs[name], tolerance)
        for name, point in ours.items()
        if name in theirs
    )
    best, notes = _searched(a, b, tolerance)
    if not levels and best is None:
        raise Incomparable(
            f"no level is in both (A has {_listed(ours)}, B has {_listed(theirs)}); measure both "
            "with the same levels"
        )
    for label, mine, others in (("A", ours, theirs), ("B", theirs, ours)):
        alone = {name: point for name, point in mine.items() if name not in others}
        if alone:
            notes.append(f"only in {label}: {_listed(alone)}")
    for label, result in (("A", a), ("B", b)):
        notes += [f"{label}: {line}" for line in limits(result.points)]
    for what, of in CONTEXT:
        if of(a) != of(b):
            notes.append(f"{what} differ: {of(a) or 'none'} in A, {of(b) or 'none'} in B")
    return Differences(tolerance, levels, best, notes)


def tree(found: Differences) -> dict[str, Any]:
    """As JSON has it: ``levels``, each with its ``changes``, and whether B is ``worse``."""

    def of(change: Change) -> dict[str, Any]:
        return {**asdict(change), "ratio": change.ratio, "fails": change.fails}

    return {
        "worse": found.worse,
        "tolerance": found.tolerance,
        "levels": [
            {"name": level.name, "changes": [of(c) for c in level.changes], "notes": level.notes}
            for level in found.levels
        ],
        "best": None if found.best is None else of(found.best),
        "notes": found.notes,
    }


def _level(name: str, a: Point, b: Point, tolerance: float) -> Level:
    notes = [f"{label}: {silent(point)}" for label, point in (("A", a), ("B", b)) if point.silent_s]
    notes += [
        f"{label}: latencies had not settled when the measurement began"
        for label, point in (("A", a), ("B", b))
        if not point.steady
    ]
    changes = [_change("rate", a.rate, b.rate, a.rate_ci, b.rate_ci, tolerance, more=True)]
    if a.latency.count and b.latency.count:
        for metric, at in (("p50", 50.0), ("p99", 99.0)):
            first, second = getattr(a.latency, metric), getattr(b.latency, metric)
            change = _change(metric, a.latency.at(at), b.latency.at(at), first, second, tolerance)
            changes.append(_bounded(change, a.known(at), b.known(at), first, second))
    else:
        notes.append("nothing was answered well: no latencies to compare")
    # Any rise that chance does not explain: there is no share of errors that is tolerated.
    changes.append(_change("errors", a.error_rate, b.error_rate, _share(a), _share(b), 0.0))
    return Level(name, tuple(changes), tuple(notes))


def _change(
    metric: str,
    a: float,
    b: float,
    first: Interval | None,
    second: Interval | None,
    tolerance: float,
    *,
    more: bool = False,
) -> Change:
    """``more``: more is better."""
    beyond = abs(b - a) > tolerance * a
    sure = first is not None and second is not None
    if first is not None and second is not None:
        differs = first.high < second.low or second.high < first.low
    else:
        differs = beyond
    if not differs or a == b:
        return Change(metric, a, b, SAME, beyond, sure)
    return Change(metric, a, b, BETTER if (b > a) == more else WORSE, beyond, sure)


def _bounded(
    change: Change, a: Known, b: Known, first: Interval | None, second: Interval | None
) -> Change:
    """A latency's change, with what its two figures are worth. What is only known from below has no
    interval that says anything: it differs from a figure that lies, with its own, below that."""
    change = replace(change, a_known=a, b_known=b)
    if not change.bounded:
        return change
    if a == b:
        return replace(change, verdict=UNKNOWN)
    worse = b == "at least"
    less, bound, known = (change.a, change.b, first) if worse else (change.b, change.a, second)
    sure = known is not None
    high = less if known is None else max(less, known.high)
    verdict = UNKNOWN
    if high < bound and (sure or change.beyond):
        verdict = WORSE if worse else BETTER
    return replace(change, verdict=verdict, sure=sure)


def _share(point: Point) -> Interval:
    """The share of errors."""
    return Interval(*wilson(min(point.failed, point.sent), point.sent))


def _searched(a: Result, b: Result, tolerance: float) -> tuple[Change | None, list[str]]:
    if a.search is None or b.search is None:
        return None, []
    if a.search.objective != b.search.objective:
        words = f"{a.search.objective} in A, {b.search.objective} in B"
        return None, [f"the searches had different objectives: {words}"]
    unfinished = [
        f"the search of {label} was not finished: what it would have found is not known"
        for label, search in (("A", a.search), ("B", b.search))
        if not search.finished
    ]
    if unfinished:
        return None, unfinished
    ours, theirs = a.search.best, b.search.best
    if ours is None and theirs is None:
        return None, [f"neither met {a.search.objective}"]
    metric = f"highest load with {a.search.objective}"
    return _change(metric, ours or 0.0, theirs or 0.0, None, None, tolerance, more=True), []


def _listed(points: dict[str, Point]) -> str:
    return ", ".join(points) or "none"
