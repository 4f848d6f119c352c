"""Numbers and names as people read them; names from outside made harmless."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Sequence

from loadtests.bench.results import Interval

from .look import LONGEST

_FORBIDDEN = {"Cc", "Cs", "Co", "Cn"}
_TURNING = {*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def clean(text: str) -> str:
    """``text`` on one line, without characters that XML forbids or that turn the line around."""
    return "".join(
        " " if mark in "\n\r\t\u2028\u2029"
        else "\ufffd" if unicodedata.category(mark) in _FORBIDDEN or ord(mark) in _TURNING
        else mark
        for mark in text
    )  # fmt: skip


def short(text: str, longest: int = LONGEST) -> str:
    """`clean`, and cut in the middle where it is longer than a chart has room for."""
    text = clean(text)
    if len(text) <= longest:
        return text
    head = (longest - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def digits(value: float, wanted: int = 3) -> str:
    """``value`` to about three digits: ``0.0123``, ``1.23``, ``12.3``, ``123``, ``12,345``."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 10**wanted:
        value = float(f"{value:.{wanted}g}")  # 999.7 has one digit more than it seems
    decimals = max(0, wanted - 1 - math.floor(math.log10(abs(value))))
    if decimals == 0 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.{min(decimals, 9)}f}"


def duration(us: float | None) -> str:
    """µs as ``850 µs``, ``12.3 ms``, ``1.24 s``."""
    if us is None or not math.isfinite(us):
        return "–"
    if abs(us) < 999.5:
        return f"{digits(us)} µs"
    if abs(us) < 999_500:
        return f"{digits(us / 1e3)} ms"
    return f"{digits(us / 1e6)} s"


def rate(value: float | None) -> str:
    """Requests a second: ``12,345/s``."""
    return "–" if value is None or not math.isfinite(value) else f"{digits(value)}/s"


def share(value: float) -> str:
    """0 to 1 as per cent; what is not quite 0 or 100 does not look as if it were."""
    if not math.isfinite(value):
        return "–"
    if 0 < value < 0.0001:
        return "< 0.01 %"
    if 0.9999 < value < 1:
        return "> 99.99 %"
    return (
        f"{value * 100:.{2 if value < 0.01 or value > 0.99 else 1}f}".rstrip("0").rstrip(".") + " %"
    )


def between(found: Interval | None, how: str = "duration") -> str:
    """A confidence interval: ``11.8 to 12.9 ms``; empty where there is none."""
    if found is None:
        return ""
    say = {"duration": duration, "rate": rate}[how]
    low, high = say(found.low), say(found.high)
    number, _, unit = low.rpartition(" ")
    if number and high.endswith(f" {unit}"):
        low = number
    elif low.endswith("/s"):
        low = low.removesuffix("/s")
    return f"{low} to {high}"


def seconds(value: float) -> str:
    """``12 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if not math.isfinite(value):
        return "–"
    if value < 100:
        return f"{digits(value, 2)} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters, for titles, which do not break by themselves."""
    return textwrap.wrap(clean(text), width)


def joined(words: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
