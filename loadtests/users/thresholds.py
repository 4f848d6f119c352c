"""What a run must keep to: ``--fail-p99 50ms``, ``--fail-error-rate 0.1%``, ``--fail-share 2%``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.errors import BenchError
from loadtests.units import MILLISECONDS, quantity, share
from loadtests.users.shares import Row
from loadtests.users.tally import Window


def milliseconds(text: str) -> float:
    """``50ms``, ``1.5s``, ``800us``. Raises `ValueError`, saying what to type."""
    value = quantity(text, MILLISECONDS)
    if not value:
        raise ValueError(f"'{text}' is no time with its unit, such as 50ms, 1.5s or 800us")
    return value


def fraction(text: str) -> float:
    """``0.1%`` or ``0.001``, as a number from 0 to 1. Raises `ValueError`, saying what to type."""
    value = share(text)
    if value is None or value > 1:
        raise ValueError(f"'{text}' is no share, such as 0.1% or 0.001")
    return value


def per_second(text: str) -> float:
    """``500`` or ``500/s``. Raises `ValueError`, saying what to type."""
    try:
        value = float(text.strip().removesuffix("/s"))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"'{text}' is no rate, such as 500 (requests a second)")
    return value


@dataclass(frozen=True)
class Thresholds:
    """What a run must keep to; ``None``: whatever it is."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    error_rate: float | None = None
    share: float | None = None
    """How far a version's share may be from the declared one, 0 to 1."""
    rate: float | None = None
    """Requests a second that must be answered well, at least."""

    def __post_init__(self) -> None:
        if self.share is not None and self.share >= 1:
            raise BenchError("--fail-share 100% can never fail; give less, such as 2%")

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return self != Thresholds()

    def judge(self, total: Window, rows: Sequence[Row], seconds: float) -> list[tuple[bool, str]]:
        """For each of them whether it was kept, and a line that says so. What cannot be judged
        was not kept."""
        found: list[tuple[bool, str]] = []
        for name, percentile, bound in (
            ("p50", 50.0, self.p50_ms),
            ("p95", 95.0, self.p95_ms),
            ("p99", 99.0, self.p99_ms),
        ):
            if bound is None:
                continue
            value = total.at_ms(percentile)
            if value is None:
                found.append((False, f"{name}: nothing was answered, at most {bound:g} ms wanted"))
            else:
                found.append((value <= bound, f"{name} {value:.2f} ms, at most {bound:g} ms"))
        if self.error_rate is not None:
            if total.requests:
                kept = total.error_rate <= self.error_rate
                text = f"{total.failed} of {total.requests} ({total.error_rate:.3%})"
            else:
                kept, text = False, "no requests"
            found.append((kept, f"errors {text}, at most {self.error_rate:.3%}"))
        if self.rate is not None:
            rate = total.ok / seconds if seconds > 0 else 0.0
            found.append((rate >= self.rate, f"{rate:.1f} requests/s, at least {self.rate:g}"))
        if self.share is not None:
            found += _shares(rows, self.share)
        return found


def _shares(rows: Sequence[Row], tolerance: float) -> list[tuple[bool, str]]:
    judged = [row for row in rows if row.expected is not None]
    if not judged:
        return [(False, "shares: the server declares no split, so they cannot be judged")]
    if any(row.moved for row in judged):
        return [(False, "shares: the split changed during the run, so they cannot be judged")]
    found = []
    for model in sorted({row.model for row in judged}):
        own = [row for row in judged if row.model == model]
        if not any(row.requests for row in own):
            found.append((False, f"shares of {model}: nothing was answered"))
            continue
        for row in own:
            expected = row.expected or 0.0
            text = (
                f"{model}/{row.version} has {row.actual:.1%} ({row.low:.1%} to {row.high:.1%}), "
                f"{expected:.1%} declared, at most {tolerance:.1%} apart"
            )
            found.append((abs(row.actual - expected) <= tolerance, text))
    return found
