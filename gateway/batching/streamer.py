"""Runs models that answer a request any number of times, each request alone.

All state belongs to the event loop. Calls wait in one line for one of `instances` places; who
has a place runs until its model is done, in a thread (`Model.stream`) or as a task
(`AsyncModel.stream_async`).
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np

from gateway.batching.answers import Answers, Outputs, TaskWork, ThreadWork
from gateway.batching.assembly import Splitter
from gateway.batching.batcher import as_sluice_error
from gateway.batching.clock import Clock, Timer
from gateway.batching.line import Line
from gateway.batching.policy import BatchPolicy
from gateway.call import ENDED, QUEUED, RUNNING, Call
from gateway.contract import Contract, for_the_model
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    QueueFull,
    SluiceError,
    Unsupported,
)
from gateway.telemetry.access import access_log
from gateway.telemetry.logs import log
from gateway.telemetry.stats import ServableStats, error_name, failure_reason
from gateway.tensors import InferenceResponse
from runtimes.interface import Answer, AsyncModel, ForwardingModel, Model


class ThreadClock(Clock, Protocol):
    """A clock whose owning thread can be called back from others."""

    def call_soon_threadsafe(self, action: Callable[..., object], /, *args: Any) -> object: ...


class Streamer:
    """The waiting line of one decoupled servable, and what runs in it.

    Like `Batcher` it takes bounds, priorities and time limits from `policy`. The time limit of
    the queue is for waiting alone; the caller's own deadline ends a running stream as well.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        contract: Contract,
        policy: BatchPolicy,
        splitter: Splitter,
        clock: ThreadClock,
        stats: ServableStats,
    ) -> None:
        self.name = name
        self._version = name.rpartition("/")[2]
        self._model = model
        self.contract = contract
        self.policy = policy
        self.stats = stats
        self.instances = policy.instances
        self.elsewhere = model.elsewhere
        self.on_broken: Callable[[str], object] | None = None
        self.on_left: Callable[[Call], object] | None = None
        """Told when the model is done with a call, which may have ended long before."""
        self.pending = 0
        """Calls that wait, and those whose model has not come to its end."""
        self.waiting_bytes = 0
        self.now = clock.now
        self._clock = clock
        self._splitter = splitter
        self._line = Line()
        self._sequence = 0
        self._running = 0
        self._streams: dict[Call, Stream] = {}
        """Calls that have not ended."""
        self._jobs: SimpleQueue[ThreadWork | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._line.calls)

    @property
    def waiting_rows(self) -> int:
        """The same: here every call counts as one row."""
        return len(self._line.calls)

    # --- the way in

    def submit(self, call: Call) -> None:
        """Refused: the number of answers is the model's choice."""
        raise Unsupported(f"{self.name} may answer any number of times; ask for a stream")

    def stream(self, call: Call) -> AsyncGenerator[InferenceResponse]:
        """Puts a call into the line, at once, and gives its answers to be.

        Raises `InvalidRequest`, `QueueFull` or `DeadlineExceeded`, in which case nothing was
        kept; other errors come to whoever iterates.
        """
        request = call.request
        call.owner = self
        self.contract.check(request)
        if not isinstance(self._model, ForwardingModel):
            if request.unchecked:
                request.check_data()
            request.wire = None  # of no use here, and twice the memory
        call.size = request.nbytes
        self._check_bounds(call)
        stream = self._streams[call] = Stream(call, self)
        if self.policy.ordered_by_arrival:
            self._sequence += 1
            call.order = self._sequence
        else:
            call.order = self.policy.order(call)
        call.state = QUEUED
        self._line.add(call)
        self.pending += 1
        self.waiting_bytes += call.size
        self._watch(stream)
        self._fill()
        return stream

    def _check_bounds(self, call: Call) -> None:
        policy = self.policy
        queue = policy.queue
        if self.waiting:
            if self.waiting >= queue.max_rows:
                raise self._queue_full(f"{queue.max_rows} rows")
            if self.waiting_bytes + call.size > queue.max_bytes:
                raise self._queue_full(f"{queue.max_bytes} bytes")
            most = policy.max_requests(call.request.priority)
            if most and self._waiting_like(call) >= most:
                raise self._queue_full(f"{most} requests")
        if policy.max_in_flight and self.pending >= policy.max_in_flight:
            raise self._queue_full(f"{policy.max_in_flight} requests in flight")
        policy.set_deadline(call)
        deadline = policy.hard_deadline(call)
        if deadline is not None and deadline <= self.now():
            raise DeadlineExceeded("the deadline passed before the request was queued")

    def _waiting_like(self, call: Call) -> int:
        """Calls that wait at the priority of this one."""
        level = self.policy.level
        mine = level(call.request.priority)
        return sum(level(each.request.priority) == mine for each in self._line.calls)

    def _queue_full(self, bound: str) -> QueueFull:
        return QueueFull(
            f"the queue of {self.name} is full ({bound}); try again later or send fewer at a time"
        )

    # --- time limits

    def _watch(self, stream: Stream) -> None:
        deadline = stream.call.deadline
        if deadline is not None:
            delay = max(deadline - self.now(), 0.0)
            stream.timer = self._clock.call_later(delay, partial(self._due, stream))

    def _due(self, stream: Stream) -> None:
        call = stream.call
        stream.timer = None
        if call.state == ENDED or stream.complete:
            return
        now = self.now()
        if call.deadline is None or call.deadline > now:
            self._watch(stream)
        elif call.state == QUEUED:
            self._leave_line(call)
            if self.policy.forgives(call, now):
                call.deadline = call.caller_deadline
                call.order = self.policy.last_place(now)
                self._line.add(call)
                self.waiting_bytes += call.size
                self._watch(stream)
            else:
                self.pending -= 1
                self._fail(stream, self._too_late(call, now))
        else:
            stream.stop()
            self._fail(stream, self._cut_short(stream, now))

    def _too_late(self, call: Call, now: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed after {(now - call.arrived) * 1e3:.0f} ms in the queue of "
            f"{self.name}; the request was not executed"
        )

    def _cut_short(self, stream: Stream, now: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed after {(now - stream.call.arrived) * 1e3:.0f} ms and "
            f"{stream.count} answers of {self.name}; the model was stopped"
        )

    def _leave_line(self, call: Call) -> None:
        self._line.remove(call)
        self.waiting_bytes -= call.size

    # --- running

    def _fill(self) -> None:
        """Gives free places to those first in line."""
        while self._running < self.instances and self._line.calls:
            (call,) = self._line.take(1)
            self.waiting_bytes -= call.size
            stream = self._streams[call]
            now = self.now()
            late = call.deadline is not None and call.deadline <= now
            if late and not self.policy.forgives(call, now):
                self.pending -= 1
                self._fail(stream, self._too_late(call, now))
            else:
                self._start(stream, now)

    def _start(self, stream: Stream, now: float) -> None:
        call = stream.call
        call.state = RUNNING
        # The queue's own limit was for waiting.
        call.deadline = getattr(call, "caller_deadline", call.deadline)
        stream.cancel_timer()
        self._watch(stream)
        stream.started = stream.last = now
        self._running += 1
        request = call.request
        model = self._model
        if isinstance(model, ForwardingModel):
            # Undecoded, where that is possible.
            forward = partial(model.forward_stream, request, call.deadline, call.header)
            stream.work = TaskWork(forward, stream)
            return
        inputs = {tensor.name: tensor.array for tensor in request.inputs}
        arguments = (inputs, request.outputs, for_the_model(request.parameters))
        if isinstance(model, AsyncModel):
            start: Callable[[], AsyncIterator[Outputs]] = partial(model.stream_async, *arguments)
            if model.separate:
                start = partial(model.stream_each, request)
            stream.work = TaskWork(start, stream)
            return
        post = self._clock.call_soon_threadsafe
        work = stream.work = ThreadWork(partial(model.stream, *arguments), stream, post)
        if self._has_thread():
            self._jobs.put(work)
        else:
            failure = InferenceFailed("the system gives no more threads")
            self._clock.call_soon(partial(self.left, stream, failure, 0.0))

    def _has_thread(self) -> bool:
        """Whether a thread will take whoever got a place last."""
        if len(self._threads) < self._running:
            thread = threading.Thread(
                target=self._work, name=f"{self.name}/{len(self._threads)}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the system gives no more: those that there are must do
                return bool(self._threads)
            self._threads.append(thread)
        return True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # not kept in memory until the next one comes

    def convert(self, call: Call, outputs: Outputs) -> InferenceResponse:
        """One answer, checked. Raises `InferenceFailed`."""
        if isinstance(outputs, InferenceResponse):  # another server's, passed on
            outputs.route = call.route
            return outputs
        if not isinstance(outputs, Mapping):
            raise InferenceFailed(
                f"the model gave {type(outputs).__name__} as an answer; it must give a mapping of "
                "output names to arrays"
            )
        # Copies: the model may use its arrays again for the next answer.
        arrays = {name: np.array(array) for name, array in outputs.items()}
        (response,) = self._splitter.split([call], arrays)
        if isinstance(outputs, Answer) and outputs.parameters:
            response.parameters = dict(outputs.parameters)
        response.route = call.route
        return response

    # --- the way out

    def came(self, stream: Stream, response: InferenceResponse) -> None:
        """An answer of the model's."""
        if stream.complete:
            return  # nobody waits for it any more
        now = self.now()
        since, stream.last = stream.last, now
        self.stats.answered(stream.count, now - since, now - stream.call.arrived)
        stream.add(response)

    def left(self, stream: Stream, error: BaseException | None, seconds: float) -> None:
        """The model is done with a call, and the call's place is free."""
        stream.work = None
        stream.seconds = seconds
        if self.on_left is not None:
            self.on_left(stream.call)
        self._running -= 1
        self.pending -= 1
        if stream.complete:
            if error is not None:
                log.warning("%s failed after it was stopped: %s", self.name, said(error))
        elif error is not None:
            self._fail(stream, said(error))
        else:
            stream.cancel_timer()
            stream.finish()
        self._fill()

    def drained(self, answers: Answers) -> None:
        """The last answer was taken: the call has ended well."""
        assert isinstance(answers, Stream)
        call = answers.call
        self._forget(answers)
        call.state = ENDED
        took = self.now() - call.arrived
        stats = self.stats
        waited = answers.started - call.arrived
        stats.executed(1, 1, "stream", waited, 0.0, answers.seconds)
        if protocol := call.protocol:
            stats.requests[protocol, "ok"] += 1
            stats.request_seconds[protocol].observe(took)
            stats.success.add(1, took)
        if access_log.share:
            access_log.record(call, self._version, "ok", took)

    def cancelled(self, call: Call, *, waiting: bool) -> None:
        """Called by a call that ended by itself; its model is stopped."""
        stream = self._streams[call]
        if waiting:
            self._leave_line(call)
            self.pending -= 1
        stream.stop()
        self._account(stream, "cancelled", "CANCELED")
        stream.finish(Cancelled("the request was cancelled"), drop=True)

    def _fail(self, stream: Stream, error: SluiceError) -> None:
        """Ends a call with an error, behind the answers that it got."""
        stream.call.state = ENDED
        self._account(stream, error_name(error), failure_reason(error))
        stream.finish(error)

    def _account(self, stream: Stream, code: str, reason: str) -> None:
        call = stream.call
        self._forget(stream)
        took = self.now() - call.arrived
        if call.protocol:
            self.stats.failed(call.protocol, code, reason, took)
        if access_log.share:
            access_log.record(call, self._version, code, took)

    def _forget(self, stream: Stream) -> None:
        stream.cancel_timer()
        del self._streams[stream.call]

    # --- the rest

    def status(self) -> dict[str, Any]:
        """How many streams run, beside what other dispatchers say."""
        return {"streams": self._running}

    def close(self) -> None:
        """Lets the threads end. Nothing may be pending."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads = []


class Stream(Answers):
    """A call in a `Streamer`: its reader's side, and what the model gives to it."""

    def __init__(self, call: Call, streamer: Streamer) -> None:
        super().__init__(call, streamer)
        self._streamer = streamer
        self.timer: Timer | None = None
        self.started = self.last = 0.0
        """When it got its place, and when the last answer came."""
        self.seconds = 0.0
        """What the model worked on it."""

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def stop(self) -> None:
        """Asks the model to stop, if it is at work."""
        if self.work is not None:
            self.work.stop()

    def convert(self, outputs: Outputs) -> InferenceResponse:
        """See `Sink.convert`."""
        return self._streamer.convert(self.call, outputs)

    def came(self, response: InferenceResponse) -> None:
        """See `Sink.came`."""
        self._streamer.came(self, response)

    def left(self, error: BaseException | None, seconds: float) -> None:
        """See `Sink.left`."""
        self._streamer.left(self, error, seconds)


def said(error: BaseException) -> SluiceError:
    """What the caller is told of a failure in the model."""
    if isinstance(error, Exception):
        return as_sluice_error(error)
    return InferenceFailed(f"the runtime failed: {type(error).__name__}")
