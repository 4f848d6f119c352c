"""The answers to one call of a decoupled model: where they come from, and who takes them.

A model is let run ahead of its reader by `AHEAD` answers, no further: memory is bounded
whatever the model gives and however slowly it is read.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from time import perf_counter
from typing import Any, Final, NoReturn, Protocol

from gateway.call import ENDED, Call
from gateway.errors import InferenceFailed, SluiceError
from gateway.tensors import Array, InferenceResponse

AHEAD: Final = 4
"""Answers of one call that may be made and not read yet."""

_NO_MORE: Final = object()

Outputs = Mapping[str, Array] | InferenceResponse


class Work(Protocol):
    """What makes the answers of one call, in the place that it was given."""

    def taken(self) -> None:
        """The reader took an answer: there is room for another."""

    def stop(self) -> None:
        """Asks it to end soon. It keeps its place until it has."""


class Sink(Protocol):
    """Where `Work` brings what the model gives."""

    def convert(self, outputs: Outputs) -> InferenceResponse:
        """One answer from its outputs; for any thread. Raises `InferenceFailed`."""

    def came(self, response: InferenceResponse) -> None:
        """An answer; on the loop."""

    def left(self, error: BaseException | None, seconds: float) -> None:
        """The model is done, after `seconds` of work; once, on the loop."""


class ThreadWork:
    """A model's iterator, run in a thread. `post` has the loop do something."""

    def __init__(
        self,
        start: Callable[[], Iterator[Outputs]],
        sink: Sink,
        post: Callable[..., object],
    ) -> None:
        self._start = start
        self._sink = sink
        self._call_soon_threadsafe = post
        self._stopped = False
        self._room = threading.Semaphore(AHEAD)

    def taken(self) -> None:
        self._room.release()

    def stop(self) -> None:
        self._stopped = True
        self._room.release()

    def run(self) -> None:
        """Does all of it; for the thread. Never raises, whatever the model does."""
        seconds = 0.0
        failure: BaseException | None = None
        try:
            seconds = self._run()
        except BaseException as error:  # a model that exits must not take the thread along
            failure = error
        self._post(self._sink.left, failure, seconds)

    def _post(self, action: Callable[..., object], *arguments: object) -> None:
        try:
            self._call_soon_threadsafe(action, *arguments)
        except RuntimeError:
            self._stopped = True  # the loop is closed: nobody is left to hear it

    def _run(self) -> float:
        seconds = 0.0
        if self._stopped:
            return seconds
        since = perf_counter()
        answers = iter(self._start())
        try:
            while True:
                # Room first: an answer is made only when there is somewhere to put it.
                seconds += perf_counter() - since
                self._room.acquire()
                if self._stopped:
                    return seconds
                since = perf_counter()
                outputs: Any = next(answers, _NO_MORE)
                if outputs is _NO_MORE:
                    return seconds + perf_counter() - since
                self._post(self._sink.came, self._sink.convert(outputs))
        finally:
            # In this thread, as generators want it: they see GeneratorExit at their `yield`.
            close = getattr(answers, "close", None)
            if close is not None:
                close()


class TaskWork:
    """A model's asynchronous iterator, run as a task of the owning loop."""

    def __init__(self, start: Callable[[], AsyncIterator[Outputs]], sink: Sink) -> None:
        self._start = start
        self._sink = sink
        self._stopped = False
        self._seconds = 0.0
        self._room = asyncio.Semaphore(AHEAD)
        self._task = asyncio.get_running_loop().create_task(self._run())
        # Not at the end of `_run`: a task may be cancelled before it begins.
        self._task.add_done_callback(self._done)

    def taken(self) -> None:
        self._room.release()

    def stop(self) -> None:
        self._stopped = True
        self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._iterate()
        except SystemExit:
            # The loop itself would end by it.
            raise InferenceFailed("the model raised SystemExit") from None

    async def _iterate(self) -> None:
        since = perf_counter()
        answers = aiter(self._start())
        try:
            while True:
                self._seconds += perf_counter() - since
                await self._room.acquire()
                since = perf_counter()
                outputs: Any = await anext(answers, _NO_MORE)
                if outputs is _NO_MORE:
                    self._seconds += perf_counter() - since
                    return
                self._sink.came(self._sink.convert(outputs))
        finally:
            close = getattr(answers, "aclose", None)
            if close is not None:
                await close()

    def _done(self, task: asyncio.Task[None]) -> None:
        failure: BaseException | None
        if task.cancelled():
            failure = None if self._stopped else InferenceFailed("the model cancelled itself")
        else:
            failure = task.exception()
        self._sink.left(failure, self._seconds)


class Reading(Protocol):
    """Who must know what becomes of `Answers`."""

    def drained(self, answers: Answers) -> None:
        """All answers were taken: the call has ended well."""


class Answers(AsyncGenerator[InferenceResponse]):
    """The answers to one call, for its front end to iterate over; owned by the event loop.

    It ends once: with the last answer, with an error behind those that came before it, or by
    being closed. Cancelling whoever waits for an answer closes it.
    """

    def __init__(self, call: Call, owner: Reading) -> None:
        self.call = call
        self.work: Work | None = None
        """Set for as long as the call has a place."""
        self.count = 0
        """Answers so far."""
        self.complete = False
        """Nothing comes any more; what did may be unread yet."""
        self._owner = owner
        self._unread: deque[InferenceResponse] = deque()
        self._error: SluiceError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # --- the side of the model

    def add(self, response: InferenceResponse) -> None:
        """One more answer."""
        self.count += 1
        self._unread.append(response)
        self._wake()

    def finish(self, error: SluiceError | None = None, *, drop: bool = False) -> None:
        """There will be no more. With `drop`, what is unread is not wanted either."""
        self.complete = True
        self._error = error
        if drop:
            self._unread.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the side of the reader

    async def asend(self, value: None) -> InferenceResponse:
        """The next answer. Raises `StopAsyncIteration` behind the last one, or `SluiceError`."""
        if self._waiter is not None:
            raise RuntimeError("somebody is waiting for the next answer already")
        while not self._unread:
            if self.complete:
                self._end()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.call.cancel()
                raise
            finally:
                self._waiter = None
        if self.work is not None:
            self.work.taken()
        return self._unread.popleft()

    def _end(self) -> NoReturn:
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self.call.state != ENDED:
            self._owner.drained(self)
        raise StopAsyncIteration

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None) -> InferenceResponse:
        """Closes it and raises what is given."""
        await self.aclose()
        if val is None:
            val = typ() if isinstance(typ, type) else typ
        raise val

    async def aclose(self) -> None:
        """Stops the model's work; does nothing if it has ended."""
        self.call.cancel()
        if self._waiter is None:
            self._error = None
