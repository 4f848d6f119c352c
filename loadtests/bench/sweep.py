"""Levels of load, one after the other."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from loadtests.bench.plan import Load
from loadtests.bench.server import ServerStats
from loadtests.errors import BenchError

MAX_LEVELS: Final = 100
ORDERS: Final = ("ascending", "given", "shuffled")
PAUSE: Final = 0.25
"""Seconds between two looks at whether the server is idle."""
BLIND: Final = 1.0
"""Seconds of rest where the server does not say what it does."""


def numbers(text: str, option: str, *, whole: bool = False) -> tuple[float, ...]:
    """``100,200,400`` or ``100:1000:100`` (from, to, step). Raises `BenchError`."""
    example = f"type {option} 1,2,4,8 or {option} 10:100:10"
    if ":" in text:
        parts = [number(part, option, example, whole=whole) for part in text.split(":")]
        if len(parts) != 3:
            raise BenchError(f"{option} {text}: a range has FROM:TO:STEP; {example}")
        first, last, step = parts
        if first > last:
            raise BenchError(f"{option} {text}: {first:g} is above {last:g}; {example}")
        count = math.floor((last - first) / step * (1 + 1e-9)) + 1
        check_count(count, option, text)
        found = [first + index * step for index in range(count)]
    else:
        words = text.split(",")
        check_count(len(words), option, text)
        found = [number(word, option, example, whole=whole) for word in words]
    for index, value in enumerate(found):
        if value in found[:index]:
            raise BenchError(f"{option} {text}: {value:g} is there twice; give each level once")
    return tuple(found)


def check_count(count: int, option: str, text: str) -> None:
    if count > MAX_LEVELS:
        raise BenchError(f"{option} {text}: {count} levels; give at most {MAX_LEVELS}")


def bounds(text: str, option: str, *, whole: bool = False) -> tuple[float, float]:
    """``10:5000``: where to search. Raises `BenchError`."""
    example = f"with --search give its bounds, as {option} 1:1000"
    parts = [number(part, option, example, whole=whole) for part in text.split(":")]
    if len(parts) != 2:
        raise BenchError(f"{option} {text}: {example}")
    if parts[0] >= parts[1]:
        raise BenchError(f"{option} {text}: {parts[0]:g} is not below {parts[1]:g}; {example}")
    return parts[0], parts[1]


def number(text: str, option: str, example: str, *, whole: bool = False) -> float:
    """A positive number. Raises `BenchError`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1e7 or (whole and value != int(value)):
        kind = "a whole number above 0" if whole else "a number above 0"
        raise BenchError(f"{option}: '{text.strip()}' is not {kind}; {example}")
    return value


def levels(template: Load, values: Sequence[float], *, opened: bool) -> list[Load]:
    """A load for each value: rates (``opened``) or concurrencies."""
    if opened:
        return [msgspec.structs.replace(template, rate=value, concurrency=0) for value in values]
    return [msgspec.structs.replace(template, rate=0.0, concurrency=int(v)) for v in values]


def ordered(loads: Sequence[Load], order: str, seed: int = 1) -> list[Load]:
    """Low to high, so that an overloaded level does not burden those after it; as given; or
    shuffled, so that drift of the machine does not look like an effect of the load."""
    if order == "given":
        return list(loads)
    if order == "shuffled":
        mixed = list(loads)
        random.Random(seed).shuffle(mixed)
        return mixed
    return sorted(loads, key=lambda load: (load.rate, load.concurrency))


def rest(
    stats: ServerStats,
    most_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Waits until the server executes nothing for the model any more, ``most_s`` seconds at most.
    Returns what to note where it did not come to rest."""
    if most_s <= 0:
        return ""
    end = clock() + most_s
    before = stats.read()
    if before is None:
        sleep(min(BLIND, most_s))
        return ""
    quiet = 0
    while clock() < end:
        sleep(PAUSE)
        now = stats.read()
        if now is None:
            return ""
        same = (now.requests, now.executions) == (before.requests, before.executions)
        quiet = quiet + 1 if same else 0
        if quiet == 2:
            return ""
        before = now
    return (
        f"the server was still busy with the model {most_s:g} s after a level: somebody else sends "
        "requests, or a backlog is worked off; the next level shares the server with it"
    )
