"""What is recorded: one change of what a model serves, and who made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from gateway.registries.traffic import Traffic

SERVED: Final = "served"
"""The action of changes that nobody asked the gateway for."""
START: Final = "start"
STOP: Final = "stop"
CRASH: Final = "crash"
"""A gateway that ended without a stop, as a later start found."""
RUNS: Final = (START, STOP, CRASH)
"""Actions of a gateway itself; their `model` is empty."""


@dataclass(frozen=True)
class Served:
    """What a model answered with at one moment.

    `shares` are parts of 100 by version, of what was really ready; `labels` those that led to a
    ready version; `versions` describes every version named by either (``source``, ``runtime``,
    ``digest``); `traffic` is the split as it was declared.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    stable: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)


@dataclass(frozen=True)
class Change:
    """One entry: append-only, never rewritten. `at` is in Unix seconds."""

    model: str
    action: str
    """``split``, ``promote``, ``rollback``, ``labels``, ``pause``, ``resume``, ``load``,
    ``unload``; ``served`` where nobody asked: versions came, failed or went; ``start``, ``stop``
    and ``crash`` of a gateway, without a model."""
    who: str
    message: str
    before: Served
    after: Served
    at: float
    id: int = 0
    """Its number in the record; 0 until it is there."""
    gateway: str = ""
    run: str = ""
    """Which run of the gateway, from a start to a stop."""
    seq: int = 0
    """Its number in that run."""
    since: float = 0.0
    """Unix seconds of the first of the changes it stands for (of a crash: the last sign of
    life)."""
    count: int = 1
    """How many changes it stands for: above 1 where they came too fast to tell each."""


@dataclass(frozen=True)
class Moment:
    """What one gateway answered with for one model at one moment."""

    gateway: str
    model: str
    change: Change
    """The entry that made it so."""
    until: float | None
    """Unix seconds of the next change or the gateway's stop; `None`: nothing changed since."""
    state: Literal["running", "unknown"] = "running"
    """``unknown``: the gateway crashed, and may have done so before that moment."""


@dataclass(frozen=True)
class Past:
    """What was served at a moment, `at` in Unix seconds, by every gateway of the record."""

    at: float
    moments: Sequence[Moment]
    note: str = ""
    """In words, why there is nothing, or what is uncertain."""


class History(Protocol):
    """The record, as those who change and ask see it. For the event loop."""

    enabled: bool

    def because(
        self, model: str, action: str, who: str, message: str
    ) -> AbstractContextManager[None]:
        """What changes in the block is an entry with this action, name and message as soon as it
        does; a block in which nothing does, such as a pause, is one at its end, unless it
        raises."""

    async def start(self, gateway: str) -> None:
        """Begins a run of the gateway of that name. Raises `ConfigError` for a bad URL."""

    async def close(self) -> None:
        """Ends the run, and waits a bounded time until all of it is in the record."""

    async def changes(
        self, model: str, *, limit: int = 50, until: float | None = None
    ) -> Sequence[Change]:
        """The latest entries of a model, the newest first, `until` that moment; of all models and
        the gateways themselves where `model` is empty. Raises `RegistryError` where the database
        does not answer."""

    async def past(self, model: str, at: float) -> Past:
        """What a model (all of them: empty) answered with then. Raises `RegistryError`."""
