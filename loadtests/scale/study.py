"""What was measured against size: studies of measures, and what their slopes say."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

import msgspec

from loadtests.scale.fit import Fit, fit, fits

FORMAT = "sluicegate-scale/1"
OFFERED = "offered load over capacity"
"""The size of studies of overload, which have checks in place of slopes."""
SENT, GOODPUT, TAIL = "offered", "goodput", "p99 of accepted requests"
REFUSED, LATE, FAILED = "refused", "deadline passed", "failed otherwise"
MEMORY = "largest resident memory"
"""The measures of these."""
STANDS_OUT = 0.5
"""Share of the smallest size's cost by which another must exceed it, for the difference to be more
than noise."""


class Measure(msgspec.Struct):
    """One quantity at several sizes. Several readings at one size are points of their own."""

    name: str
    unit: str
    points: list[tuple[float, float]] = []
    rate: bool = False
    """More is better: the cost whose slope is judged is one over it (time a request)."""
    grain: float = 0.0
    """Smallest value that can be read; anything below counts as it."""
    cuts: tuple[float, ...] = ()
    """Sizes at which one stretch ends and the next begins."""
    judged: bool = True
    """Whether growing faster than the size is a finding."""
    explained: str = ""
    """Why a slope above 1 is as it should be; such a one is shown, and fails nothing."""

    def add(self, size: float, value: float) -> None:
        """One more reading."""
        self.points.append((size, value))

    @property
    def costs(self) -> list[tuple[float, float]]:
        """Size, and what rises when things get worse; all above 0."""
        found = []
        for size, value in self.points:
            cost = max(value, self.grain)
            if cost > 0:
                found.append((size, 1 / cost if self.rate else cost))
        return found

    @property
    def fits(self) -> list[Fit]:
        """The slope of each stretch."""
        return fits(self.costs, self.cuts)

    @property
    def growth(self) -> Fit | None:
        """The slope of what is added to the cost of the smallest size, against what is added to the
        size: 1 for any constant part and any price of each, which would else hide a curve.

        Of the sizes at which it stands out from that cost; `None` where these are fewer than three.
        """
        costs = self.costs
        if not costs:
            return None
        first = min(size for size, _ in costs)
        base = median(cost for size, cost in costs if size == first)
        added = [
            (size - first, cost - base) for size, cost in costs if cost >= base * (1 + STANDS_OUT)
        ]
        return fit(added) if len({size for size, _ in added if size > 0}) >= 3 else None

    @property
    def medians(self) -> list[tuple[float, float]]:
        """One value a size, in order of size."""
        sizes = sorted({size for size, _ in self.points})
        return [(at, median(y for x, y in self.points if x == at)) for at in sizes]

    @property
    def flagged(self) -> list[Fit]:
        """Stretches that are worse than linear and that nothing explains."""
        if not self.judged or self.explained:
            return []
        growth = self.growth
        found = [*self.fits, growth] if growth is not None else self.fits
        return [each for each in found if each.superlinear]


class Comparison(msgspec.Struct):
    """Two ways measured in turn, as ratios of one over the other."""

    name: str
    ratios: list[float]
    detail: str = ""

    @property
    def ratio(self) -> float:
        """Their median."""
        return median(self.ratios)


class Check(msgspec.Struct):
    """Something that must hold."""

    name: str
    value: float
    unit: str
    bound: float
    at_most: bool = True
    explained: str = ""
    """Why a miss is as it should be here."""

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


class Study(msgspec.Struct):
    """One thing that grows, and everything that was measured against it."""

    name: str
    """Of its module, and of its files."""
    title: str
    size: str
    """What the sizes are: ``loaded models``."""
    measures: list[Measure] = []
    comparisons: list[Comparison] = []
    checks: list[Check] = []
    notes: list[str] = []
    capacity: float = 0.0
    """Of an overload: requests/s that count as 1."""
    limited: list[str] = []
    """Runs in which the client was the bottleneck, so that they say more about it."""
    others: float = 0.0
    """Cores that other processes of the machine used during a run, at most."""
    seconds: float = 0.0

    def measure(self, name: str, unit: str, **how: object) -> Measure:
        """A new, empty measure of this study."""
        made = msgspec.convert({"name": name, "unit": unit, **how}, Measure)
        self.measures.append(made)
        return made

    def note(self, text: str) -> None:
        """A remark that the report shows once."""
        if text and text not in self.notes:
            self.notes.append(text)

    @property
    def bad(self) -> list[str]:
        """What is worse than it may be, a line each; empty: nothing."""
        lines = []
        for measure in self.measures:
            if flagged := measure.flagged:
                worst = max(flagged, key=lambda found: found.confident)
                lines.append(
                    f"{self.name}: {measure.name} grows as {self.size} to the power of "
                    f"{slope_text(worst)} from {worst.low:g} to {worst.high:g}"
                )
        for check in self.checks:
            if not check.met and not check.explained:
                sign = "≤" if check.at_most else "≥"
                unit = f" {check.unit}" if check.unit else ""
                lines.append(
                    f"{self.name}: {check.name} is {check.value:.4g}{unit}, "
                    f"and should be {sign} {check.bound:.4g}{unit}"
                )
        return lines


class Report(msgspec.Struct):
    """A whole run."""

    started: str
    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    studies: list[Study]
    format: str = FORMAT

    @property
    def bad(self) -> list[str]:
        """What is worse than it may be in any of the studies."""
        return [line for study in self.studies for line in study.bad]


def slope_text(found: Fit) -> str:
    """``0.98 ± 0.02``: the slope and its standard error."""
    if found.error is None:
        return f"{found.slope:.2f}"
    return f"{found.slope:.2f} ± {found.error:.2f}"


def sizes_of(measures: Iterable[Measure]) -> list[float]:
    """Every size that any of them was measured at."""
    return sorted({size for measure in measures for size, _ in measure.points})
