"""May one more call come in? As the batcher asks it, for calls that wait in a child."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from gateway.batching.batcher import MAX_REQUEST_ROWS
from gateway.batching.curve import CostCurve
from gateway.batching.policy import BatchPolicy
from gateway.call import Call
from gateway.errors import DeadlineExceeded, InvalidRequest, QueueFull

LOWEST_RETRY: Final = 0.001


class Bounds:
    """The bounds of one servable's queue. `waiting` gives the calls that wait at the moment; it is
    asked only when all that is pending would be too much."""

    def __init__(
        self,
        name: str,
        policy: BatchPolicy,
        curve: CostCurve,
        waiting: Callable[[], Iterable[Call]],
    ) -> None:
        self.rows = 0
        """Of all pending calls, running ones included; as `bytes` and `calls`."""
        self.bytes = 0
        self.calls = 0
        self._away = 0
        """Rows refused for lack of room that nobody was told of yet."""
        self._name = name
        self._policy = policy
        self._curve = curve
        self._waiting = waiting

    def add(self, call: Call) -> None:
        self.rows += call.rows
        self.bytes += call.size
        self.calls += 1

    def remove(self, rows: int, size: int) -> None:
        self.rows -= rows
        self.bytes -= size
        self.calls -= 1

    def check(self, call: Call, now: float) -> None:
        """Sets the call's deadline. Raises `InvalidRequest`, `QueueFull` or `DeadlineExceeded`."""
        policy = self._policy
        queue = policy.queue
        most = policy.max_request_rows or MAX_REQUEST_ROWS
        if call.rows > most:
            raise InvalidRequest(
                f"the request has {call.rows} rows; model '{call.request.model}' takes at most "
                f"{most} (limits.max_rows in its model.yaml)"
            )
        if self.calls:
            bound = policy.max_requests(call.request.priority)
            if (
                self.rows + call.rows > queue.max_rows
                or self.bytes + call.size > queue.max_bytes
                or (bound and self.calls >= bound)
            ):
                self._check_waiting(call, bound)
            if policy.max_in_flight and self.calls >= policy.max_in_flight:
                raise self._full(f"{policy.max_in_flight} requests in flight")
        policy.set_deadline(call)
        deadline = policy.hard_deadline(call)
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was queued")

    def _check_waiting(self, call: Call, bound: int) -> None:
        policy = self._policy
        queue = policy.queue
        level = policy.level(call.request.priority)
        rows = size = calls = alike = 0
        for each in self._waiting():
            rows += each.rows
            size += each.size
            calls += 1
            alike += not policy.levels or policy.level(each.request.priority) == level
        if not calls:
            return  # a request of any size may wait alone
        if rows + call.rows > queue.max_rows:
            self._away += call.rows
            raise self._full(f"{queue.max_rows} rows")
        if size + call.size > queue.max_bytes:
            self._away += call.rows
            raise self._full(f"{queue.max_bytes} bytes")
        if bound and alike >= bound:
            raise self._full(f"{bound} requests")

    def take_away(self) -> int:
        """Rows refused for lack of room since this was asked last."""
        away, self._away = self._away, 0
        return away

    def _full(self, bound: str) -> QueueFull:
        return QueueFull(
            f"the queue of {self._name} is full ({bound}); try again later or send fewer at a time",
            retry_after=max(self._expected_wait(), LOWEST_RETRY),
        )

    def _expected_wait(self) -> float:
        """Seconds that the pending rows take, by the learned cost."""
        most = self._policy.max_rows
        batches = -(-self.rows // most)
        return batches * (self._curve.predict(most) or 0.0) / self._policy.instances
