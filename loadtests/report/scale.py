"""Pictures of cost against size, and of what a server does under overload."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Series:
    """One line of a chart: the same thing, measured at several sizes."""

    name: str
    points: list[tuple[float, float]]
    """(x, y), in the units of the chart's axes."""
    spread: list[tuple[float, float]] | None = None
    """Smallest and largest y of the rounds, one pair a point; drawn as whiskers."""


@dataclass(frozen=True)
class Chart:
    """Cost against one kind of size."""

    name: str
    """Of the file: ``models-memory``; small letters, digits and hyphens."""
    title: str
    """What is to be seen, in a few words: ``Memory against the number of models``."""
    x: str
    """Title of the axis, with its unit: ``models``, ``payload (bytes)``."""
    y: str
    """``resident memory (MiB)``."""
    series: list[Series]
    log_x: bool = True
    log_y: bool = True
    fit: bool = True
    """Whether the slope of each series is stated in the chart."""
    note: str = ""


@dataclass(frozen=True)
class OverloadPoint:
    """What a server did at one offered load."""

    offered: float
    """Requests/s sent, over requests/s at capacity: 0.5, 1, 3."""
    goodput: float
    """Requests/s answered well."""
    p99_us: float
    """Of the requests that were accepted and answered well."""
    refused: float
    """Share of the requests that were refused, 0 to 1."""
    failed: float = 0.0
    """Share of the requests that failed otherwise, 0 to 1."""
    memory_mib: float | None = None
    """Largest resident memory seen at this load."""


@dataclass(frozen=True)
class Overload:
    """A server from below to far above its capacity."""

    model: str
    capacity: float
    """Requests/s that it sustains: offered 1."""
    points: list[OverloadPoint] = field(default_factory=list)
