"""The settings of one servable's batching, as decisions. Pure: it is told the time."""

from __future__ import annotations

from typing import Final

from gateway.batching.line import Line
from gateway.call import Call
from gateway.model_settings import BatchingSettings, LimitSettings, QueueSettings

HORIZON: Final = 1.0
"""Seconds after arrival at which a request without a deadline is taken to be due."""
NEVER: Final = float("inf")


class BatchPolicy:
    """What `BatchingSettings` mean for one servable.

    `max_rows` is the most rows of a batch, `instances` how many batches may run at once,
    `inline_seconds` the expected cost up to which a batch runs on the event loop.
    """

    def __init__(
        self,
        settings: BatchingSettings,
        *,
        max_rows: int = 64,
        instances: int = 1,
        inline_seconds: float = 0.001,
        limits: LimitSettings | None = None,
    ) -> None:
        limits = limits or LimitSettings()
        self.settings = settings
        self.max_rows = max_rows
        self.instances = 1 if settings.preserve_ordering else instances
        self.inline_seconds = inline_seconds
        self.queue: QueueSettings = settings.queue
        self.levels = settings.priority_levels
        self.ordered_by_arrival = settings.preserve_ordering
        self.max_request_rows = limits.max_rows
        self.max_in_flight = limits.max_in_flight
        wait = settings.queue.overload_wait_us
        self.overload_wait = None if wait is None else wait / 1e6
        """Longest expected wait, in seconds, while more comes than can be done; 0: any wait."""
        self._delay = settings.max_delay_us / 1e6
        self._ageing = settings.priority_ageing_us / 1e6
        self._preferred = sorted(size for size in settings.preferred_sizes if size <= max_rows)
        self._default_level = settings.default_priority or (self.levels + 1) // 2
        self._batch_one = not settings.enabled
        self._queue_timeouts = bool(settings.queue.timeout_us) or any(
            each.timeout_us for each in settings.priority_queues.values()
        )

    # --- order in the line

    def order(self, call: Call) -> float:
        """Place in the line: by deadline, one step back a priority level.

        The step is in time, so whoever waits long enough is overtaken by nobody.
        """
        due = call.arrived + HORIZON
        if call.deadline is not None and call.deadline < due:
            due = call.deadline
        if self.levels:
            due += (self.level(call.request.priority) - 1) * self._ageing
        return due

    def last_place(self, now: float) -> float:
        """Place behind everyone who is on time."""
        return now + 1e6

    def level(self, priority: int) -> int:
        """The priority level of a request; 1 is the most urgent."""
        if not self.levels:
            return 0
        return min(priority, self.levels) or self._default_level

    def max_requests(self, priority: int) -> int:
        """Most requests that may wait at that priority; 0 = no bound."""
        own = self.settings.priority_queues.get(self.level(priority))
        bound = own.max_requests if own is not None else None
        return self.queue.max_requests if bound is None else bound

    # --- time limits of the queue

    def set_deadline(self, call: Call) -> None:
        """The nearest of the request's own deadline and the queue's time limit."""
        request = call.request
        if not self._queue_timeouts:
            if request.timeout_us:
                self._sooner(call, request.timeout_us)
            return
        own = self.settings.priority_queues.get(self.level(request.priority))
        limit = self.queue.timeout_us
        override = self.queue.allow_timeout_override
        if own is not None:
            limit = limit if own.timeout_us is None else own.timeout_us
            if own.allow_timeout_override is not None:
                override = own.allow_timeout_override
        if request.timeout_us and (override or not limit):
            self._sooner(call, request.timeout_us)
        call.caller_deadline = call.deadline
        if limit:
            self._sooner(call, limit)

    def _sooner(self, call: Call, microseconds: int) -> None:
        limit = call.arrived + microseconds / 1e6
        if call.deadline is None or limit < call.deadline:
            call.deadline = limit

    def forgives(self, call: Call, now: float) -> bool:
        """Whether a call past its deadline goes to the end of the line instead of failing.

        Only the queue's own limit can be forgiven, never a deadline that the caller brought.
        """
        if not self._queue_timeouts:
            return False
        if call.caller_deadline is not None and call.caller_deadline <= now:
            return False
        return self._delays(call)

    def hard_deadline(self, call: Call) -> float | None:
        """The deadline that nothing forgives: with `delay`, the caller's own."""
        if self._queue_timeouts and self._delays(call):
            return call.caller_deadline
        return call.deadline

    def _delays(self, call: Call) -> bool:
        own = self.settings.priority_queues.get(self.level(call.request.priority))
        action = own.timeout_action if own is not None else None
        return (action or self.queue.timeout_action) == "delay"

    # --- when a batch is closed, and how large

    def due(self, line: Line, now: float) -> float:
        """When the line may give a batch: `now` or earlier if at once.

        No call is held for more than half of its time.
        """
        if not self._delay or self._batch_one or line.rows >= self.max_rows:
            return now
        if self._preferred and line.rows >= self._preferred[0]:
            return now
        delay = self._delay
        return min(
            call.arrived + delay
            if call.deadline is None
            else min(call.arrived + delay, (call.arrived + call.deadline) / 2)
            for call in line.calls
        )

    def close(self, line: Line, now: float) -> tuple[int, str]:
        """The most rows of the batch that is closed now, and why it is closed."""
        rows = line.rows
        if self._batch_one:
            return 1, "single"
        if rows >= self.max_rows:
            return self.max_rows, "full"
        if not self._delay:
            return rows, "idle"
        for size in reversed(self._preferred):
            if rows >= size:
                return size, "preferred"
        return rows, "delay"
