"""Simulated time for the batcher: whole scenarios in microseconds, the same every time.

`SimClock` and `SimRunner` stand in for the event loop and the threads. `Simulation` puts a
real `Batcher` between them and checks the invariants at every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from operator import attrgetter
from typing import Any

import numpy as np

from gateway.batching.assembly import Splitter
from gateway.batching.batcher import Batcher
from gateway.batching.curve import CostCurve
from gateway.batching.policy import HORIZON, BatchPolicy
from gateway.batching.runner import Batch, execute
from gateway.call import ENDED, QUEUED, Call
from gateway.contract import Contract
from gateway.errors import InvalidInput, SluiceError
from gateway.model_settings import BatchingSettings, LimitSettings
from gateway.telemetry.stats import ServableStats
from gateway.tensors import (
    DATATYPES,
    Array,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Tensor,
    TensorSpec,
)
from runtimes.interface import Model

TICK = 1e-6
"""Granularity of simulated timers, seconds."""
MS = 1e-3
DEFAULTS = BatchingSettings()
_MOST_EVENTS = 100_000


class SimTimer:
    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action

    def cancel(self) -> None:
        self.action = None


class SimClock:
    """A clock that stands still until `step` moves it to the next timer."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.after_event: Callable[[], None] = lambda: None
        """Called when everything that was due has run."""
        self._soon: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, SimTimer]] = []
        self._count = 0

    def now(self) -> float:
        return self.time

    def call_soon(self, action: Callable[[], object], /) -> None:
        self._soon.append(action)

    def call_later(self, delay: float, action: Callable[[], object], /) -> SimTimer:
        return self.call_at(self.time + max(delay, TICK), action)

    def call_at(self, when: float, action: Callable[[], object]) -> SimTimer:
        timer = SimTimer(action)
        self._count += 1
        heappush(self._timers, (when, self._count, timer))
        return timer

    def settle(self) -> None:
        """Runs what was put off with `call_soon`, and what that puts off."""
        for _ in range(_MOST_EVENTS):
            if not self._soon:
                break
            self._soon.popleft()()
        else:
            raise AssertionError("the loop never comes to rest")
        self.after_event()

    def run(self) -> None:
        """Runs until nothing is left to happen."""
        self.settle()
        for _ in range(_MOST_EVENTS):
            if not self._timers:
                return
            when, _count, timer = heappop(self._timers)
            if timer.action is not None:
                self.time = max(self.time, when)
                timer.action()
                self.settle()
        raise AssertionError("something goes on for ever")


class AddOne(Model):
    """``y = x + 1`` and ``z = -x`` row by row; chosen rows are poison or lose a row."""

    inputs = (TensorSpec("x", DATATYPES["INT64"], (-1, -1)),)
    outputs = (
        TensorSpec("y", DATATYPES["INT64"], (-1, -1)),
        TensorSpec("z", DATATYPES["INT64"], (-1, -1)),
    )
    batch_dimension = True

    def __init__(self) -> None:
        self.poison: set[int] = set()
        self.short: set[int] = set()
        self.parameters: list[Mapping[str, Parameter]] = []

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        self.parameters.append(parameters)
        x = inputs["x"]
        ids = set(x[:, 0].tolist())
        if ids & self.poison:
            raise InvalidInput("poison")
        answer = {"y": x + 1, "z": -x}
        if ids & self.short:
            answer = {name: array[:-1] for name, array in answer.items()}
        return {name: answer[name] for name in outputs or answer}


class SimCall(Call):
    """Remembers how and when it ended; ending twice is an error."""

    protocol = "test"

    def __init__(
        self, request: InferenceRequest, arrived: float, deadline: float | None = None
    ) -> None:
        super().__init__(arrived, deadline)
        self.request = request
        self.response: InferenceResponse | None = None
        self.error: SluiceError | None = None
        self.ended_at: float | None = None
        self.ends: list[str] = []
        self.accepted = False
        self.clock: SimClock
        self.at_end: Callable[[], object] = lambda: None
        self.own_deadline = deadline

    @property
    def first_id(self) -> int:
        return int(self.request.inputs[0].array[0, 0])

    def _end(self, how: str) -> None:
        self.ends.append(how)
        assert len(self.ends) == 1, f"ended twice: {self.ends}"
        self.ended_at = self.clock.now()
        self.at_end()

    def _replied(self, response: InferenceResponse) -> None:
        self.response = response
        self._end("reply")

    def _failed(self, error: SluiceError) -> None:
        self.error = error
        self._end(type(error).__name__)

    def _cancelled(self) -> None:
        self._end("cancel")


class SimRunner:
    """Takes simulated time; runs the batch through the real `execute`."""

    def __init__(
        self, clock: SimClock, model: Model, cost: Callable[[int], float], *, batched: bool
    ) -> None:
        self.clock = clock
        self.model = model
        self.cost = cost
        self.batched = batched
        self.running = 0
        self.log: list[Batch] = []
        self.before: Callable[[Batch], None] = lambda batch: None

    def run(self, batch: Batch, done: Callable[[Batch], None], *, here: bool) -> None:
        self.before(batch)
        self.log.append(batch)
        self.running += 1
        started = self.clock.now()
        seconds = self.cost(batch.rows)
        execute(self.model, batch, batched=self.batched)
        batch.started = batch.assembled = started
        batch.finished = started + seconds
        if here:
            self.clock.time += seconds
            self.running -= 1
            done(batch)
        else:
            self.clock.call_at(batch.finished, lambda: self._came_back(batch, done))

    def _came_back(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        self.running -= 1
        done(batch)

    def close(self) -> None:
        pass


class Simulation:
    """A batcher in simulated time, watched."""

    def __init__(
        self,
        settings: BatchingSettings = DEFAULTS,
        *,
        max_rows: int = 4,
        instances: int = 1,
        inline_seconds: float = 0.0,
        batched: bool = True,
        cost: Callable[[int], float] = lambda rows: 10 * MS,
        limits: LimitSettings | None = None,
        model: Model | None = None,
    ) -> None:
        self.settings = settings
        self.batched = batched
        self.clock = SimClock()
        self.model = model if model is not None else AddOne()
        self.policy = BatchPolicy(
            settings,
            max_rows=max_rows if batched else 1,
            instances=instances,
            inline_seconds=inline_seconds,
            limits=limits,
        )
        self.runner = SimRunner(self.clock, self.model, cost, batched=batched)
        self.runner.before = self._check_batch
        self.stats = ServableStats()
        contract = Contract(
            self.model.inputs,
            self.model.outputs,
            batched=batched,
            parameters_matter=self.model.parameters_matter,
        )
        self.batcher = Batcher(
            "m/1",
            contract,
            self.policy,
            self.runner,
            Splitter("m", "1", self.model.outputs),
            self.clock,
            self.stats,
            CostCurve(),
        )
        self.clock.after_event = self._check_rest
        self.calls: list[SimCall] = []
        self._next_id = 0

    # --- driving it

    def call(
        self,
        rows: int = 1,
        width: int = 1,
        *,
        deadline: float | None = None,
        **options: Any,
    ) -> SimCall:
        """A new call whose rows hold numbers that no other call has; not submitted yet."""
        now = self.clock.now()
        data = np.arange(self._next_id, self._next_id + rows * width, dtype=np.int64)
        self._next_id += rows * width
        tensor = Tensor("x", DATATYPES["INT64"], (rows, width), data.tobytes())
        request = InferenceRequest("m", "", (tensor,), id=f"#{len(self.calls)}", **options)
        call = SimCall(request, now, None if deadline is None else now + deadline)
        call.clock = self.clock
        self.calls.append(call)
        return call

    def submit(self, call: SimCall) -> SimCall:
        """Hands it to the batcher as the pipeline does."""
        before = self.counters()
        try:
            self.batcher.submit(call)
            call.accepted = True
        except SluiceError as error:
            assert self.counters() == before, "a refusal left something behind"
            call.fail(error)
        return call

    def arrive(self, rows: int = 1, width: int = 1, **options: Any) -> SimCall:
        return self.submit(self.call(rows, width, **options))

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Does something `seconds` from now."""
        self.clock.call_at(self.clock.now() + seconds, action)

    def run(self) -> None:
        """Lets everything happen, then checks that nothing is left."""
        self.clock.run()
        self.check_end()

    def counters(self) -> tuple[int, int, int, int]:
        batcher = self.batcher
        return batcher.pending, batcher.waiting, batcher.waiting_rows, batcher.waiting_bytes

    def waiting(self) -> list[Call]:
        """What is in the batcher's lines, slices of larger calls included."""
        return [call for line in self.batcher._lines.values() for call in line.calls]

    # --- what must always hold

    def due(self, call: Call) -> float:
        """The place in the line, worked out apart from the policy."""
        due = min(call.arrived + HORIZON, call.deadline or float("inf"))
        if levels := self.settings.priority_levels:
            default = self.settings.default_priority or (levels + 1) // 2
            level = min(call.request.priority, levels) or default
            due += (level - 1) * self.settings.priority_ageing_us / 1e6
        return due

    def _check_batch(self, batch: Batch) -> None:
        now = self.clock.now()
        assert self.runner.running < self.policy.instances, "more batches than instances"
        assert batch.calls, "an empty batch"
        assert all(call.state != ENDED for call in batch.calls), "runs what has ended"
        assert batch.rows == sum(call.rows for call in batch.calls)
        signatures = {call.request.signature for call in batch.calls}
        assert len(signatures) == 1, "two signatures in one batch"
        if not self.batched or not self.settings.enabled:
            assert len(batch.calls) == 1, "batches what must not be batched"
        if self.batched:
            assert batch.rows <= self.policy.max_rows, "more rows than the maximum"
        for call in batch.calls:
            late = call.deadline is not None and call.deadline <= now
            assert not late or self.policy.forgives(call, now), "runs what is too late"
        if batch.reason == "retry" or self.settings.queue.timeout_action == "delay":
            return
        if any(each.timeout_action for each in self.settings.priority_queues.values()):
            return
        if self.settings.preserve_ordering:
            order: Callable[[Call], float] = attrgetter("order")
            others = self.waiting()
        else:
            order = self.due
            (signature,) = signatures
            others = [c for c in self.waiting() if c.request.signature == signature]
            if not self.settings.max_delay_us:
                head = min(map(order, batch.calls))
                assert all(head <= order(call) for call in self.waiting()), "not the most urgent"
        last = max(map(order, batch.calls))
        assert all(last <= order(call) for call in others), "someone less urgent went first"

    def _check_rest(self) -> None:
        batcher = self.batcher
        waiting = self.waiting()
        assert batcher.waiting == len(waiting)
        assert batcher.waiting_rows == sum(call.rows for call in waiting)
        assert batcher.waiting_bytes == sum(call.size for call in waiting)
        assert all(call.state == QUEUED for call in waiting)
        for line in batcher._lines.values():
            assert line.rows == sum(call.rows for call in line.calls)
            assert [c.order for c in line.calls] == sorted(c.order for c in line.calls)
        now = self.clock.now()
        for call in waiting:
            late = call.deadline is not None and now - call.deadline > 2 * TICK
            assert not late, "waits beyond its deadline"
        if self.runner.running < self.policy.instances:
            assert not batcher._retries, "idle while a retry waits"
            if not self.settings.max_delay_us:
                assert not waiting, "idle while something waits"

    def check_end(self) -> None:
        """Everything ended once, with the right rows, and the counts add up."""
        assert self.counters() == (0, 0, 0, 0)
        assert not self.waiting()
        assert not self.batcher._levels
        assert not any(self.batcher._waiting_by_level.values())
        assert self.runner.running == 0
        for call in self.calls:
            assert len(call.ends) == 1, f"{call.request.id}: {call.ends}"
            if call.response is not None:
                self.check_answer(call, call.response)
        accepted = [call for call in self.calls if call.accepted]
        replies = sum(call.ends == ["reply"] for call in accepted)
        stats = self.stats
        assert stats.success.count == replies
        assert stats.fail.count == len(accepted) - replies
        assert sum(stats.requests.values()) == len(accepted)
        assert stats.requests["test", "ok"] == replies
        assert stats.requests["test", "cancelled"] == sum(c.ends == ["cancel"] for c in accepted)

    def check_answer(self, call: SimCall, response: InferenceResponse) -> None:
        x = call.request.inputs[0].array
        want = {"y": x + 1, "z": -x}
        names = call.request.outputs or tuple(want)
        assert tuple(tensor.name for tensor in response.outputs) == names
        assert response.id == call.request.id
        for tensor in response.outputs:
            assert tensor.shape == x.shape
            assert np.array_equal(tensor.array, want[tensor.name])
