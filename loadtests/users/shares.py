"""Which version answered how often, beside how often it should have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from loadtests.bench.confidence import wilson
from loadtests.users.tally import UNKNOWN, Key, Window


@dataclass(frozen=True)
class Declared:
    """What the server says of a model, beside the requests."""

    split: Mapping[str, float] = field(default_factory=dict)
    """Version → share, 0 to 1; empty: not known."""
    batches: Mapping[str, float] = field(default_factory=dict)
    """Version → rows of a batch, on average; those that executed nothing are missing."""
    moved: bool = False
    """The split was another one at the beginning: expected and actual cannot be compared."""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """One version of a model."""

    model: str
    version: str
    """``-``: the answers did not say."""
    requests: int
    """Answered well."""
    failed: int
    expected: float | None
    """Share of the model's answers, 0 to 1; ``None``: not known."""
    actual: float
    low: float
    """95 % confidence of ``actual``: both ends."""
    high: float
    p50_ms: float | None
    p99_ms: float | None
    batch_rows: float | None
    moved: bool = False

    @property
    def judged(self) -> str:
        """Whether expected and actual go together, in a word."""
        if self.expected is None:
            return ""
        if self.moved:
            return "split changed"
        return "as expected" if self.low <= self.expected <= self.high else "differs"


def rows_of(counted: Mapping[Key, Window], declared: Mapping[str, Declared]) -> list[Row]:
    """All versions that answered or should have, by model and version. A request that failed
    without saying where counts for the version ``-``."""
    found: list[Row] = []
    for model in sorted({key.model for key in counted} | set(declared)):
        says = declared.get(model, Declared())
        windows = {key.version: each for key, each in counted.items() if key.model == model}
        total = sum(each.ok for version, each in windows.items() if version != UNKNOWN)
        for version in sorted({*windows, *says.split}, key=_natural):
            window = windows.get(version) or Window()
            low, high = wilson(window.ok, total) if version != UNKNOWN else (0.0, 0.0)
            expected = says.split.get(version, 0.0) if says.split and version else None
            found.append(
                Row(
                    model,
                    version or "-",
                    window.ok,
                    window.failed,
                    expected,
                    window.ok / total if total and version else 0.0,
                    low,
                    high,
                    window.at_ms(50),
                    window.at_ms(99),
                    says.batches.get(version),
                    says.moved,
                )
            )
    return found


def _natural(version: str) -> tuple[int, int, str]:
    return (0, int(version), "") if version.isdecimal() else (1, 0, version)


# --- shown

COLUMNS: Final = (
    ("model", "Model"), ("version", "Version"), ("requests", "Requests"), ("failed", "Failed"),
    ("expected", "Expected"), ("actual", "Actual"), ("confidence", "95 %"), ("verdict", "Verdict"),
    ("p50", "p50 ms"), ("p99", "p99 ms"), ("batch", "Rows a batch"),
)  # fmt: skip
_LEFT: Final = ("model", "version", "verdict")


def as_cells(row: Row) -> dict[str, str | int]:
    """What a person reads, by the names of `COLUMNS`."""
    known = row.version != "-"
    return {
        "model": row.model,
        "version": row.version,
        "requests": row.requests,
        "failed": row.failed,
        "expected": "" if row.expected is None else f"{row.expected:.1%}",
        "actual": f"{row.actual:.1%}" if known else "",
        "confidence": f"{row.low:.1%} to {row.high:.1%}" if known else "",
        "verdict": row.judged,
        "p50": _number(row.p50_ms),
        "p99": _number(row.p99_ms),
        "batch": _number(row.batch_rows),
    }


def as_tree(row: Row) -> dict[str, Any]:
    """What a program reads."""
    return {
        "model": row.model,
        "version": row.version,
        "requests": row.requests,
        "failed": row.failed,
        "expected_share": row.expected,
        "actual_share": row.actual,
        "confidence": [row.low, row.high],
        "verdict": row.judged,
        "p50_ms": row.p50_ms,
        "p99_ms": row.p99_ms,
        "batch_rows": row.batch_rows,
    }


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of plain text."""
    cells = [{name: str(value) for name, value in as_cells(row).items()} for row in rows]
    widths = (
        {name: max(len(title), *(len(each[name]) for each in cells)) for name, title in COLUMNS}
        if cells
        else {}
    )

    def line(values: Mapping[str, str]) -> str:
        parts = [
            values[name].ljust(width) if name in _LEFT else values[name].rjust(width)
            for name, width in widths.items()
        ]
        return "  ".join(parts).rstrip()

    return [line(dict(COLUMNS)), *map(line, cells)] if cells else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"
