"""From runs to lines: medians of the rounds, ratios to ours, and why something is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from loadtests.compare.peers import NAMES, OURS
from loadtests.compare.peers.cells import MODELS
from loadtests.compare.peers.outcome import BARE, LOOP, Outcome, Run


@dataclass(frozen=True)
class Line:
    """One server, model, route and concurrency over all rounds. Times in microseconds.

    ``None`` where a run did not count (``problem`` says why) or where nothing was measured.
    """

    server: str
    model: str
    route: str
    concurrency: int
    rate: float | None
    """Requests/s; rows/s of the bare loop."""
    mean_us: float | None
    p50_us: float | None
    p99_us: float | None
    ratio: float | None
    """The server's figure over ours on the route it is held against, round by round, the median:
    of mean latencies at concurrency 1, of requests/s elsewhere."""
    ratio_low: float | None
    ratio_high: float | None
    against: str
    """The route of ours that the ratio is to."""
    figure: str
    """What the ratio is of: ``mean`` or ``rate``."""
    runs: int
    batch: int | None = None
    """Rows of a call of the bare loop."""
    problem: str = ""
    variant: str = ""
    """``1x``: the best of several configurations of a server; see `Peer.variants`."""
    note: str = ""
    """Why another of them was not looked at."""

    @property
    def valid(self) -> bool:
        """Whether all its runs count."""
        return not self.problem


def lines(outcome: Outcome) -> list[Line]:
    """One line for every cell that was run, in the order of models and servers."""
    by_key: dict[tuple[str, str, str, int], list[Run]] = {}
    for run in outcome.runs:
        by_key.setdefault(run.key, []).append(run)
    keys = sorted(by_key, key=lambda key: _order(key[1], key[0]))
    return [_line(by_key[key], by_key, outcome) for key in keys]


def _order(model: str, server: str) -> tuple[int, int]:
    servers = (*NAMES, BARE)
    return (
        MODELS.index(model) if model in MODELS else len(MODELS),
        servers.index(server) if server in servers else len(servers),
    )


def _line(
    runs: Sequence[Run], all_runs: dict[tuple[str, str, str, int], list[Run]], outcome: Outcome
) -> Line:
    alone = runs[0].concurrency == 1
    value: Callable[[Run], float] = (lambda r: r.mean_us) if alone else (lambda r: r.rate)
    runs, note = _best(runs, value)
    first, variant = runs[0], runs[0].variant.strip("_")
    ours = _ours(first, all_runs, value)
    problems = [f"round {run.round}: {problem}" for run in runs for problem in run.problems]
    batch = None
    if first.server == BARE:
        batch = 1 if alone else outcome.batches.get(first.model)
    against = ours[0].route if ours else ""
    figure = "mean" if alone else "rate"
    named = (first.server, first.model, first.route, first.concurrency)
    if problems:
        nothing = (None,) * 7
        return Line(
            *named, *nothing, against, figure, len(runs), batch, "; ".join(problems), variant
        )
    theirs = {run.round: value(run) for run in runs}
    ratios = [theirs[run.round] / value(run) for run in ours if run.round in theirs]
    return Line(
        *named,
        median(run.rate for run in runs),
        median(run.mean_us for run in runs),
        _median(run.p50_us for run in runs),
        _median(run.p99_us for run in runs),
        median(ratios) if ratios else None,
        min(ratios, default=None),
        max(ratios, default=None),
        against,
        figure,
        len(runs),
        batch,
        variant=variant,
        note=note,
    )


def _best(runs: Sequence[Run], value: Callable[[Run], float]) -> tuple[Sequence[Run], str]:
    """The runs of the variant with the best median, and why another one is not looked at."""
    by_variant: dict[str, list[Run]] = {}
    for run in runs:
        by_variant.setdefault(run.variant, []).append(run)
    broken = {each: found for each, found in by_variant.items() if any(r.problems for r in found)}
    counts = [found for each, found in by_variant.items() if each not in broken]
    if not counts:
        return next(iter(by_variant.values())), ""
    note = "; ".join(
        f"{each.strip('_')}, round {run.round}: {problem}"
        for each, found in broken.items()
        for run in found
        for problem in run.problems
    )
    best = min if runs[0].concurrency == 1 else max
    return best(counts, key=lambda found: median(map(value, found))), note


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) if found else None


def _ours(
    run: Run,
    all_runs: dict[tuple[str, str, str, int], list[Run]],
    value: Callable[[Run], float],
) -> list[Run]:
    """Our runs that a line is held against; empty if there are none that count.

    The bare loop is held against the best of our routes.
    """
    sides = [
        runs
        for key, runs in all_runs.items()
        if key[0] == OURS
        and (key[1], key[3]) == (run.model, run.concurrency)
        and not any(each.problems for each in runs)
    ]
    if run.route == LOOP:
        best = min if run.concurrency == 1 else max
        return best(sides, key=lambda runs: median(map(value, runs)), default=[])
    wanted = run.like or run.route
    return next((runs for runs in sides if runs[0].route == wanted), [])
