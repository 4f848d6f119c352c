"""What a soak found: the document that is written as JSON and drawn."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """What was seen in one interval of a soak, ``seconds`` long and beginning at ``at_s``."""

    at_s: float
    """Seconds from the start of the soak."""
    seconds: float
    ok: int
    """Requests answered well in this interval."""
    failed: int = 0
    """Requests that should have been answered and were not: lost."""
    refused: int = 0
    """Requests refused as they should be: bad input, overload, a deadline of their own."""
    cancelled: int = 0
    """Requests that their callers gave up."""
    p50_us: float | None = None
    p99_us: float | None = None
    memory_mib: float | None = None
    """Resident, of the gateway's own process; ``None`` where it was not read."""
    children_mib: float | None = None
    """Resident, of the processes that it started, together."""
    descriptors: int | None = None
    """Open file descriptors of the gateway's own process."""
    threads: int | None = None
    processes: int | None = None
    """The gateway's and its children."""


@dataclass(frozen=True)
class Event:
    """Something that was done to the server while it served."""

    at_s: float
    kind: str
    """A word or two, the same for the same thing: ``swap``, ``runtime killed``, ``bad input``."""
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """One thing that had to hold."""

    name: str
    """``no lost request``, ``memory does not grow``."""
    passed: bool
    found: str
    """With its unit, ready to be read: ``+0.3 MiB an hour``."""
    allowed: str = ""


@dataclass(frozen=True)
class Soak:
    """A whole soak."""

    samples: list[Sample]
    events: list[Event] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    started: str = ""
    """UTC, ISO 8601."""
    command: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
