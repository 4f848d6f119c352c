"""The requests of one signature that wait for one servable, most urgent first."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from operator import attrgetter

from gateway.call import Call

_order = attrgetter("order")


class Line:
    """Calls sorted by `order`. Nearly all arrive in order, so adding is an append."""

    __slots__ = ("calls", "rows")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.rows = 0

    def add(self, call: Call) -> None:
        calls = self.calls
        if not calls or call.order >= calls[-1].order:
            calls.append(call)
        else:
            insort(calls, call, key=_order)
        self.rows += call.rows

    def rows_ahead(self, order: float) -> int:
        """Rows of the calls that go before one with this order."""
        calls = self.calls
        if calls[-1].order <= order:
            return self.rows
        return sum([call.rows for call in calls[: bisect_right(calls, order, key=_order)]])

    def remove(self, call: Call) -> None:
        """Takes out one call, which must be in the line."""
        calls = self.calls
        index = bisect_left(calls, call.order, key=_order)
        while calls[index] is not call:
            index += 1
        del calls[index]
        self.rows -= call.rows

    def take(self, limit: int) -> list[Call]:
        """Takes calls off the front, as many as fit into `limit` rows, at least one."""
        calls = self.calls
        if self.rows <= limit:
            self.calls = []
            self.rows = 0
            return calls
        rows = count = 0
        for call in calls:
            if rows + call.rows > limit and count:
                break
            rows += call.rows
            count += 1
        taken = calls[:count]
        del calls[:count]
        self.rows -= rows
        return taken
