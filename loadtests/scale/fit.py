"""How a cost grows with size: the slope of a line through the points on log-log axes.

A cost that is proportional to ``x ** k`` is a straight line of slope ``k`` there: 0 is constant, 1
is linear. Costs with a constant part have a slope below 1 that rises towards 1, so that a slope
*above* 1 always means something: the cost grows faster than what causes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import msgspec

CONSTANT: Final = 0.1
"""Slopes nearer to 0 than this count as none: a tenth is a factor of 2 over three decades."""
MARGIN: Final = 0.05
"""How far above 1 a slope must be, beyond its error, to be worse than linear: readings of memory
and clocks have a grain, which a fit through few points takes for precision."""
LINEAR: Final = 0.85
"""From here on a slope is called linear: a cost with a small constant part has such a one."""
UNSURE: Final = 0.3
"""With a standard error above this, the points say nothing about the slope."""
_T95: Final = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812,
    1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725,
)  # fmt: skip
"""Student's t, one-sided 95 %, for 1 to 20 degrees of freedom."""


class Fit(msgspec.Struct, frozen=True):
    """The slope over one stretch of sizes."""

    low: float
    """The smallest size of the stretch; ``high`` the largest."""
    high: float
    points: int
    slope: float
    error: float | None
    """Standard error of the slope; ``None``: there are not enough points to say."""

    @property
    def confident(self) -> float:
        """What the slope is above, with 95 % confidence."""
        return self.slope - self._half()

    @property
    def at_most(self) -> float:
        """What the slope is below, with 95 % confidence."""
        return self.slope + self._half()

    def _half(self) -> float:
        if self.error is None:
            return math.inf
        return t95(self.points - 2) * self.error

    @property
    def superlinear(self) -> bool:
        """Whether the cost certainly grows faster than the size."""
        return self.confident > 1 + MARGIN

    @property
    def words(self) -> str:
        """``constant``, ``linear``, ``worse than linear``, ...

        A slope that is below 1 is what its estimate says, so that noise calls nothing worse than it
        is; ``worse than linear`` needs confidence.
        """
        if self.error is None:
            return "too few points to say"
        if self.superlinear:
            return "worse than linear"
        if self.error > UNSURE:
            return "too uneven to say"
        if self.slope < -CONSTANT:
            return "falling"
        if self.slope <= CONSTANT:
            return "constant"
        return "less than linear" if self.slope < LINEAR else "linear"


def t95(freedom: int) -> float:
    """Student's t for ``freedom`` ≥ 1 degrees of freedom, one-sided 95 %."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    return NormalDist().inv_cdf(0.95) * (1 + 1 / freedom)


def fit(points: Sequence[tuple[float, float]]) -> Fit:
    """Least squares through the logarithms of (size, cost), all above 0; a size may come twice.

    Raises `ValueError` for points that have no logarithm, or for a single size.
    """
    if any(not (x > 0 and y > 0 and math.isfinite(x * y)) for x, y in points):
        raise ValueError("sizes and costs must be finite and above 0")
    xs = [math.log(x) for x, _ in points]
    ys = [math.log(y) for _, y in points]
    if len(set(xs)) < 2:
        raise ValueError("a slope needs two sizes")
    x_mean, y_mean = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = math.fsum((x - x_mean) ** 2 for x in xs)
    slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    left = math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    # Two sizes only, however often measured, cannot show a curve: no error is claimed.
    freedom = len(points) - 2
    error = math.sqrt(left / freedom / spread) if freedom > 0 and len(set(xs)) > 2 else None
    sizes = [x for x, _ in points]
    return Fit(min(sizes), max(sizes), len(points), slope, error)


def fits(points: Sequence[tuple[float, float]], cuts: Sequence[float] = ()) -> list[Fit]:
    """One fit for each stretch between the ``cuts``; a point on a cut belongs to both sides.

    Stretches with fewer than two sizes, and points with a cost of 0 or less, are left out.
    """
    edges = [-math.inf, *sorted(cuts), math.inf]
    found = []
    for low, high in pairwise(edges):
        inside = [(x, y) for x, y in points if low <= x <= high and y > 0]
        if len({x for x, _ in inside}) >= 2:
            found.append(fit(inside))
    return found
