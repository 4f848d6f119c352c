"""How often changes that nobody asked for become entries of their own: pure, takes a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.history.base import Served

BURST: Final = 20
"""Entries that one model may have at once."""
SECONDS: Final = 60.0
"""Seconds after which it may have one more."""
CAUSES: Final = 3
"""Most causes that an entry names which stands for many changes."""


class Throttle:
    """One model's allowance."""

    __slots__ = ("_left", "_since")

    def __init__(self, now: float) -> None:
        self._left = float(BURST)
        self._since = now

    def allow(self, now: float) -> bool:
        """Whether an entry may be made now; counts it."""
        self._left = min(BURST, self._left + max(0.0, now - self._since) / SECONDS)
        self._since = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def full(self, now: float) -> bool:
        """Whether it is as it was at the beginning."""
        return self._left + max(0.0, now - self._since) / SECONDS >= BURST

    def wait(self) -> float:
        """Seconds from the last question until `allow` will say yes."""
        return max(0.0, (1.0 - self._left) * SECONDS)


@dataclass
class Held:
    """Changes that will be one entry."""

    before: Served
    after: Served
    since: float
    at: float
    who: str = ""
    count: int = 0
    causes: deque[str] = field(default_factory=lambda: deque(maxlen=CAUSES))

    def take(self, after: Served, at: float, who: str, cause: str) -> None:
        self.after, self.at, self.who = after, at, who
        self.count += 1
        if cause not in self.causes:
            self.causes.append(cause)

    def message(self) -> str:
        return message(self.count, self.at - self.since, self.causes)


def message(count: int, seconds: float, causes: Sequence[str]) -> str:
    """In words."""
    text = "; ".join(causes)
    return text if count == 1 else f"{count} changes in {seconds:.0f} s, the last of them: {text}"
