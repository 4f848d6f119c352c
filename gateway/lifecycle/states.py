"""The states of a version, as users see them. A load only ever moves forward."""

from __future__ import annotations

import time
from enum import StrEnum

from gateway.artifacts.base import Lease
from gateway.registries.base import AspiredVersion
from gateway.servable import Servable


class State(StrEnum):
    """known → fetching (what is elsewhere) → loading → warming → ready → draining → unloaded, or
    failed instead of ready."""

    KNOWN = "known"
    FETCHING = "fetching"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"


class Record:
    """One load of one version: its state, since when (Unix seconds), and why."""

    __slots__ = (
        "aspired", "attempts", "cause", "lease", "retry_at", "runtime", "servable", "since",
        "state",
    )  # fmt: skip

    def __init__(self, aspired: AspiredVersion) -> None:
        self.aspired = aspired
        self.servable: Servable | None = None
        self.lease: Lease | None = None
        """Holds the fetched files where they are, until the version is unloaded."""
        self.state = State.KNOWN
        self.cause = ""
        self.since = time.time()
        self.attempts = 0
        self.retry_at = 0.0
        """Monotonic seconds at which a failed load may be tried again."""
        self.runtime = ""

    @property
    def version(self) -> str:
        return self.aspired.version

    def release(self) -> None:
        """Gives fetched files back to the cache."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None

    def move(self, state: State, cause: str = "") -> None:
        self.state = state
        self.cause = cause
        self.since = time.time()
