"""What `run_point` and the processes that send say to each other: msgpack, a length in front."""

from __future__ import annotations

from typing import IO, Final

import msgspec
import numpy as np

from loadtests.bench.plan import Load, Target
from loadtests.payloads.base import Wire

RECORD: Final = np.dtype(
    [
        ("due", "<i8"),
        ("issued", "<u4"),
        ("left", "<u4"),
        ("done", "<u4"),
        ("outcome", "<u2"),
        ("version", "<u2"),
    ]
)
"""One request that has ended. ``due``: ns from the start; the others: µs from then to when it
was handed to the client, when it was written (`LIMIT`: never), and when it ended. ``outcome`` 0:
answered well, ``version`` 0: not known; else places in the names that came with the slices."""
RECORD_FORMAT: Final = "<qIIIHH"
LIMIT: Final = 2**32 - 1


class Plan(msgspec.Struct, frozen=True, tag="plan"):
    """To a process: its part of the load."""

    target: Target
    load: Load
    part: int
    parts: int
    payloads: list[Wire]


class Go(msgspec.Struct, frozen=True, tag="go"):
    """To a process: start at this time (ns of `time.monotonic_ns`)."""

    at: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """To a process: nothing is sent from this time on; what is under way is waited for."""

    at: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """From a process: it is connected, and the first answer was an inference answer (or an error
    that more load may bring, too)."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """From a process: nothing can be sent."""

    message: str
    unreachable: bool = False
    """Whether that is because nobody answers."""


class Slice(msgspec.Struct, frozen=True, tag="slice"):
    """From a process, ten times a second: what has ended since the one before."""

    at: int
    """ns of `time.monotonic_ns`."""
    records: bytes
    """Of `RECORD`."""
    outcomes: list[str]
    """Names that are new."""
    versions: list[str]
    sent: int
    """Requests that were due so far."""
    oldest: int
    """When the oldest that has not ended was due, ns of `time.monotonic_ns`; `at` if there is
    none."""
    cpu_s: float
    """Of the process so far."""
    thread_s: float
    """Of the thread that sends, so far."""
    lags: list[int]
    """How late timers of the event loop ran, in µs."""
    last: bool = False


Order = Plan | Go | Stop
Report = Ready | Failed | Slice


def write(stream: IO[bytes], message: Order | Report) -> None:
    """Raises `OSError` (as `BrokenPipeError`) where nobody reads."""
    data = msgspec.msgpack.encode(message)
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)
    stream.flush()


def read_order(stream: IO[bytes]) -> Order | None:
    """The next one; ``None`` at the end."""
    data = _read(stream)
    return None if data is None else msgspec.msgpack.decode(data, type=Order)


def read_report(stream: IO[bytes]) -> Report | None:
    """The next one; ``None`` at the end."""
    data = _read(stream)
    return None if data is None else msgspec.msgpack.decode(data, type=Report)


def _read(stream: IO[bytes]) -> bytes | None:
    size = stream.read(8)
    if len(size) < 8:
        return None
    data = stream.read(int.from_bytes(size, "big"))
    return data if len(data) == int.from_bytes(size, "big") else None
