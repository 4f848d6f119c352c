"""Forms batches for one servable: never waits while the runtime is idle, grows while it is busy.

All state belongs to one thread (the event loop); nothing here takes a lock. Requests of one
signature wait in a `Line`; whenever the runtime has a free instance, the line whose head is
most urgent gives the next batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final

from gateway.batching.assembly import Splitter, check_rows
from gateway.batching.clock import Clock, Timer
from gateway.batching.curve import CostCurve
from gateway.batching.line import Line
from gateway.batching.overload import Overload
from gateway.batching.policy import NEVER, BatchPolicy
from gateway.batching.runner import Batch, Runner
from gateway.batching.slices import Slice, Slices
from gateway.call import ENDED, QUEUED, RUNNING, Call
from gateway.contract import Contract
from gateway.errors import (
    DeadlineExceeded,
    DeadlineUnmeetable,
    InferenceFailed,
    InvalidRequest,
    QueueFull,
    Saturated,
    SluiceError,
    Unavailable,
    WrongRows,
    printable,
    text_of,
    without_folders,
)
from gateway.telemetry.access import access_log
from gateway.telemetry.logs import log
from gateway.telemetry.stats import ServableStats, error_name, failure_reason
from gateway.tensors import Array, InferenceResponse, Signature

MAX_LINES: Final = 256
"""Most signatures with a line of their own; idle ones are forgotten first."""
MAX_REQUEST_ROWS: Final = 2**20
"""Most rows of a request where the model sets no bound: each slice of it takes memory."""
LOOP_BUDGET: Final = 0.002
"""Most seconds of model time on the loop before others get a turn."""

LARGE: Final = 1 << 20
"""Bytes of a request from which joining it with others must pay."""
JOIN_SECONDS: Final = 2e-10
"""What joining a byte takes: copied into the batch, and its answer out of it."""
RETRY_JOINING: Final = 64


class Batcher:
    """The waiting lines of one servable and what runs in it."""

    def __init__(
        self,
        name: str,
        contract: Contract,
        policy: BatchPolicy,
        runner: Runner,
        splitter: Splitter,
        clock: Clock,
        stats: ServableStats,
        curve: CostCurve,
        *,
        elsewhere: bool = False,
    ) -> None:
        self.name = name
        self._version = name.rpartition("/")[2]
        self.contract = contract
        self.policy = policy
        self.stats = stats
        self.curve = curve
        self.pending = 0
        """Calls that wait or run here, the slices of larger ones included."""
        self.waiting_rows = 0
        self.waiting_bytes = 0
        self.waiting = 0
        self.overload = Overload(policy, curve)
        self.on_broken: Callable[[str], object] | None = None
        self.instances = policy.instances
        self.elsewhere = elsewhere
        self._runner = runner
        self._splitter = splitter
        self._clock = clock
        self.now = clock.now
        self._lines: dict[Signature, Line] = {}
        self._retries: deque[Batch] = deque()
        self._stoppable: list[Batch] = []
        """Batches under way whose work ends when nobody waits for it any more."""
        self._running = 0
        self._running_rows = 0
        self._started_at = 0.0
        self._flush_due = False
        self._flushing = False
        self._delay_timer: Timer | None = None
        self._expiry_timer: Timer | None = None
        self._expiry_at = 0.0
        self._waiting_by_level: dict[int, int] = {}
        self._levels: dict[Call, int] = {}
        self._sequence = 0
        self._apart = 0
        """Batches of large tensors that were not joined, ever."""
        self._rows_taken = 0
        """Rows that left the lines for a batch, ever."""

    # --- the way in

    def submit(self, call: Call) -> None:
        """Puts a call into its line. It ends later, exactly once.

        Raises `InvalidRequest`, `QueueFull`, `Saturated`, `DeadlineUnmeetable` or
        `DeadlineExceeded`, in which case nothing was kept.
        """
        request = call.request
        contract = self.contract
        call.owner = self
        if request.parameters and contract.parameters_matter:
            request.signature = contract.signature(request)
        line = self._lines.get(request.signature)
        if line is None or not contract.batched:
            contract.check(request)
            line = self._open_line(request.signature)
        if request.outputs:
            contract.check_outputs(request)
        if contract.batched:
            if len(request.inputs) > 1 or request.rows < 1:
                contract.check_rows(request)
            call.rows = request.rows
        if request.unchecked:
            request.check_data()
        request.wire = None  # of no use here, and twice the memory for as long as it waits
        call.size = request.nbytes
        self._check_bounds(call)
        if call.rows > self.policy.max_rows:
            self._submit_slices(call, line)
        else:
            self._enqueue(call, line)

    def _enqueue(self, call: Call, line: Line) -> None:
        policy = self.policy
        if policy.ordered_by_arrival:
            self._sequence += 1
            call.order = self._sequence
        else:
            call.order = policy.order(call)
        if policy.levels:
            level = policy.level(call.request.priority)
            self._levels[call] = level
            self._waiting_by_level[level] = self._waiting_by_level.get(level, 0) + 1
        call.state = QUEUED
        line.add(call)
        self.pending += 1
        self.waiting += 1
        self.waiting_rows += call.rows
        self.waiting_bytes += call.size
        if call.deadline is not None:
            self._watch_deadline(call.deadline)
        self._flush_soon()

    def _submit_slices(self, call: Call, line: Line) -> None:
        slices = Slices(call, self.policy.max_rows, self._succeed, self._fail, self)
        call.state = QUEUED
        for piece in slices.slices:
            piece.owner = self
            piece.rows = piece.request.rows
            piece.size = piece.request.nbytes
            self._enqueue(piece, line)
        call.owner = slices

    def _open_line(self, signature: Signature) -> Line:
        if not self.contract.batched:
            signature = ()
        line = self._lines.get(signature)
        if line is None:
            if len(self._lines) >= MAX_LINES:
                for old, idle in list(self._lines.items()):
                    if not idle.calls:
                        del self._lines[old]
            line = self._lines[signature] = Line()
        return line

    def _check_bounds(self, call: Call) -> None:
        policy = self.policy
        queue = policy.queue
        most = policy.max_request_rows or MAX_REQUEST_ROWS
        if call.rows > most:
            raise InvalidRequest(
                f"the request has {call.rows} rows; model '{call.request.model}' takes at most "
                f"{most} (limits.max_rows in its model.yaml)"
            )
        if self.waiting:
            # A request of any size may wait alone; together they are bounded.
            if self.waiting_rows + call.rows > queue.max_rows:
                self.overload.turned_away(call.rows)
                raise self._queue_full(f"{queue.max_rows} rows")
            if self.waiting_bytes + call.size > queue.max_bytes:
                self.overload.turned_away(call.rows)
                raise self._queue_full(f"{queue.max_bytes} bytes")
            if policy.max_requests(call.request.priority):
                self._check_requests(call)
        if policy.max_in_flight and self.pending >= policy.max_in_flight:
            raise self._queue_full(f"{policy.max_in_flight} requests in flight")
        policy.set_deadline(call)
        # A request that joins an idle servable, or comes from a model at work, is let in always.
        if self.overload.on and self.waiting and not call.inner:
            self._check_overload(call)
        deadline = policy.hard_deadline(call)
        if deadline is not None:
            left = deadline - self._clock.now()
            if left <= 0:
                raise DeadlineExceeded("the deadline passed before the request was queued")
            # An idle servable always tries: else one slow sample could refuse everybody for ever.
            if self.pending:
                self._check_deadline(call, left)

    def _check_requests(self, call: Call) -> None:
        policy = self.policy
        level = policy.level(call.request.priority)
        waiting = self._waiting_by_level.get(level, 0) if policy.levels else self.waiting
        bound = policy.max_requests(call.request.priority)
        if waiting >= bound:
            raise self._queue_full(f"{bound} requests")

    def _check_overload(self, call: Call) -> None:
        overload = self.overload
        wait = self._rows_ahead(call) / overload.rate + self._running_left()
        now = self._clock.now()
        if wait <= overload.target or overload.past(now):
            return
        overload.refused(call.rows, now)
        raise Saturated(
            f"more comes to {self.name} than it can do (about {overload.offered:,.0f} rows/s, and "
            f"{overload.served:,.0f} are done), and the work ahead takes about {wait * 1e3:.0f} "
            "ms; try again later or send fewer at a time",
            retry_after=max(wait, 0.001),
        )

    def _check_deadline(self, call: Call, left: float) -> None:
        wait = self.expected_wait(self._rows_ahead(call))
        cost = self.curve.predict(min(call.rows, self.policy.max_rows))
        if cost is not None and wait + cost > left:
            if self._running_left() + cost <= left:  # it is those who wait that are too many
                self.overload.turned_away(call.rows)
            raise DeadlineUnmeetable(
                f"the deadline is {left * 1e3:.1f} ms away, but the work ahead takes about "
                f"{wait * 1e3:.1f} ms and the request {cost * 1e3:.1f} ms",
                retry_after=max(wait, 0.001),
            )

    def _rows_ahead(self, call: Call) -> int:
        """Waiting rows that will run before this call, which is not in line yet."""
        if self.policy.ordered_by_arrival:
            return self.waiting_rows
        order = self.policy.order(call)
        return sum([line.rows_ahead(order) for line in self._lines.values() if line.calls])

    def expected_wait(self, rows: int | None = None) -> float:
        """Seconds until `rows` (all that wait, if not told) and what runs now will be done, by
        the learned cost."""
        most = self.policy.max_rows
        rows = self.waiting_rows if rows is None else rows
        full = self.curve.predict(most) or 0.0
        rest = (self.curve.predict(rows % most) or 0.0) if rows % most else 0.0
        return ((rows // most) * full + rest) / self.policy.instances + self._running_left()

    def _running_left(self) -> float:
        """Seconds until an instance is free, by the learned cost."""
        if self._running < self.policy.instances:
            return 0.0
        cost = self.curve.predict(self._running_rows // self._running) or 0.0
        return max(cost - (self._clock.now() - self._started_at), 0.0)

    def _queue_full(self, bound: str) -> QueueFull:
        return QueueFull(
            f"the queue of {self.name} is full ({bound}); try again later or send fewer at a time",
            retry_after=max(self.expected_wait(), 0.001),
        )

    # --- leaving the line early

    def cancelled(self, call: Call, *, waiting: bool) -> None:
        """Called by a call that ended by itself; its row in a running batch is just dropped."""
        if waiting:
            self._forget(call)
        elif self._stoppable:
            self._stop_unwanted()
        if call.protocol:
            took = self._clock.now() - call.arrived
            self.stats.failed(call.protocol, "cancelled", "CANCELED", took)
            if access_log.share:
                access_log.record(call, self._version, "cancelled", took)

    def _stop_unwanted(self) -> None:
        """Ends the work on batches whose calls have all ended."""
        for batch in self._stoppable:
            if batch.cancel is not None and all(call.state == ENDED for call in batch.calls):
                cancel, batch.cancel = batch.cancel, None
                cancel()

    def _latest_deadline(self, calls: Sequence[Call]) -> float | None:
        """That of a batch: the latest of its calls'; `None` where one has none."""
        latest = 0.0
        for call in calls:
            deadline = self._caller_deadline(call)
            if deadline is None:
                return None
            latest = max(latest, deadline)
        return latest

    def _caller_deadline(self, call: Call) -> float | None:
        """Without the queue's own time limit, which is for waiting."""
        return getattr(call, "caller_deadline", call.deadline)

    def _forget(self, call: Call) -> None:
        signature = call.request.signature if self.contract.batched else ()
        self._lines[signature].remove(call)
        self._left([call])
        self.pending -= 1

    def _left(self, calls: Sequence[Call]) -> None:
        """Takes calls out of what waits."""
        self.waiting -= len(calls)
        for call in calls:
            self.waiting_rows -= call.rows
            self.waiting_bytes -= call.size
        if self._levels:
            for call in calls:
                self._waiting_by_level[self._levels.pop(call)] -= 1

    def _watch_deadline(self, deadline: float) -> None:
        if self._expiry_timer is not None:
            if self._expiry_at <= deadline:
                return
            self._expiry_timer.cancel()
        self._expiry_at = deadline
        delay = max(deadline - self._clock.now(), 0.0)
        self._expiry_timer = self._clock.call_later(delay, self._expire)

    def _expire(self) -> None:
        """Ends every waiting call whose deadline has passed."""
        self._expiry_timer = None
        now = self._clock.now()
        nearest = NEVER
        # Over copies: whoever hears of an end may cancel or submit others at once.
        for line in list(self._lines.values()):
            for call in [c for c in line.calls if c.deadline is not None]:
                if call.state != QUEUED:
                    continue
                if call.deadline is not None and call.deadline <= now:
                    if not self.policy.forgives(call, now):
                        self._forget(call)
                        self._fail(call, self._too_late(call, now))
                        continue
                    line.remove(call)
                    call.deadline = call.caller_deadline
                    call.order = self.policy.last_place(now)
                    line.add(call)
                if call.deadline is not None:
                    nearest = min(nearest, call.deadline)
        for batch in list(self._retries):
            for call in batch.calls:
                if call.state == ENDED or call.deadline is None:
                    continue
                if call.deadline > now:
                    nearest = min(nearest, call.deadline)
                elif not self.policy.forgives(call, now):
                    self._fail(call, self._too_late(call, now))
        for batch in list(self._stoppable):
            for call in batch.calls:
                deadline = self._caller_deadline(call)
                if call.state == ENDED or deadline is None:
                    continue
                if deadline > now:
                    nearest = min(nearest, deadline)
                else:
                    self._fail(call, self._while_running(call, now))
        if self._stoppable:
            self._stop_unwanted()
        if nearest < NEVER:
            self._watch_deadline(nearest)

    def _while_running(self, call: Call, now: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed after {(now - call.arrived) * 1e3:.0f} ms, while {self.name} was "
            "at work; it may be executing the request"
        )

    # --- forming and running batches

    def flush(self) -> None:
        """Runs batches for as long as there are both waiting calls and a free instance."""
        self._flush_due = False
        if self._flushing:
            return
        self._flushing = True
        on_loop = 0.0
        try:
            while self._running < self.policy.instances:
                batch = self._retry() if self._retries else self._next_batch()
                if batch is None:
                    break
                if not batch.calls:
                    continue
                cost = self._cost_here(batch.rows)
                self._running += 1
                self._running_rows += batch.rows
                self._started_at = batch.closed
                if self.elsewhere:
                    batch.deadline = self._latest_deadline(batch.calls)
                self._runner.run(batch, self._finished, here=cost is not None)
                if batch.cancel is not None:
                    self._watch_running(batch)
                if cost is not None:
                    on_loop += cost
                    if on_loop > LOOP_BUDGET:
                        self._flush_soon()
                        break
        finally:
            self._flushing = False

    def _watch_running(self, batch: Batch) -> None:
        self._stoppable.append(batch)
        for call in batch.calls:
            deadline = self._caller_deadline(call)
            if deadline is not None:
                self._watch_deadline(deadline)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._clock.call_soon(self.flush)

    def _cost_here(self, rows: int) -> float | None:
        """Expected seconds if the batch is cheap enough for the loop itself, else `None`."""
        cost = self.curve.predict(rows)
        return cost if cost is not None and cost <= self.policy.inline_seconds else None

    def _next_batch(self) -> Batch | None:
        """Closes the next batch, or arms the timer of the nearest delay."""
        now = self._clock.now()
        policy = self.policy
        if self._expiry_timer is not None and self._expiry_at <= now:
            # The loop is late: nobody is to be chosen for a call that has expired.
            self._expiry_timer.cancel()
            self._expire()
        if policy.ordered_by_arrival:
            return self._next_in_order(now)
        best: Line | None = None
        wake: float | None = None
        for line in self._lines.values():
            if not line.calls:
                continue
            due = self._due(line, now)
            if due > now:
                wake = due if wake is None else min(wake, due)
            elif best is None or line.calls[0].order < best.calls[0].order:
                best = line
        if best is None:
            if wake is not None:
                self._wake_at(wake, now)
            return None
        limit, reason = policy.close(best, now)
        if (
            len(best.calls) > 1
            and best.calls[0].size >= LARGE
            and self._not_worth_joining(best, limit)
        ):
            limit, reason = 1, "single"
        return self._batch(best, limit, reason, now)

    def _not_worth_joining(self, line: Line, limit: int) -> bool:
        """Whether copying large tensors into one batch takes longer than it saves the model."""
        rows = min(line.rows, limit)
        saved = self.curve.saved(rows)
        if saved is None or saved > line.calls[0].size / line.calls[0].rows * rows * JOIN_SECONDS:
            return False
        # Now and then all the same: models and machines change.
        self._apart += 1
        return self._apart % RETRY_JOINING != 0

    def _next_in_order(self, now: float) -> Batch | None:
        """The next batch where nobody may overtake anybody, of whatever signature."""
        lines = sorted(
            (line for line in self._lines.values() if line.calls),
            key=lambda line: line.calls[0].order,
        )
        if not lines:
            return None
        first = lines[0]
        if len(lines) == 1:
            due = self._due(first, now)
            if due > now:
                self._wake_at(due, now)
                return None
            limit, reason = self.policy.close(first, now)
            return self._batch(first, limit, reason, now)
        # Another signature is next in line: who comes later cannot join, so do not wait.
        stop = lines[1].calls[0].order
        rows = sum(call.rows for call in first.calls if call.order < stop)
        limit, reason = self.policy.close(first, now)
        if rows < limit:
            limit, reason = rows, "shape"
        return self._batch(first, limit, reason, now)

    def _due(self, line: Line, now: float) -> float:
        """When the line may give a batch, as `BatchPolicy.due`."""
        if self.overload.on and line.rows >= self.overload.size:
            return now
        return self.policy.due(line, now)

    def _wake_at(self, when: float, now: float) -> None:
        """Arms the timer of the nearest delay."""
        if self._delay_timer is not None:
            self._delay_timer.cancel()
        self._delay_timer = self._clock.call_later(when - now, self._delay_over)

    def _batch(self, line: Line, limit: int, reason: str, now: float) -> Batch:
        """Takes a batch off the front of a line, without those that are too late by now."""
        if now >= self.overload.ends:
            self._end_window(now)
        if self.overload.on and limit > self.overload.size:
            limit = self.overload.size
        calls = line.take(limit)
        self._left(calls)
        rows = 0
        expired = False
        for call in calls:
            rows += call.rows
            call.state = RUNNING
            if call.deadline is not None and call.deadline <= now:
                expired = True
        self._rows_taken += rows
        if expired:
            calls = self._without_expired(calls, now)
            rows = sum(call.rows for call in calls)
        return Batch(calls, rows, reason, now)

    def _end_window(self, now: float) -> None:
        """Judges whether more comes than can be done."""
        overload = self.overload
        if not overload.window(now, self.waiting_rows, self._rows_taken):
            return
        if overload.on:
            log.warning(
                "%s: more comes than it can do, about %.0f rows/s, and %.0f are done; requests "
                "that would wait for more than %.0f ms are refused",
                self.name, overload.offered, overload.served, overload.target * 1e3,
            )  # fmt: skip
        else:
            log.info("%s: no longer comes more than it can do", self.name)

    def _without_expired(self, calls: list[Call], now: float) -> list[Call]:
        """Ends those whose deadline passed while the loop was busy; gives the others."""
        alive: list[Call] = []
        for call in calls:
            late = call.deadline is not None and call.deadline <= now
            if late and not self.policy.forgives(call, now):
                self.pending -= 1
                self._fail(call, self._too_late(call, now))
            else:
                alive.append(call)
        return alive

    def _too_late(self, call: Call, now: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed after {(now - call.arrived) * 1e3:.0f} ms in the queue of "
            f"{self.name}; the request was not executed"
        )

    def _retry(self) -> Batch:
        """The next half of a failed batch, without those that have ended meanwhile."""
        batch = self._retries.popleft()
        now = self._clock.now()
        alive = [call for call in batch.calls if call.state != ENDED]
        self.pending -= len(batch.calls) - len(alive)
        calls = self._without_expired(alive, now)
        return Batch(calls, sum(call.rows for call in calls), batch.reason, now)

    def _delay_over(self) -> None:
        self._delay_timer = None
        self.flush()

    # --- the way out

    def _finished(self, batch: Batch) -> None:
        """Hands the rows of a batch to their callers, or finds out whose fault it was."""
        self._running -= 1
        self._running_rows -= batch.rows
        if batch in self._stoppable:
            self._stoppable.remove(batch)
        calls = batch.calls
        error = batch.error
        responses: list[InferenceResponse] = []
        split_from = self._clock.now()
        if error is None:
            self._account(batch)
            if batch.answers is not None:
                self._finished_each(calls, batch.answers)
                return
            try:
                responses = self._splitter.split(calls, batch.outputs)
                batch.outputs = {}  # the answers' from here on
            except Exception as broken:
                error = broken
        if error is not None and len(calls) > 1 and not isinstance(error, (WrongRows, Unavailable)):
            self._retry_apart(batch)
            self._flush_soon()
            return
        self.pending -= len(calls)
        ordered = self.policy.ordered_by_arrival
        if not ordered:
            # The runtime gets its next batch before the answers of this one are written.
            self.flush()
        if error is None:
            self._answer(calls, responses)
            self.stats.split(len(calls), batch.rows, self._clock.now() - split_from)
        else:
            failure = as_sluice_error(error)
            for call in calls:
                self._fail(call, failure)
        if ordered:
            self.flush()

    def _finished_each(
        self, calls: Sequence[Call], answers: Sequence[Mapping[str, Array] | Exception]
    ) -> None:
        """The end of a batch whose calls have each an answer or an error of its own."""
        self.pending -= len(calls)
        if not self.policy.ordered_by_arrival:
            self.flush()
        for call, answer in zip(calls, answers, strict=True):
            try:
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(call, Slice):
                    check_rows(answer, call.rows)
                responses = self._splitter.split([call], answer)
            except Exception as error:
                self._fail(call, as_sluice_error(error))
            else:
                self._answer([call], responses)
        if self.policy.ordered_by_arrival:
            self.flush()

    def _account(self, batch: Batch) -> None:
        infer = batch.finished - batch.assembled
        self.curve.observe(batch.rows, infer)
        waited = 0.0
        for call in batch.calls:
            waited += batch.started - call.arrived
        self.stats.executed(
            len(batch.calls), batch.rows, batch.reason, waited,
            batch.assembled - batch.started, infer,
        )  # fmt: skip

    def _answer(self, calls: Sequence[Call], responses: Sequence[InferenceResponse]) -> None:
        now = self._clock.now()
        stats = self.stats
        seconds = 0.0
        answered = 0
        for call, response in zip(calls, responses, strict=True):
            if call.state == ENDED:
                continue
            if protocol := call.protocol:
                took = now - call.arrived
                seconds += took
                answered += 1
                stats.requests[protocol, "ok"] += 1
                stats.request_seconds[protocol].observe(took)
                if access_log.share:
                    access_log.record(call, response.version, "ok", took)
            response.route = call.route
            try:
                call.reply(response)
            except Exception:  # the others of the batch have nothing to do with it
                log.exception("unexpected error while answering")
        stats.success.add(answered, seconds)

    def _succeed(self, call: Call, response: InferenceResponse) -> None:
        """Ends one call that was put together from slices."""
        call.owner = self
        self._answer([call], [response])

    def _fail(self, call: Call, error: SluiceError) -> None:
        if call.state == ENDED:
            return
        if call.protocol:
            took = self._clock.now() - call.arrived
            self.stats.failed(call.protocol, error_name(error), failure_reason(error), took)
            if access_log.share:
                access_log.record(call, self._version, error_name(error), took)
        try:
            call.fail(error)
        except Exception:  # the others of the batch have nothing to do with it
            log.exception("unexpected error while answering")

    def _retry_apart(self, batch: Batch) -> None:
        """Runs the two halves of a failed batch, so that only the culprit fails in the end."""
        alive = [call for call in batch.calls if call.state != ENDED]
        self.pending -= len(batch.calls) - len(alive)
        middle = (len(alive) + 1) // 2
        # Depth first, so that the order of arrival is kept.
        for half in (alive[middle:], alive[:middle]):
            if half:
                rows = sum(call.rows for call in half)
                self._retries.appendleft(Batch(half, rows, "retry", self._clock.now()))
        for call in alive:
            if call.deadline is not None:
                self._watch_deadline(call.deadline)

    def stream(self, call: Call) -> AsyncGenerator[InferenceResponse]:
        """Batches give one answer a call: see `Pipeline.stream`."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """Nothing that other dispatchers do not have as well."""
        return {}

    def close(self) -> None:
        """Gives the threads back. Nothing may be pending."""
        for timer in (self._delay_timer, self._expiry_timer):
            if timer is not None:
                timer.cancel()
        self._runner.close()


def as_sluice_error(error: Exception) -> SluiceError:
    """What the caller is told of a failure in the runtime: its text is `printable`."""
    text = text_of(error)
    if isinstance(error, SluiceError):
        if error.args != (text,):
            error.args = (text,)
        return error
    text = printable(without_folders(" ".join(text.split())), 400)
    return InferenceFailed(f"the runtime failed: {printable(type(error).__name__)}: {text}")
