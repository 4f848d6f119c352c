"""Fetched files on this machine, kept by content."""

from __future__ import annotations

from gateway.artifacts.base import Lease, Origin, Told
from gateway.config import CacheConfig
from gateway.errors import FetchError
from gateway.state import StateDir


class Cache:
    """See `gateway.artifacts.base.Fetcher`."""

    def __init__(self, state: StateDir, config: CacheConfig) -> None:
        self._state = state
        self._config = config

    def fetch(self, origin: Origin, told: Told) -> Lease:
        """See `Fetcher.fetch`."""
        raise FetchError(f"{origin.uri} cannot be fetched")
