"""In the child: calls come off the channel, go through a dispatcher, and go back."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

import msgspec

from gateway.batching.batcher import Batcher
from gateway.batching.runner import Batch, Runner
from gateway.batching.slices import Slice
from gateway.batching.streamer import Streamer
from gateway.call import ENDED, NEW, QUEUED, RUNNING, Call
from gateway.dispatch import Dispatcher
from gateway.errors import InferenceFailed, SluiceError
from gateway.isolation import messages as m
from gateway.isolation.arena import Arena
from gateway.isolation.channel import Channel, Message
from gateway.isolation.memory import RUNS, WAITS_FOR_READER, Table
from gateway.telemetry.logs import log
from gateway.telemetry.stats import ServableStats
from gateway.tensors import InferenceRequest, InferenceResponse

TIDY_SECONDS: Final = 1.0
LONGEST_TIDY_SECONDS: Final = 60.0
OLD_SECONDS: Final = 2.0
"""Memory is looked at for so long before cycles are suspected."""


class RecordingStats(ServableStats):
    """Takes down what batches took, for the gateway, which counts."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[Any, ...]] = []

    def executed(
        self,
        requests: int,
        rows: int,
        reason: str,
        waited: float,
        assemble: float,
        infer: float,
    ) -> None:
        self.batches.append((requests, rows, reason, waited, assemble, infer))

    def split(self, requests: int, rows: int, seconds: float) -> None:
        self.batches.append((requests, rows, seconds))


class Runs:
    """Marks in the shared table: since when what occupies the model has run.

    Not per call, for callers may leave while the model goes on, or hangs.
    """

    def __init__(self, table: Table) -> None:
        self._runs = table.runs
        self._free = list(range(RUNS - 1, -1, -1))

    def begin(self) -> int | None:
        """A mark, set now; `None` when all are taken, which leaves that run unwatched."""
        if not self._free:
            return None
        mark = self._free.pop()
        self._runs[mark] = perf_counter()
        return mark

    def since(self, mark: int | None, start: float) -> None:
        """It counts from `start`."""
        if mark is not None:
            self._runs[mark] = start

    def end(self, mark: int | None) -> None:
        if mark is not None:
            self._runs[mark] = 0.0
            self._free.append(mark)


class ChildCall(Call):
    """A call in the child. That it runs is written into the shared table at once."""

    __slots__ = ("_headers", "_serving", "_state", "slot")

    def __init__(self, serving: Serving, sent: m.Sent, request: InferenceRequest) -> None:
        self._serving = serving
        self._state = NEW
        self.slot = sent.slot
        self._headers = sent.headers
        super().__init__(sent.arrived, sent.deadline)
        self.request = request

    @property
    def state(self) -> int:
        return self._state

    @state.setter
    def state(self, value: int) -> None:
        self._state = value
        if value == RUNNING:
            self._serving.starts[self.slot] = perf_counter()

    def header(self, name: str) -> str | None:
        return None if self._headers is None else self._headers.get(name)

    def _replied(self, response: InferenceResponse) -> None:
        self.owner = None  # no cycle may keep the request's memory
        self._serving.answered(self.slot, response)

    def _failed(self, error: SluiceError) -> None:
        self.owner = None
        self._serving.failed(self.slot, error)

    def _cancelled(self) -> None:
        self._serving.ended(self.slot)


class InnerChildCall(ChildCall):
    """One that a model makes for a call that was admitted already."""

    __slots__ = ()
    inner = True


class StreamCall(ChildCall):
    """One with any number of answers; whoever reads them says what becomes of it."""

    __slots__ = ("_left", "_run")

    def __init__(self, serving: Serving, sent: m.Sent, request: InferenceRequest) -> None:
        self._run: int | None = None
        self._left = False
        super().__init__(serving, sent, request)

    @property
    def state(self) -> int:
        return self._state

    @state.setter
    def state(self, value: int) -> None:
        if value == RUNNING and self._state == QUEUED:
            self._run = self._serving.runs.begin()
        self._state = value
        if value == RUNNING:
            self.since(perf_counter())

    def since(self, start: float) -> None:
        """From when on the model's next answer is awaited."""
        self._serving.starts[self.slot] = start
        self.model_since(start)

    def model_since(self, start: float) -> None:
        """The same once the call has ended, whose slot may belong to another one."""
        if not self._left:
            self._serving.runs.since(self._run, start)

    def left(self) -> None:
        """The model is done with it."""
        self._left = True
        self._serving.runs.end(self._run)

    def _failed(self, error: SluiceError) -> None:
        """The reader hears of it too."""

    def _cancelled(self) -> None:
        """The reader has done it."""


class Serving:
    """What the child does with requests. Owned by its event loop."""

    def __init__(
        self, channel: Channel, arena: Arena, table: Table, model: str, version: str
    ) -> None:
        self.starts = table.starts
        self.runs = Runs(table)
        self.stats = RecordingStats()
        self._model = model
        self._version = version
        self.dispatcher: Dispatcher
        self._channel = channel
        self._arena = arena
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, ChildCall] = {}
        self._streams: dict[int, tuple[asyncio.Task[Message], asyncio.Semaphore]] = {}
        self._answers: list[tuple[int, InferenceResponse]] = []
        self._flush_due = False
        self._encoder = msgspec.msgpack.Encoder()
        self._tidy_seconds = TIDY_SECONDS
        self._loop.call_later(TIDY_SECONDS, self._tidy)

    def serve(self, dispatcher: Dispatcher) -> None:
        """Calls go to this one."""
        self.dispatcher = dispatcher
        if isinstance(dispatcher, Streamer):
            dispatcher.on_left = _left

    # --- in

    def take(self, message: Sequence[Any]) -> None:
        """A message that has to do with requests."""
        kind = message[0]
        if kind == m.REQUEST:
            self._request(m.Sent(*message))
        elif kind == m.CANCEL:
            slot = message[1]
            if slot in self._streams:
                self._streams[slot][0].cancel()
            elif (call := self._calls.get(slot)) is not None:
                call.cancel()
        elif kind == m.CREDIT and message[1] in self._streams:
            credit = self._streams[message[1]][1]
            for _ in range(message[2]):
                credit.release()

    def _request(self, sent: m.Sent) -> None:
        view = self._channel.incoming.lease(sent.block, sent.size)
        request = InferenceRequest(
            self._model,
            self._version,
            m.tensors_of(view, sent.tensors),
            id=sent.id,
            outputs=tuple(sent.outputs),
            parameters=sent.parameters,
            timeout_us=sent.timeout_us,
            priority=sent.priority,
            unchecked=sent.unchecked,
        )
        if sent.alone:
            # A signature of its own: nothing else can share its batch.
            request.signature = (*request.signature, ("alone", sent.slot))
        if sent.stream:
            stream = StreamCall(self, sent, request)
            credit = asyncio.Semaphore(m.CREDITS)
            task = self._loop.create_task(self._stream(stream, credit))
            self._streams[sent.slot] = task, credit
            # Not in the task: one that is cancelled at once never begins.
            task.add_done_callback(lambda task: self._stream_ended(stream, task))
            return
        kind = InnerChildCall if sent.inner else ChildCall
        call = self._calls[sent.slot] = kind(self, sent, request)
        if sent.away and isinstance(self.dispatcher, Batcher):
            self.dispatcher.overload.turned_away(sent.away)
        try:
            self.dispatcher.submit(call)
        except SluiceError as error:
            call.fail(error)
        except Exception as error:
            log.exception("unexpected error on the request path")
            call.fail(InferenceFailed(f"internal error: {type(error).__name__}"))

    # --- out

    def answered(self, slot: int, response: InferenceResponse) -> None:
        """Collected, and sent together with what else comes of the batch."""
        del self._calls[slot]
        self._answers.append((slot, response))
        self._flush_soon()

    def failed(self, slot: int, error: SluiceError) -> None:
        del self._calls[slot]
        self._channel.send((m.FAILED, slot, m.tell_error(error)))

    def ended(self, slot: int) -> None:
        """Cancelled, as the gateway asked."""
        del self._calls[slot]
        self._channel.send((m.END, slot))

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what has come of batches so far."""
        self._flush_due = False
        batches, self.stats.batches = self.stats.batches, []
        answers, self._answers = self._answers, []
        if answers:
            self._send_answers(batches, answers)
        elif batches:
            self._channel.send((m.BATCHES, batches))
        self._channel.flush()

    def _send_answers(
        self, batches: list[Any], answers: Sequence[tuple[int, InferenceResponse]]
    ) -> None:
        told: list[Any] = []
        parts: list[tuple[int, list[Any], list[Any]]] = []
        size = 0
        for slot, response in answers:
            try:
                tensors, data, after = m.measure(response.outputs, size)
                # Written down one by one, so that whatever is wrong with one harms no other.
                text = self._encoder.encode((slot, tensors, response.parameters))
            except Exception as error:
                self._unsendable(slot, error)
                continue
            size = after
            told.append(msgspec.Raw(text))
            parts.append((slot, tensors, data))
        block = None
        try:
            block = self._arena.take(size)
            view = self._arena.view(block)
            for _, tensors, data in parts:
                m.fill(view, tensors, data)
            self._channel.send((m.ANSWERS, batches, block, size, told))
        except Exception as error:
            if block is not None:
                self._arena.give(block)
            for slot, _, _ in parts:
                self._unsendable(slot, error)

    def _unsendable(self, slot: int, error: Exception) -> None:
        failure = InferenceFailed(f"the answer cannot be sent: {type(error).__name__}: {error}")
        self._channel.send((m.FAILED, slot, m.tell_error(failure)))

    # --- streams

    async def _stream(self, call: StreamCall, credit: asyncio.Semaphore) -> Message:
        """Sends the answers; returns the message that ends them."""
        slot = call.slot
        end: tuple[Any, ...] = (m.END, slot)
        try:
            answers = self.dispatcher.stream(call)
            try:
                async for response in answers:
                    if credit.locked():
                        call.since(WAITS_FOR_READER)
                    await credit.acquire()
                    call.since(perf_counter())
                    self._send_item(slot, response)
            finally:
                call.model_since(perf_counter())
                await answers.aclose()
        except asyncio.CancelledError:
            pass
        except SluiceError as error:
            end = (m.FAILED, slot, m.tell_error(error))
        except Exception as error:
            log.exception("unexpected error in a stream")
            failure = InferenceFailed(f"internal error: {type(error).__name__}: {error}")
            end = (m.FAILED, slot, m.tell_error(failure))
        return end

    def _send_item(self, slot: int, response: InferenceResponse) -> None:
        block, size, told = m.put(self._arena, response.outputs)
        try:
            self._channel.send((m.ITEM, slot, block, size, told, response.parameters))
        except Exception as error:
            self._arena.give(block)
            raise InferenceFailed(
                f"the answer cannot be sent: {type(error).__name__}: {error}"
            ) from error

    def _stream_ended(self, call: StreamCall, task: asyncio.Task[Message]) -> None:
        del self._streams[call.slot]
        self._channel.send((m.END, call.slot) if task.cancelled() else task.result())
        self.flush()

    # --- now and then

    def _tidy(self) -> None:
        """Cycles may keep requests whose calls have ended, and their shared memory with them."""
        incoming = self._channel.incoming
        kept = len(incoming)
        if kept <= len(self._calls) + len(self._streams) or incoming.oldest() < OLD_SECONDS:
            self._tidy_seconds = TIDY_SECONDS
        else:
            gc.collect()
            self._channel.release_later()
            # What a model keeps for itself is not worth a look every second.
            found = len(incoming) < kept
            self._tidy_seconds = (
                TIDY_SECONDS if found else min(self._tidy_seconds * 2, LONGEST_TIDY_SECONDS)
            )
        self._loop.call_later(self._tidy_seconds, self._tidy)


def _left(call: Call) -> None:
    if isinstance(call, StreamCall):
        call.left()


class DeliveringRunner:
    """Lets a batch begin only when the answers of the one before are on their way.

    So what a crash takes along is what ran then, and nothing else.
    """

    def __init__(self, inner: Runner, serving: Serving, channel: Channel) -> None:
        self._inner = inner
        self._serving = serving
        self._channel = channel
        self._held: deque[tuple[Batch, Callable[[Batch], None], bool]] = deque()
        self._delivering = False
        channel.on_drained = self._resume

    def run(self, batch: Batch, done: Callable[[Batch], None], *, here: bool) -> None:
        """As `Runner.run`."""
        if self._delivering or self._channel.blocked:
            self._mark(batch, 0.0)
            self._held.append((batch, done, here))
        else:
            self._start(batch, done, here)

    def _start(self, batch: Batch, done: Callable[[Batch], None], here: bool) -> None:
        self._mark(batch, perf_counter())
        run = self._serving.runs.begin()

        def ended(batch: Batch) -> None:
            self._serving.runs.end(run)
            self._done(batch, done)

        self._inner.run(batch, ended, here=here)

    def _mark(self, batch: Batch, start: float) -> None:
        starts = self._serving.starts
        for call in batch.calls:
            if isinstance(call, Slice):
                # Of a larger request, some rows may have run already: it counts as running.
                parent = call.parent
                if start and isinstance(parent, ChildCall) and parent.state != ENDED:
                    starts[parent.slot] = start
            elif isinstance(call, ChildCall) and call.state != ENDED:
                starts[call.slot] = start

    def _done(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        self._delivering = True
        try:
            done(batch)
        finally:
            self._delivering = False
        self._mark(batch, 0.0)  # those that will be run again, apart
        self._serving.flush()
        self._resume()

    def _resume(self) -> None:
        while self._held and not self._delivering and not self._channel.blocked:
            self._start(*self._held.popleft())

    def close(self) -> None:
        """As `Runner.close`."""
        self._inner.close()
