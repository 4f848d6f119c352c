"""an object store as a source of models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gateway.config import Config
from gateway.errors import RegistryError
from gateway.registries.base import Snapshot
from gateway.registries.traffic import Traffic
from gateway.state import StateDir


class StoreRegistry:
    """See `gateway.registries.base.Registry`."""

    def __init__(self, source: str, config: Config, state: StateDir | None) -> None:
        self.source = source

    def scan(self) -> Snapshot:
        raise RegistryError(f"{self.source} cannot be read")

    async def watch(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        raise RegistryError(f"{self.source} cannot be watched")

    def write_traffic(self, model: str, traffic: Traffic) -> None:
        raise RegistryError(f"{self.source} cannot be written")

    def pin(self, model: str, versions: frozenset[str]) -> None:
        raise RegistryError(f"{self.source} cannot be pinned")

    def hint(self) -> None:
        pass
