"""The states of a version, as users see them. A load only ever moves forward."""

from __future__ import annotations

import time
from enum import StrEnum

from gateway.artifacts.base import Lease
from gateway.lifecycle.logs import LoadLog
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
        "aspired", "attempts", "cause", "dropped", "lease", "log", "measured", "model", "place",
        "progress", "retry_at", "runtime", "servable", "since", "state", "urgent",
    )  # fmt: skip

    def __init__(self, aspired: AspiredVersion, model: str = "", log: LoadLog | None = None):
        self.aspired = aspired
        self.model = model
        self.log = log if log is not None else LoadLog()
        self.servable: Servable | None = None
        self.lease: Lease | None = None
        """Holds the fetched files where they are, until the version is unloaded."""
        self.state = State.KNOWN
        self.cause = ""
        self.progress = ""
        """What it is waiting for, or how far it has come; for people."""
        self.since = time.time()
        self.attempts = 0
        self.retry_at = 0.0
        """Monotonic seconds at which a failed load may be tried again."""
        self.runtime = ""
        self.urgent = False
        """Whether another model waits for it, perhaps one that is loading itself."""
        self.dropped = False
        """Set when nobody wants it any more, for the threads that fetch and load it."""
        self.place = 0
        """Its place in the line for memory, a lower number before a higher one; 0 = it is not in
        the line."""
        self.measured = 0
        """Bytes of memory that it was seen to take; 0 = not known."""

    @property
    def version(self) -> str:
        return self.aspired.version

    @property
    def last_used(self) -> float:
        """Unix seconds of the last answer, or since when it is ready."""
        if self.servable is None:
            return self.since
        return max(self.servable.stats.last_inference / 1000, self.since)

    def release(self) -> None:
        """Gives fetched files back to the cache."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None

    def move(self, state: State, cause: str = "") -> None:
        self.state = state
        self.cause = cause
        self.since = time.time()
        self.log.write(f"{state}: {cause}" if cause else str(state))
