"""In the child: calls come off the channel, go through a dispatcher, and go back."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

from gateway.batching.runner import Batch, Runner
from gateway.batching.slices import Slice
from gateway.call import ENDED, NEW, RUNNING, Call
from gateway.dispatch import Dispatcher
from gateway.errors import InferenceFailed, SluiceError
from gateway.isolation import messages as m
from gateway.isolation.arena import Arena
from gateway.isolation.channel import Channel
from gateway.isolation.memory import Table
from gateway.telemetry.logs import log
from gateway.telemetry.stats import ServableStats
from gateway.tensors import InferenceRequest, InferenceResponse

WAITS_FOR_READER: Final = float("inf")
"""In the table: it has begun to run, but nothing is to be expected of it now."""
TIDY_SECONDS: Final = 1.0


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


class StreamCall(ChildCall):
    """One with any number of answers; whoever reads them says what becomes of it."""

    __slots__ = ()

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
        self.stats = RecordingStats()
        self._model = model
        self._version = version
        self.dispatcher: Dispatcher
        self._channel = channel
        self._arena = arena
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, ChildCall] = {}
        self._streams: dict[int, tuple[asyncio.Task[None], asyncio.Semaphore]] = {}
        self._answers: list[tuple[int, InferenceResponse]] = []
        self._flush_due = False
        self._loop.call_later(TIDY_SECONDS, self._tidy)

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
            task = self._loop.create_task(self._run(stream, credit))
            self._streams[sent.slot] = task, credit
            return
        call = self._calls[sent.slot] = ChildCall(self, sent, request)
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
        parts: list[tuple[list[Any], list[Any]]] = []
        size = 0
        for slot, response in answers:
            try:
                tensors, data, after = m.measure(response.outputs, size)
            except Exception as error:
                failure = InferenceFailed(f"an output cannot be sent: {type(error).__name__}")
                self._channel.send((m.FAILED, slot, m.tell_error(failure)))
                continue
            size = after
            told.append((slot, tensors, response.parameters))
            parts.append((tensors, data))
        try:
            block = self._arena.take(size)
            view = self._arena.view(block)
            for tensors, data in parts:
                m.fill(view, tensors, data)
            self._channel.send((m.ANSWERS, batches, block, size, told))
        except Exception as error:
            failure = InferenceFailed(f"the answer cannot be sent: {type(error).__name__}: {error}")
            for slot, _, _ in told:
                self._channel.send((m.FAILED, slot, m.tell_error(failure)))

    # --- streams

    async def _run(self, call: StreamCall, credit: asyncio.Semaphore) -> None:
        slot = call.slot
        end: tuple[Any, ...] = (m.END, slot)
        try:
            answers = self.dispatcher.stream(call)
            try:
                async for response in answers:
                    if credit.locked():
                        self.starts[slot] = WAITS_FOR_READER
                    await credit.acquire()
                    self.starts[slot] = perf_counter()
                    block, size, told = m.put(self._arena, response.outputs)
                    self._channel.send((m.ITEM, slot, block, size, told, response.parameters))
            finally:
                await answers.aclose()
        except asyncio.CancelledError:
            pass
        except SluiceError as error:
            end = (m.FAILED, slot, m.tell_error(error))
        except Exception as error:
            log.exception("unexpected error in a stream")
            failure = InferenceFailed(f"internal error: {type(error).__name__}: {error}")
            end = (m.FAILED, slot, m.tell_error(failure))
        del self._streams[slot]
        self._channel.send(end)
        self.flush()

    # --- now and then

    def _tidy(self) -> None:
        """Cycles may keep requests whose calls have ended, and their shared memory with them."""
        self._loop.call_later(TIDY_SECONDS, self._tidy)
        if len(self._channel.incoming) > len(self._calls) + len(self._streams):
            gc.collect()
            self._channel.release_later()


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
        self._inner.run(batch, lambda ended: self._done(ended, done), here=here)

    def _mark(self, batch: Batch, start: float) -> None:
        starts = self._serving.starts
        for call in batch.calls:
            if isinstance(call, Slice):
                # Of a larger request, some rows may have run already: it counts as running.
                if start and isinstance(parent := call.parent, ChildCall):
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
