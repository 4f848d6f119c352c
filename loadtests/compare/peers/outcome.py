"""What the rounds gave, before anything is summed up."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtests.compare.peers.cells import LeftOut

BARE = "bare"
"""The loop over onnxruntime, in tables."""
LOOP = "loop"
"""Its route."""


@dataclass(frozen=True)
class Run:
    """One measured run of one cell. Times in microseconds."""

    server: str
    model: str
    route: str
    like: str
    """The route of ours it is held against; empty: the same one."""
    concurrency: int
    round: int
    rate: float
    """Requests/s; rows/s of the bare loop."""
    mean_us: float
    p50_us: float | None = None
    p99_us: float | None = None
    requests: int = 0
    verified: int = 0
    """Answers that the verifier held against the right ones."""
    problems: tuple[str, ...] = ()
    variant: str = ""
    """Which of the models of `Peer.variants`."""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Server, model, route, requests in flight."""
        return self.server, self.model, self.route, self.concurrency


@dataclass
class Outcome:
    """Everything."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    """By rule, and servers that are not installed or did not start."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """Server → package → version."""
    ready_s: dict[str, list[float]] = field(default_factory=dict)
    """Server → seconds from exec to ready, start by start."""
    notes: list[str] = field(default_factory=list)
    """What happened on the way: a start that failed before one that did not."""
    batches: dict[str, int] = field(default_factory=dict)
    """Model → rows of a call of the bare loops with the most rows a second."""
