"""How a cost grows with size: the slope of a line through the points on log-log axes.

A cost that is proportional to ``x ** k`` is a straight line of slope ``k`` there: 0 is constant, 1
is linear. Costs with a constant part have a slope below 1 that rises towards 1, so that a slope
*above* 1 always means something: the cost grows faster than what causes it. One *below* 1 may hide
a curve behind the constant part: `grown` fits ``a + b * x ** k`` for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist, median
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

CONSTANT: Final = 0.1
"""Slopes nearer to 0 than this count as none: a tenth is a factor of 2 over three decades."""
MARGIN: Final = 0.05
"""How far above 1 a slope must be, beyond its error, to be worse than linear: readings of memory
and clocks have a grain, which a fit through few points takes for precision."""
LINEAR: Final = 0.85
"""From here on a slope is called linear: a cost with a small constant part has such a one."""
CLOSE: Final = 1.15
"""What an exponent must certainly be below, for more than linear growth to be ruled out."""
FLAT: Final = 1.25
"""A cost that never exceeds that of the smallest size by more than this has no growth to judge."""
GRAIN: Final = 1e-3
"""Share of a cost to which readings are right at best, however well they agree."""
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
    bounds: tuple[float, float] | None = None
    """What the slope is above and what it is below, each with 95 % confidence, where that is not
    the same way off on both sides."""

    @property
    def confident(self) -> float:
        """What the slope is above, with 95 % confidence."""
        return self.bounds[0] if self.bounds is not None else self.slope - self._half()

    @property
    def at_most(self) -> float:
        """What the slope is below, with 95 % confidence."""
        return self.bounds[1] if self.bounds is not None else self.slope + self._half()

    def _half(self) -> float:
        if self.error is None:
            return math.inf
        return t95(self.points - 2) * self.error

    @property
    def superlinear(self) -> bool:
        """Whether the cost certainly grows faster than the size."""
        return self.confident > 1 + MARGIN

    @property
    def undecided(self) -> bool:
        """Whether it may grow faster than the size, and may not."""
        return not self.superlinear and self.at_most >= CLOSE

    @property
    def words(self) -> str:
        """``constant``, ``linear``, ``worse than linear``, ...; all but the last only where
        anything worse is ruled out."""
        if self.error is None and self.bounds is None:
            return "too few points to say"
        if self.superlinear:
            return "worse than linear"
        if self.undecided and self.slope >= LINEAR:
            return "perhaps worse than linear"
        if self.undecided or (self.error or 0) > UNSURE:
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


def stretches(
    points: Sequence[tuple[float, float]], cuts: Sequence[float] = ()
) -> list[list[tuple[float, float]]]:
    """The points between the ``cuts``; one on a cut belongs to both sides.

    Stretches with fewer than two sizes, and points with a cost of 0 or less, are left out.
    """
    edges = [-math.inf, *sorted(cuts), math.inf]
    found = []
    for low, high in pairwise(edges):
        inside = [(x, y) for x, y in points if low <= x <= high and y > 0]
        if len({x for x, _ in inside}) >= 2:
            found.append(inside)
    return found


def fits(points: Sequence[tuple[float, float]], cuts: Sequence[float] = ()) -> list[Fit]:
    """One fit for each of the `stretches`."""
    return [fit(inside) for inside in stretches(points, cuts)]


def typical(points: Sequence[tuple[float, float]]) -> dict[float, float]:
    """The median of each size, in order of size."""
    sizes = sorted({x for x, _ in points})
    return {size: median(y for x, y in points if x == size) for size in sizes}


def flat(points: Sequence[tuple[float, float]]) -> bool:
    """Whether no size costs more than `FLAT` times what the smallest does."""
    middle = list(typical(points).values())
    return max(middle) <= FLAT * middle[0]


def grown(points: Sequence[tuple[float, float]]) -> Fit | None:
    """``k`` of ``a + b * x ** k`` (``a`` and ``b`` at least 0) with its 95 % bounds: how a cost
    grows whatever its constant part.

    Residuals are relative to the median of each size. The bounds are those ``k`` at which the best
    ``a`` and ``b`` fit worse than may be by chance (profile likelihood); infinite where every
    larger one fits, too. `None` for costs that are flat, and for fewer than four readings or three
    sizes, through which any such curve can be drawn.
    """
    middle = typical(points)
    freedom = len(points) - 3
    if len(middle) < 3 or freedom < 1 or flat(points):
        return None
    scale = np.array([middle[x] for x, _ in points])
    cost = np.array([y for _, y in points]) / scale
    sizes = np.array([x for x, _ in points]) / max(middle)
    lost = _lost(cost, 1 / scale, sizes ** POWERS[:, np.newaxis] / scale)
    best = int(lost.argmin())
    least = lost[best] + len(points) * GRAIN**2
    inside = np.flatnonzero(lost <= least * (1 + t95(freedom) ** 2 / freedom))
    # Any three sizes lie on such a curve, whatever made one of them dearer: they prove none.
    low = -math.inf if inside[0] == 0 or len(middle) == 3 else float(POWERS[inside[0]])
    high = math.inf if inside[-1] == len(POWERS) - 1 else float(POWERS[inside[-1]])
    return Fit(min(middle), max(middle), len(points), float(POWERS[best]), None, (low, high))


POWERS: Final = np.arange(0.02, 5.0, 0.01)
"""That `grown` tries."""
_Floats = NDArray[np.float64]


def _lost(cost: _Floats, one: _Floats, power: _Floats) -> _Floats:
    """The least sum of squares of ``cost - a * one - b * power``, for each row of ``power``."""
    aa, bb, ab = one @ one, (power * power).sum(1), power @ one
    a_side, b_side = one @ cost, power @ cost
    determinant = np.maximum(aa * bb - ab * ab, 1e-12 * aa * bb)
    a = (a_side * bb - b_side * ab) / determinant
    b = (b_side * aa - a_side * ab) / determinant
    # Where one would be below 0, it is best at 0.
    b = np.where(a < 0, b_side / bb, np.maximum(b, 0))
    a = np.where(a < 0, 0, np.where(b > 0, a, a_side / aa))
    left = cost - a[:, np.newaxis] * one - b[:, np.newaxis] * power
    return np.asarray((left * left).sum(1))
