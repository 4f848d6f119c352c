"""An event loop in a thread, for a model's own coroutines: blocking it harms nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Final, TypeVar

T = TypeVar("T")

PATIENCE: Final = 10.0
"""Most seconds that a closing model's thread is waited for."""


class LoopThread:
    """Started when first needed. `submit` is for any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine there; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """Cancels what is left, and ends the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
        if loop is None or thread is None or loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_end(), loop)
        thread.join(PATIENCE)


async def _end() -> None:
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
    loop.call_soon(loop.stop)


class Steps(AsyncIterator[T]):
    """An asynchronous iterator of `thread`'s loop, for another loop.

    Closing it while a step is under way cancels the step first.
    """

    def __init__(self, thread: LoopThread, iterator: AsyncIterator[T]) -> None:
        self._thread = thread
        self._iterator = iterator
        self._step: asyncio.Task[T] | None = None

    async def __anext__(self) -> T:
        return await asyncio.wrap_future(self._thread.submit(self._next()))

    async def _next(self) -> T:
        self._step = asyncio.ensure_future(_await(self._iterator))
        try:
            return await self._step
        except StopAsyncIteration:
            raise _Over from None

    def here(self) -> Iterator[T]:
        """All steps, for a thread without a loop; closed at the end."""
        try:
            while True:
                try:
                    yield self._thread.submit(self._next()).result()
                except _Over:
                    return
        finally:
            self._thread.submit(self._close()).result()

    async def aclose(self) -> None:
        """Ends the iteration; waits until the iterator has heard of it."""
        closing = self._thread.submit(self._close())
        await asyncio.shield(asyncio.wrap_future(closing))

    async def _close(self) -> None:
        if self._step is not None and not self._step.done():
            self._step.cancel()
            await asyncio.gather(self._step, return_exceptions=True)
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


class _Over(Exception):
    """The iterator is exhausted; `StopAsyncIteration` does not go through futures."""


async def _await(iterator: AsyncIterator[T]) -> T:
    return await anext(iterator)


async def until_over(steps: Steps[T]) -> AsyncIterator[T]:
    """All of `steps`, closed at the end."""
    try:
        while True:
            try:
                yield await steps.__anext__()
            except _Over:
                return
    finally:
        await steps.aclose()
