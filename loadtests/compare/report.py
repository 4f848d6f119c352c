"""The table, in the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .cells import Goal
from .runner import Outcome, Plan
from .summary import Figure, Row, Side


@dataclass
class Report:
    """Everything one call found out."""

    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    servers: dict[str, str]
    """Name of each side → the version it told."""
    ready_s: dict[str, float]
    """Name of each side → seconds from exec to ready, with the models of the comparison."""
    plan: Plan
    outcome: Outcome = field(default_factory=Outcome)
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def _time(value_us: float | None) -> str:
    if value_us is None:
        return "–"
    return f"{value_us:,.0f} µs" if value_us < 10_000 else f"{value_us / 1000:,.1f} ms"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _bounds(goal: Goal | None) -> tuple[str, str]:
    return goal.describe() if goal else ("", "")


def _side(side: Side | None, figure: str) -> tuple[str, str]:
    """The figure that counts, and p50 / p99."""
    if side is None:
        return "–", "–"
    value = _rate(side.rate) + "/s" if figure == "rate" else _time(side.mean_us)
    both = "–" if side.p50_us is None else f"{_time(side.p50_us)} / {_time(side.p99_us)}"
    return value, both


CELL_HEAD = (
    "cell",
    "figure",
    "sluicegate",
    "rival",
    "rival's",
    "ratio (min to max)",
    "at least",
    "aim",
    "verdict",
    "ours p50 / p99",
    "rival p50 / p99",
)


def _cell_line(row: Row) -> tuple[str, ...]:
    ours, ours_tail = _side(row.ours, row.figure)
    theirs, theirs_tail = _side(row.rival, row.figure)
    ratio = "–"
    if row.ratio is not None:
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
    figure = "requests/s" if row.figure == "rate" else "mean latency"
    rival = row.rival.label if row.rival else "–"
    bounds = _bounds(row.goal)
    return (
        *(row.cell, figure, ours, rival, theirs, ratio),
        *(*bounds, row.verdict, ours_tail, theirs_tail),
    )


def _figure_line(figure: Figure) -> tuple[str, ...]:
    value = "–" if figure.value is None else f"{figure.value:,.2f} {figure.unit}".strip()
    return (figure.name, value, *_bounds(figure.goal), figure.verdict, figure.detail)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with even columns, so that it reads well in a terminal too."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def one(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([one(head), rule, *map(one, lines)])


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [f"# Comparison of {report.machine.get('date', '')}", ""]
    facts = {**report.machine, **report.versions, **report.servers}
    parts += [f"- {name}: {value}" for name, value in facts.items()]
    parts += [f"- {name}, exec to ready: {s:.2f} s" for name, s in report.ready_s.items()]
    plan = report.plan
    parts += [
        f"- {plan.rounds} rounds of runs of about {plan.duration_s:g} s, {plan.threads} thread(s) "
        "a session on every side; h2load runs on the same cores as the servers",
        f"- command: `{report.command}`",
        "",
    ]
    if report.rows:
        parts += [table(CELL_HEAD, [_cell_line(row) for row in report.rows]), ""]
        notes = [f"- {row.cell}: {note}" for row in report.rows for note in row.notes]
        if notes:
            parts += ["Notes:", "", *notes, ""]
    if report.outcome.bare_batches:
        rates = report.outcome.bare_batches.items()
        text = ", ".join(f"{batch}: {_rate(rate)}" for batch, rate in rates)
        parts += [f"Bare onnxruntime loop, batch size: rows/s: {text}", ""]
    if report.figures:
        head = ("figure", "value", "at least", "aim", "verdict", "detail")
        parts += [table(head, [_figure_line(figure) for figure in report.figures]), ""]
    return "\n".join(parts)


def _without_nan(value: object) -> object:
    """The same document with ``null`` for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write(report: Report, folder: Path) -> list[Path]:
    """Writes Markdown and JSON; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = report.machine.get("date", "now").replace(" UTC", "").replace(":", "")
    stem = "compare-" + stem.replace(" ", "-")
    text, data = folder / f"{stem}.md", folder / f"{stem}.json"
    text.write_text(markdown(report), encoding="utf-8")
    plain = _without_nan(asdict(report))
    data.write_text(json.dumps(plain, indent=1, default=str), encoding="utf-8")
    return [text, data]
