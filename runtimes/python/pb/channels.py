"""Where the answers to requests go: one for most, any number for decoupled models."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Final

from gateway.errors import InferenceFailed
from runtimes.interface import Answer

AHEAD: Final = 256
"""Answers of one request that may wait for their caller; then `send` waits too."""
STUCK_SECONDS: Final = 30.0
"""A caller that takes no answer for that long is given up: the model's thread serves others."""
FORGOTTEN: Final = (
    "the model forgot a request: its response sender is gone, and the final flag was never sent"
)


class OneAnswer:
    """The channel of a request that gets exactly one."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        self._gone = gone
        self._answer: Answer | Exception | None = None
        self._done = threading.Event()
        self.closed = False

    @property
    def cancelled(self) -> bool:
        return self._gone()

    def send(self, answer: Answer | Exception | None, *, final: bool) -> None:
        """See `Channel.send`."""
        if answer is not None:
            if self._answer is not None:
                self._answer = InferenceFailed(
                    "the model sent several responses to a request, but it is not decoupled"
                )
            else:
                self._answer = answer
        if final:
            self.end()

    def end(self, error: Exception | None = None) -> None:
        """There will be no answer any more."""
        if not self.closed:
            self.closed = True
            self._answer = error or self._answer
            self._done.set()

    def wait(self) -> Answer | Exception:
        """The answer, once it is final."""
        self._done.wait()
        return self._answer or InferenceFailed("the model sent no response")


class ManyAnswers:
    """The channel of a request to a decoupled model; iterated over on `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[Answer | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self.cancelled = False
        self.closed = False

    def send(self, answer: Answer | Exception | None, *, final: bool) -> None:
        """See `Channel.send`. Waits while too many answers are not read yet."""
        if answer is not None and not self.cancelled:
            if not self._room.acquire(timeout=STUCK_SECONDS):
                self.cancelled = True
                self.end(InferenceFailed(f"no answer was read for {STUCK_SECONDS:g} s"))
                return
            if not self.cancelled:
                self._put(answer)
        if final:
            self.end()

    def end(self, error: Exception | None = None) -> None:
        """Nothing comes any more."""
        if not self.closed:
            self.closed = True
            self._put(error)

    def _put(self, item: Answer | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:
            self.cancelled = True  # the loop is closed: nobody is left to hear it

    async def answers(self) -> AsyncGenerator[Answer]:
        """As they come. An answer that is an error ends it, as all of our streams."""
        try:
            while True:
                item = await self._queue.get()
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                self._room.release()
                yield item
        finally:
            self.cancelled = True
            self._room.release(AHEAD)


class Held:
    """What a request holds of its channel: when nobody can answer any more, that is an error."""

    def __init__(self, channel: OneAnswer | ManyAnswers) -> None:
        self._channel = channel

    @property
    def cancelled(self) -> bool:
        return self._channel.cancelled

    @property
    def closed(self) -> bool:
        return self._channel.closed

    def send(self, answer: Answer | Exception | None, *, final: bool) -> None:
        """See `Channel.send`."""
        self._channel.send(answer, final=final)

    def __del__(self) -> None:
        self._channel.end(InferenceFailed(FORGOTTEN))
