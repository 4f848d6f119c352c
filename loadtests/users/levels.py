"""How many users there are at which time, and when a server is saturated.

Knows nothing of locust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from loadtests.errors import BenchError
from loadtests.units import SECONDS, quantity
from loadtests.users.tally import Window
from loadtests.users.thresholds import fraction, milliseconds

FLAT: Final = "goodput rises no more"
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "constant": (),
    "ramp": ("from",),
    "spike": ("base", "at", "for", "every"),
    "diurnal": ("base", "period"),
    "step": ("start", "step", "hold", "gain", "error-rate", "p99"),
}


def parse_shape(text: str) -> tuple[str, dict[str, str]]:
    """``spike:base=5,at=20s`` → its name and keys. Raises `BenchError`, naming what is known."""
    name, _, rest = text.partition(":")
    if name not in KEYS:
        raise BenchError(f"--shape has no '{name}'; known: {', '.join(KEYS)}")
    found: dict[str, str] = {}
    for each in filter(None, rest.split(",")):
        key, equals, value = each.strip().partition("=")
        if key not in KEYS[name]:
            known = ", ".join(KEYS[name]) or "none"
            raise BenchError(f"--shape {name} has no key '{key}'; known: {known}")
        if not equals or not value:
            raise BenchError(f"--shape {name}: '{key}' needs a value, as in {key}=10")
        found[key] = value
    return name, found


def whole(keys: Mapping[str, str], key: str, default: int) -> int:
    """A number of users, at least 1. Raises `BenchError`."""
    text = keys.get(key, str(default))
    if not text.isdecimal() or not int(text):
        raise BenchError(f"--shape: {key}={text} is no number of users; give 1 or more")
    return int(text)


def seconds(keys: Mapping[str, str], key: str, default: float) -> float:
    """A time: ``90s``, ``1.5m``, ``500ms``. Raises `BenchError`."""
    text = keys.get(key)
    if text is None:
        return default
    value = quantity(text, SECONDS)
    if value is None or not 0 < value < math.inf:
        raise BenchError(f"--shape: {key}={text} is no time with its unit, such as 90s, 1.5m or 2h")
    return value


def ramp(at: float, run: float, low: int, high: int) -> int:
    """From ``low`` to ``high`` users in ``run`` seconds."""
    return round(low + (high - low) * min(at / run, 1.0))


def check_ramp(low: int, high: int) -> None:
    """Raises `BenchError` where there is nothing between the two."""
    if low == high:
        raise BenchError(
            f"--shape ramp: from={low} is all of --users {high}, so nothing would rise; give more "
            "--users, or --shape constant"
        )


def spike(at: float, base: int, high: int, first: float, lasts: float, every: float) -> int:
    """``base`` users; ``high`` of them for ``lasts`` seconds from ``first`` on, and again ``every``
    so many seconds (0: once)."""
    since = at - first
    if since >= 0 and every:
        since %= every
    return high if 0 <= since < lasts else base


def diurnal(at: float, base: int, high: int, period: float) -> int:
    """Between ``base`` (at the beginning: night) and ``high`` (half a period later) and back."""
    return round(base + (high - base) * (1 - math.cos(2 * math.pi * at / period)) / 2)


# --- step to saturation


@dataclass(frozen=True)
class Step:
    """One number of users, measured."""

    users: int
    goodput: float
    """Requests/s that were answered well."""
    p99_ms: float | None
    error_rate: float
    verdict: str
    """Empty: the server still kept up."""


@dataclass
class Saturation:
    """More users, step by step, until goodput rises no more or a bound is crossed.

    A step lasts ``hold_s`` seconds, of which the first third is not counted: users come, queues
    fill.
    """

    start: int = 10
    step: int = 10
    hold_s: float = 15.0
    most: int = 1000
    gain: float = 0.05
    """Goodput must be so much above the best before, else the step brought nothing."""
    error_rate: float = 0.01
    p99_ms: float | None = None
    patience: int = 2
    """Steps in a row that bring nothing before it is over."""
    steps: list[Step] = field(default_factory=list)
    finished: str = ""
    """Why it is over; empty: it is not."""

    @classmethod
    def of(cls, keys: Mapping[str, str], most: int) -> Saturation:
        """From the keys of ``--shape step:...``. Raises `BenchError`."""
        start = whole(keys, "start", 10)
        hold = seconds(keys, "hold", 15.0)
        if hold < 2:
            raise BenchError("--shape step: hold must be at least 2s")
        try:
            return cls(
                start=start,
                step=whole(keys, "step", start),
                hold_s=hold,
                most=most,
                gain=fraction(keys.get("gain", "5%")),
                error_rate=fraction(keys.get("error-rate", "1%")),
                p99_ms=milliseconds(keys["p99"]) if "p99" in keys else None,
            )
        except ValueError as error:
            raise BenchError(f"--shape step: {error}") from None

    @property
    def settle_s(self) -> float:
        """Seconds of a step that are not counted."""
        return self.hold_s / 3

    @property
    def users(self) -> int:
        """Of the step that is next, or under way."""
        return min(self.start + self.step * len(self.steps), self.most)

    def ended(self, window: Window, counted_s: float) -> None:
        """A step is over, and ``window`` is what was counted in its last ``counted_s`` seconds."""
        goodput = window.ok / counted_s
        p99 = window.at_ms(99)
        best = max((each.goodput for each in self.steps if not each.verdict), default=0.0)
        if not window.requests:
            verdict = "nothing was answered"
        elif window.error_rate > self.error_rate:
            verdict = f"errors {window.error_rate:.2%}, above {self.error_rate:.2%}"
        elif self.p99_ms is not None and (p99 is None or p99 > self.p99_ms):
            verdict = f"p99 above {self.p99_ms:g} ms"
        elif goodput < best * (1 + self.gain):
            verdict = FLAT
        else:
            verdict = ""
        users = self.users
        self.steps.append(Step(users, goodput, p99, window.error_rate, verdict))
        tail = [each.verdict for each in self.steps[-self.patience :]]
        crossed = verdict not in ("", FLAT)
        if crossed or (len(tail) == self.patience and all(tail)):
            self.finished = verdict
        elif users >= self.most:
            self.finished = f"all {self.most} users of --users are there"

    @property
    def knee(self) -> Step | None:
        """The fewest users with (nearly) the best goodput within the bounds; ``None``: even the
        first step was outside them."""
        good = [each for each in self.steps if each.verdict in ("", FLAT)]
        if not good:
            return None
        best = max(each.goodput for each in good)
        return next(each for each in good if each.goodput * (1 + self.gain) >= best)

    def lines(self) -> list[str]:
        """What was found, as text."""
        found = [f"{'Users':>6}  {'Goodput/s':>10}  {'p99 ms':>8}  {'Errors':>7}  Verdict"]
        for each in self.steps:
            p99 = "" if each.p99_ms is None else f"{each.p99_ms:.1f}"
            verdict = each.verdict or "keeps up"
            numbers = f"{each.users:>6}  {each.goodput:>10.1f}  {p99:>8}  {each.error_rate:>7.2%}"
            found.append(f"{numbers}  {verdict}")
        knee = self.knee
        if knee is None:
            found.append("knee: none, even the first step was outside the bounds; start lower")
        else:
            p99 = "" if knee.p99_ms is None else f", p99 {knee.p99_ms:.1f} ms"
            # There is nothing below the first step to compare it with.
            first = knee is self.steps[0] and len(self.steps) > 1 and knee.users > 1
            where = f"at or below {knee.users} users" if first else f"{knee.users} users"
            lower = "; start lower" if first else ""
            found.append(
                f"knee: {where}, {knee.goodput:.1f} requests/s{p99} "
                f"({self.finished or 'stopped before the server was saturated'})"
                f"{lower}"
            )
        return found
