"""What is recorded: one change of what a model serves, and who made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.registries.traffic import Traffic


@dataclass(frozen=True)
class Served:
    """What a model answered with at one moment.

    `shares` are parts of 100 by version, of what was really ready; `versions` describes each of
    them (``source``, ``runtime``, ``digest``); `traffic` is the split as it was declared.
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
    ``unload``; ``served`` where nobody asked: versions came, failed or went."""
    who: str
    message: str
    before: Served
    after: Served
    at: float
    id: int = 0
    """Its number in the record; 0 until it is there."""
    gateway: str = ""


class History(Protocol):
    """The record, as those who change and ask see it. For the event loop."""

    def because(
        self, model: str, action: str, who: str, message: str
    ) -> AbstractContextManager[None]:
        """What changes in the block is one entry with this action, name and message; so is a
        block in which nothing does, such as a pause. Not where the block raises."""

    async def changes(
        self, model: str, *, limit: int = 50, until: float | None = None
    ) -> Sequence[Change]:
        """The latest entries of a model, the newest first, `until` that moment. Raises
        `RegistryError` where the database does not answer."""
