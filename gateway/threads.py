"""Threads that nobody waits for when the process ends: what may hang (a server, a file system)
must not keep a gateway from stopping. `asyncio.to_thread` and pools of threads would."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` gives, called in a thread of its own.

    Whoever is cancelled while waiting leaves the thread behind; what it gives is dropped.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    call = partial(contextvars.copy_context().run, partial(function, *args, **kwargs))

    def end(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(end, result, failure)

    threading.Thread(target=run, name="sluice-aside", daemon=True).start()
    return await done


class Threads:
    """At most `most` threads, which end when there is nothing to do. For any thread."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[tuple[Future[object], Callable[[], object]]] = deque()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Runs it in its turn."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.append((future, work))  # type: ignore[arg-type]
            if self._running >= self._most:
                return future
            self._running += 1
        threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def at_once(self, work: Callable[[], T]) -> Future[T]:
        """Runs it now, in a thread beside the others."""
        future: Future[T] = Future()
        self._start_beside(future, work)
        return future

    def hurry(self, future: Future[T]) -> None:
        """Runs it now, as `at_once` would have, unless it has begun."""
        with self._lock:
            for place, (each, _) in enumerate(self._waiting):
                if each is future:
                    _, work = self._waiting[place]
                    del self._waiting[place]
                    break
            else:
                return
        self._start_beside(future, work)  # type: ignore[arg-type]

    def close(self) -> None:
        """Cancels what has not begun; waits for nothing."""
        with self._lock:
            left = list(self._waiting)
            self._waiting.clear()
        for future, _ in left:
            future.cancel()

    def _start_beside(self, future: Future[T], work: Callable[[], T]) -> None:
        name = f"{self._name}-at-once"
        threading.Thread(target=run, args=(future, work), name=name, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                future, work = self._waiting.popleft()
            run(future, work)
            del future, work  # a thread that waits keeps nothing alive


def run(future: Future[T], work: Callable[[], T]) -> None:
    """Runs it here, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
