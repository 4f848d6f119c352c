"""What every registry tells the lifecycle: the complete set of versions it wants loaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from gateway.artifacts.base import Origin
from gateway.model_settings import ModelSettings
from gateway.registries.traffic import Traffic


@dataclass(frozen=True)
class AspiredVersion:
    """One version that should be loaded. A changed `fingerprint` means load it anew.

    With an `origin` its files are fetched first, and `path` says nothing until they are.
    """

    version: str
    path: Path
    fingerprint: Hashable
    source: str = ""
    """URI of where the files come from, if they are fetched; empty: they are here, at `path`."""
    origin: Origin | None = None


@dataclass(frozen=True)
class AspiredModel:
    """One model: the versions wanted (oldest first), its settings and its traffic.

    `error` says what of its documents cannot be read; what they said before still holds.
    `stand_ins` are versions that nobody asked for (newest first), to be loaded while none of
    those wanted can be.
    """

    name: str
    versions: Mapping[str, AspiredVersion]
    settings: ModelSettings = field(default_factory=ModelSettings)
    traffic: Traffic = field(default_factory=Traffic)
    on_disk: tuple[str, ...] = ()
    error: str = ""
    stand_ins: Mapping[str, AspiredVersion] = field(default_factory=dict)
    unloaded: str = ""
    """Why nothing of it is to be loaded, where somebody said so."""


Snapshot = Mapping[str, AspiredModel]


class Registry(Protocol):
    """Where models, versions and traffic are declared."""

    source: str
    trouble: str
    """Why it cannot be read now; empty while it can."""

    def scan(self) -> Snapshot:
        """The complete wanted state, read now; blocking. Raises `RegistryError`."""

    async def watch(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """Calls `changed` with a new snapshot whenever there is one, until cancelled."""

    def write_traffic(self, model: str, traffic: Traffic) -> Traffic:
        """Stores a split and returns what is declared now (where labels follow the split, they are
        others than those given); blocking, all or nothing. Raises `RegistryError`."""

    def pin(self, model: str, versions: frozenset[str]) -> None:
        """Versions that snapshots hold from the next scan on, whatever the version policy says;
        those that are not there are left out. Replaces what was pinned before."""

    def hint(self) -> None:
        """Something may have changed: `watch` looks now. For the event loop."""


@runtime_checkable
class Elsewhere(Protocol):
    """A registry whose source may not answer, and that remembers what it said."""

    def stand_in(self, why: str) -> Snapshot | None:
        """The last known state, while the first look still goes on; `None` without any. `why` is
        what keeps it. Once something was found, that."""

    def close(self) -> None:
        """The gateway stops: writes down what is to be remembered. Blocking, but it waits for no
        source."""
