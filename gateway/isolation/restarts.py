"""When a child that crashed is started again, and when no more. Pure: it is told the time."""

from __future__ import annotations

from typing import Final

PEACE: Final = 60.0
"""Seconds without a crash after which earlier ones do not count."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0


class Restarts:
    """The crashes of one servable's children."""

    def __init__(self, most: int) -> None:
        self.last = ""
        """The cause of the last crash."""
        self.count = 0
        """Children that took over."""
        self.in_a_row = 0
        self._most = most
        self._last_at: float | None = None

    def crashed(self, cause: str, now: float) -> None:
        """A child has ended, or another one could not be started."""
        if self._last_at is not None and now - self._last_at > PEACE:
            self.in_a_row = 0
        self.in_a_row += 1
        self._last_at = now
        self.last = cause

    @property
    def exhausted(self) -> bool:
        """Whether it makes no sense to go on."""
        return self.in_a_row > self._most

    def pause(self) -> float:
        """Seconds before the next attempt: none after the first crash."""
        if self.in_a_row <= 1:
            return 0.0
        return min(FIRST_PAUSE * 2.0 ** min(self.in_a_row - 2, 20), LONGEST_PAUSE)

    def told(self, cause: str) -> str:
        """The cause for `sluice models`."""
        return f"{self.in_a_row} crashes in a row; the last: {cause}"
