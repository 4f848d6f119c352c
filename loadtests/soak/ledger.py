"""Every request that was sent, and how it ended."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum


class End(StrEnum):
    """How a request ended."""

    OK = "ok"
    """With the right answer."""
    REFUSED = "refused"
    """As it should be: bad input, a deadline that has passed, a full queue under a burst."""
    CANCELLED = "cancelled"
    """By its caller."""
    KILLED = "killed"
    """It ran in a process that was killed in that moment, and was told so."""
    WRONG = "wrong"
    """With an answer that is not the right one."""
    FAILED = "failed"
    """With an error that nothing explains."""
    LOST = "lost"
    """Not at all: no answer in time, or the connection ended without one."""


BAD = (End.WRONG, End.FAILED, End.LOST)


@dataclass
class Ledger:
    """Counts by caller and end. Latencies (seconds) are those of right answers."""

    counts: Counter[tuple[str, End]] = field(default_factory=Counter)
    sent: int = 0
    """Requests that were begun."""
    generous: int = 0
    """Requests with a deadline that leaves enough time ..."""
    generous_kept: int = 0
    """... and those of them that were answered."""
    problems: list[str] = field(default_factory=list)
    """The first of those that ended badly."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=20_000))
    """Latencies since they were last taken."""
    versions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Model and version → right answers."""

    @property
    def open(self) -> int:
        """Requests that are waiting now."""
        return self.sent - self.total()

    def ended(self, caller: str, end: End, why: str, seconds: float, at_s: float) -> None:
        """Notes one."""
        self.counts[caller, end] += 1
        if end is End.OK:
            self.recent.append(seconds)
        elif end in BAD and len(self.problems) < 50:
            self.problems.append(f"{at_s:.1f} s, {caller}: {end}: {' '.join(why.split())[:300]}")

    def total(self, *ends: End) -> int:
        """Requests that ended in one of these ways; in any, where none is given."""
        return sum(n for (_, end), n in self.counts.items() if not ends or end in ends)

    def take_latencies(self) -> list[float]:
        """Sorted, those since the last call."""
        taken = sorted(self.recent)
        self.recent.clear()
        return taken
