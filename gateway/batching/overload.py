"""Tells a queue that grows for want of capacity from one that is merely long.

Looked at once a window, when a batch is closed: a window in which the longest queue so far was
outgrown by more than chance, while the wait was far above the target, speaks for overload, any
other against it. Callers that each wait for their answer before they send again fill a queue up to
their number and no further; a burst fills it once. Neither goes on for several windows.
"""

from __future__ import annotations

from typing import Final

from gateway.batching.curve import CostCurve
from gateway.batching.policy import NEVER, BatchPolicy

WINDOWS: Final = 4
"""That must speak for it, one against cancelling one for."""
WINDOW: Final = 0.225
"""Least seconds of a window; it is as long as a full batch at least."""
MARGIN: Final = 0.05
"""Of the rows that were run in a window: a queue that grew by less has not grown."""
PAYING: Final = 0.94
"""Of the best throughput, that a smaller batch must reach to be preferred under overload."""
LEAST_TARGET: Final = 0.02
SLACK: Final = 2.5
"""How much longer than one batch the wait may be, by the root of its rows: what comes varies by
that much, and a queue that runs dry wastes capacity."""
LEAST_WAIT: Final = 0.1
"""Shortest wait, in seconds, that can be overload."""


class Overload:
    """Whether more comes to one servable than it can do, and what is admitted while that is so.

    `on` says so. `size` is then the most rows of a batch, `target` the longest expected wait of a
    call that is let in, in seconds, and `rate` the rows that are done in a second.
    """

    __slots__ = (
        "_away", "_began", "_count", "_curve", "_fixed", "_for", "_high", "_instances", "_left",
        "_max_rows", "_over_at", "_refused", "ends", "offered", "on", "rate", "served", "size",
        "target",
    )  # fmt: skip

    def __init__(self, policy: BatchPolicy, curve: CostCurve) -> None:
        self.on = False
        self.ends = NEVER if policy.overload_wait == 0 else 0.0
        """When the window is over, which whoever closes a batch looks at."""
        self.size = policy.max_rows
        self.target = 0.0
        self.rate = 0.0
        self.offered = 0.0
        """Rows that came in a second, over the last window."""
        self.served = 0.0
        """Rows that were taken out of the queue in a second, over the last window."""
        self._curve = curve
        self._max_rows = policy.max_rows
        self._instances = policy.instances
        self._fixed = policy.overload_wait
        self._began = 0.0
        self._count = 0
        """Rows taken out of the queue up to the beginning of this window."""
        self._left = 0
        """Rows that waited at that moment."""
        self._high = 0
        self._for = 0
        self._away = 0
        self._refused = 0
        self._over_at = 0.0
        """When it is over, unless somebody is refused meanwhile."""

    def turned_away(self, rows: int) -> None:
        """A call was refused because too much work was ahead of it, not by this."""
        self._away += rows

    def refused(self, rows: int, now: float) -> None:
        """A call was refused for overload."""
        self._refused += rows
        self._over_at = now + WINDOWS * (self.ends - self._began)

    def past(self, now: float) -> bool:
        """Whether it is over, but no batch was closed since: everybody had gone."""
        return now >= self._over_at

    def window(self, now: float, waiting: int, count: int) -> bool:
        """Judges the window that is over. `waiting` rows are in the queue, `count` were taken out
        of it ever. Returns whether `on` is another than before."""
        seconds = max(now - self._began, 1e-9)
        done, self._count = count - self._count, count
        grown, self._left = waiting - self._left, waiting
        away, self._away = self._away, 0
        refused, self._refused = self._refused, 0
        self._began = now
        if not self._learn():
            self.ends = now + WINDOW
            return False
        length = max(WINDOW, self._curve.predict(self._max_rows) or 0.0)
        self.ends = now + length
        self.served = done / seconds
        self.offered = max(done + grown + away + refused, 0) / seconds
        if self.on:
            if not self.past(now):
                return False
            self.on = False
            self._for = self._high = 0
            return True
        if waiting / self.rate <= max(2 * self.target, LEAST_WAIT):
            self._for = 0
            self._high = waiting
            return False
        more = max(waiting - self._high, 0) + away
        self._high = max(self._high, waiting)
        self._for = self._for + 1 if more > MARGIN * done else max(self._for - 1, 0)
        if self._for < WINDOWS:
            return False
        self.on = True
        self._over_at = now + WINDOWS * length
        return True

    def _learn(self) -> bool:
        """Works out size, rate and target; False while nothing is known of the costs."""
        size = self._curve.paying(self._max_rows, PAYING)
        cost = self._curve.between(size)
        if cost is None or cost <= 0:
            return False
        self.size = size
        self.rate = self._instances * size / cost
        own = cost * (1 + SLACK / size**0.5)
        self.target = max(LEAST_TARGET, own) if self._fixed is None else self._fixed
        return True
