"""From runs to rows: medians, ratios, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from .cells import TAIL, TAIL_CELL, Cell, Goal
from .measure import Run
from .runner import Outcome
from .sluice import NAME as SLUICE

UNEVEN = 0.9
"""Below this share of requests in flight, a row gets a note."""


@dataclass
class Side:
    """One contender over all rounds: medians. Times in microseconds.

    ``busy`` is the mean number of requests in flight over the concurrency asked for. It is
    below 1 when connections are served unevenly, so that at the end of a run, whose requests
    are dealt out to the connections beforehand, only the slow ones are still at work.
    """

    label: str
    rate: float
    mean_us: float
    p50_us: float | None
    p99_us: float | None
    busy: float


@dataclass
class Row:
    """One line of the table."""

    cell: str
    figure: str
    ours: Side | None
    rival: Side | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    goal: Goal | None
    verdict: str
    notes: list[str] = field(default_factory=list)


@dataclass
class Figure:
    """A figure of the gateway alone."""

    name: str
    value: float | None
    unit: str
    goal: Goal | None = None
    detail: str = ""

    @property
    def verdict(self) -> str:
        """``AIM``, ``PASS``, ``MISS``, ``not measured``, or nothing without a goal."""
        if self.value is None:
            return "not measured"
        return self.goal.verdict(self.value) if self.goal else ""


def _value(run: Run, figure: str) -> float:
    return run.rate if figure == "rate" else run.result.mean_us


def _side(cell: Cell, label: str, runs: Sequence[Run], logged: Sequence[Run]) -> Side:
    """Medians of the runs that count; percentiles come from the logged ones."""
    timed = [run.result for run in [*logged, *runs] if run.valid and run.result.p50_us is not None]
    return Side(
        label,
        median(run.rate for run in runs),
        median(run.result.mean_us for run in runs),
        median(result.p50_us or 0.0 for result in timed) if timed else None,
        median(result.p99_us or 0.0 for result in timed) if timed else None,
        median(run.result.per_second * run.result.mean_us * 1e-6 for run in runs)
        / cell.shape.concurrency,
    )


def rows(cells: Sequence[Cell], outcome: Outcome) -> list[Row]:
    """One row a cell. A contender counts only if every one of its runs does."""
    return [_row(cell, outcome) for cell in cells]


def _row(cell: Cell, outcome: Outcome) -> Row:
    by_label: dict[str, list[Run]] = {}
    for run in outcome.runs:
        if run.cell == cell.name:
            by_label.setdefault(run.contender, []).append(run)
    notes, sides = [], {}
    for label, runs in by_label.items():
        logged = [
            run
            for run in outcome.percentile_runs
            if run.cell == cell.name and run.contender == label
        ]
        for run in [*runs, *logged]:
            notes += [f"{label}, round {run.round}: {problem}" for problem in run.problems]
        if all(run.valid for run in runs):
            sides[label] = _side(cell, label, runs, logged)
    ours = sides.get(SLUICE)
    rivals = [side for label, side in sides.items() if label != SLUICE]
    rival = _best(rivals, cell.figure)
    row = Row(cell.name, cell.figure, ours, rival, None, None, None, cell.goal, "", notes)
    wanted = SLUICE in by_label and len(by_label) > 1
    if not ours or not rival:
        invalid = wanted or any(not sides.get(label) for label in by_label)
        row.verdict = "INVALID" if invalid else ""
        return row
    ratios = [
        _value(mine, cell.figure) / _value(theirs, cell.figure)
        for mine, theirs in zip(by_label[SLUICE], by_label[rival.label], strict=True)
    ]
    row.notes += [
        f"{side.label}: only {side.busy:.0%} of the connections at work on average "
        "(served unevenly), which lowers its requests/s"
        for side in (ours, rival)
        if side.busy < UNEVEN
    ]
    row.ratio, row.ratio_low, row.ratio_high = median(ratios), min(ratios), max(ratios)
    if cell.goal:
        row.verdict = cell.goal.verdict(row.ratio)
    return row


def _best(sides: Sequence[Side], figure: str) -> Side | None:
    """The rival that is hardest to beat: most requests/s, or smallest mean latency."""
    if not sides:
        return None
    if figure == "rate":
        return max(sides, key=lambda side: side.rate)
    return min(sides, key=lambda side: side.mean_us)


def tail(outcome: Outcome) -> list[Figure]:
    """p99 over p50 at gRPC ``add`` c=64 (4 x 16), of each round's logged run."""
    found = [
        run.result
        for run in outcome.percentile_runs
        if run.cell == TAIL_CELL and run.contender == SLUICE and run.valid
    ]
    ratios = [result.p99_us / result.p50_us for result in found if result.p99_us and result.p50_us]
    if not ratios:
        return []
    detail = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds"
    return [Figure(f"p99 over p50 at {TAIL_CELL}", median(ratios), "", TAIL, detail)]
