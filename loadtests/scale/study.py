"""What was measured against size: studies of measures, and what their slopes say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

import msgspec

from loadtests.scale.fit import Fit, fit, flat, grown, stretches, typical

FORMAT = "sluicegate-scale/1"
OFFERED = "offered load over capacity"
"""The size of studies of overload, which have checks in place of slopes."""
SENT, GOODPUT, TAIL = "offered", "goodput", "p99 of accepted requests"
REFUSED, LATE, FAILED = "refused", "deadline passed", "failed otherwise"
MEMORY = "largest resident memory"
"""The measures of these."""


class Stretch(msgspec.Struct, frozen=True):
    """What is known of a cost between two sizes."""

    cost: Fit
    """The slope of the cost as it is."""
    added: Fit | None
    """The exponent of what is added to its constant part, which would else hide a curve; `None`
    where nothing is, or where there are too few readings to say."""
    flat: bool
    """Whether the cost does not rise over the stretch."""

    @property
    def superlinear(self) -> bool:
        """Whether it certainly grows faster than the size."""
        return self.cost.superlinear or (self.added is not None and self.added.superlinear)

    @property
    def undecided(self) -> bool:
        """Whether it may, and may not."""
        if self.superlinear:
            return False
        if self.cost.error is None:
            return True
        return not self.flat if self.added is None else self.added.undecided

    @property
    def words(self) -> str:
        """As `Fit.words`, of both."""
        if self.superlinear:
            return "worse than linear"
        if self.added is not None and (self.added.undecided or self.cost.error is None):
            return self.added.words
        if self.undecided:
            return "too few points to say"
        # The line through a flat cost may have a wide error; it does not rise all the same.
        return "constant" if self.flat and self.cost.undecided else self.cost.words


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
    def stretches(self) -> list[Stretch]:
        """Each of its stretches, judged; none where nothing is to be."""
        if not self.judged:
            return []
        return [
            Stretch(fit(inside), grown(inside), flat(inside))
            for inside in stretches(self.costs, self.cuts)
        ]

    @property
    def medians(self) -> list[tuple[float, float]]:
        """One value a size, in order of size."""
        return list(typical(self.points).items())


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
    unmeasured: str = ""
    """Why nothing can be said of it; then the value is none."""

    @property
    def met(self) -> bool:
        """Whether it holds."""
        if self.unmeasured:
            return False
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
    skipped: list[str] = []
    """What there was no time for."""
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
            found = [
                each
                for stretch in measure.stretches
                for each in (stretch.cost, stretch.added)
                if each is not None and each.superlinear
            ]
            if found:
                worst = max(found, key=lambda each: each.confident)
                lines.append(
                    f"{self.name}: {measure.name} grows as {self.size} to the power of "
                    f"{slope_text(worst)} from {worst.low:g} to {worst.high:g}"
                )
        for check in self.checks:
            if not check.met and not check.explained and not check.unmeasured:
                sign = "≤" if check.at_most else "≥"
                unit = f" {check.unit}" if check.unit else ""
                lines.append(
                    f"{self.name}: {check.name} is {check.value:.4g}{unit}, "
                    f"and should be {sign} {check.bound:.4g}{unit}"
                )
        return lines

    @property
    def undecided(self) -> list[str]:
        """What may be worse than it may be, for all that was measured, a line each."""
        lines = [f"{self.name}: {each}" for each in self.skipped]
        if self.limited:
            lines.append(f"{self.name}: the client was the bottleneck: {', '.join(self.limited)}")
        for measure in self.measures:
            if measure.judged and not measure.stretches:
                lines.append(f"{self.name}: {measure.name}: fewer than two sizes were measured")
            lines += [
                f"{self.name}: {measure.name} from {each.cost.low:g} to {each.cost.high:g}: "
                f"{each.words}"
                for each in measure.stretches
                if each.undecided
            ]
        reasons: dict[str, list[str]] = {}
        for check in self.checks:
            if check.unmeasured:
                reasons.setdefault(check.unmeasured, []).append(check.name)
        lines += [
            f"{self.name}: not measured, {why}: {', '.join(checks)}"
            for why, checks in reasons.items()
        ]
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

    @property
    def undecided(self) -> list[str]:
        """What nothing can be said of."""
        return [line for study in self.studies for line in study.undecided]


def slope_text(found: Fit) -> str:
    """``0.98 ± 0.02``: the slope and its standard error; ``0.98 (0.95 to 1.02)``: its bounds."""
    if found.bounds is not None:
        low, high = found.bounds
        ends = f"{low:.2f} to {high:.2f}"
        if not math.isfinite(low):
            ends = f"below {high:.2f}" if math.isfinite(high) else "anything"
        elif not math.isfinite(high):
            ends = f"above {low:.2f}"
        return f"{found.slope:.2f} ({ends})"
    if found.error is None:
        return f"{found.slope:.2f}"
    return f"{found.slope:.2f} ± {found.error:.2f}"


def sizes_of(measures: Iterable[Measure]) -> list[float]:
    """Every size that any of them was measured at."""
    return sorted({size for measure in measures for size, _ in measure.points})
