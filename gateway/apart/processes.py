"""The gateway's side of the processes that read and write large JSON.

There are two lanes, so that who sends a few hundred kilobytes does not wait behind somebody's
hundred megabytes. A process is started when there is work for it, and ended when there was none
for a while.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from gateway.apart import child
from gateway.apart.process import (
    PACKAGE,
    Broken,
    CannotStart,
    CodecProcess,
    ProcessEnded,
    Unwanted,
    result,
)
from gateway.errors import InferenceFailed, SluiceError
from gateway.telemetry.logs import log

T = TypeVar("T")
LONG: Final = 4 * 1024 * 1024
"""Bytes from which work goes into the lane of long work, and is not worth finishing for nobody."""
IDLE_SECONDS: Final = 60.0
MOST_SECONDS: Final = 60.0
MOST_SECONDS_A_BYTE: Final = 4e-6
"""Work that has taken so long hangs. It is twenty times what a free processor needs."""
UNWANTED_SECONDS: Final = 5.0
"""Short work that nobody waits for has so long until it is ended."""
TRIES: Final = 2


class _Lane:
    def __init__(self, width: int) -> None:
        self.places = asyncio.Semaphore(width)
        self.idle: list[CodecProcess] = []
        self.retire: asyncio.TimerHandle | None = None


class CodecProcesses:
    """Runs functions in processes of their own. Owned by the event loop."""

    def __init__(
        self,
        width: int | None = None,
        idle_seconds: float = IDLE_SECONDS,
        *,
        most_seconds: float = MOST_SECONDS,
        unwanted_seconds: float = UNWANTED_SECONDS,
        package: str = PACKAGE,
    ) -> None:
        """`width`: processes a lane at most. The others are the constants above."""
        width = width or max(1, (os.cpu_count() or 1) // 4)
        self.most_seconds = most_seconds
        self._unwanted_seconds = unwanted_seconds
        self._package = package
        self._lanes = (_Lane(width), _Lane(width))
        self._idle_seconds = idle_seconds
        self._threads = ThreadPoolExecutor(2 * width, "json")
        self._at_work: set[CodecProcess] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """The processes that there are."""
        every = [*self._at_work, *self._lanes[0].idle, *self._lanes[1].idle]
        return [each.pid for each in every if each.pid is not None]

    async def run(
        self,
        size: int,
        function: Callable[..., T],
        *arguments: Any,
        after: Callable[[T], object] | None = None,
        trouble: str = "internal error",
    ) -> T:
        """What `function` gives for the arguments. It can be run twice.

        `function` is of a module in `PACKAGE`, and takes and gives `wire.TYPES`. `size`: about how
        many bytes there are to read or write. `after` is called with the result, in a thread. Being
        cancelled stops the work. Raises `SluiceError` as the function does; other errors are
        logged, and are an `InferenceFailed` that begins with `trouble`.
        """
        for _ in range(TRIES):
            try:
                return await self._once(size, function, arguments, after)
            except ProcessEnded:
                pass  # killed by somebody, perhaps for the memory that another request took
            except SluiceError:
                raise
            except Broken as error:
                raise InferenceFailed(f"{trouble}: {error}") from None
            except Exception as error:
                log.exception("unexpected error on the way of large JSON")
                raise InferenceFailed(f"{trouble}: {type(error).__name__}") from None
        raise InferenceFailed(
            f"the process that reads and writes large JSON ended {TRIES} times while it had this "
            "request; send large tensors as binary data, or give the gateway more memory"
        )

    async def _once(
        self,
        size: int,
        function: Callable[..., T],
        arguments: tuple[Any, ...],
        after: Callable[[T], object] | None,
    ) -> T:
        lane = self._lanes[size >= LONG]
        await lane.places.acquire()
        if self._closed:
            lane.places.release()
            raise InferenceFailed("the gateway is closing")
        process = self._take(lane)
        unwanted = threading.Event()

        def work() -> T:
            try:
                process.start()
            except CannotStart as error:
                log.error("cannot start a process for large JSON, others wait: %s", error)
                if unwanted.is_set():
                    raise Unwanted from None
                found: T = result(child.outcome(function, arguments))
            else:
                found = process.call(unwanted, function, arguments)
            if after is not None:
                after(found)
            return found

        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._threads, work)
        seconds = self.most_seconds + size * MOST_SECONDS_A_BYTE
        late = loop.call_later(seconds, process.end)
        working.add_done_callback(lambda _: self._back(lane, process, late))
        try:
            return await asyncio.shield(working)
        except ProcessEnded:
            if loop.time() < late.when():
                raise
            raise InferenceFailed(
                f"the JSON of this request took more than {seconds:.0f} s to read or write; send "
                "large tensors as binary data"
            ) from None
        except asyncio.CancelledError:
            unwanted.set()  # one that is being started is for whoever comes next
            working.add_done_callback(lambda done: done.cancelled() or done.exception())

            def give_up() -> None:
                if process.computing and not working.done():
                    process.end()

            if size >= LONG:
                give_up()
            else:
                overdue = loop.call_later(self._unwanted_seconds, give_up)
                working.add_done_callback(lambda _: overdue.cancel())
            raise

    def _take(self, lane: _Lane) -> CodecProcess:
        """One that lives, or one that is not started yet."""
        process = CodecProcess(self._package)
        while lane.idle:
            idle = lane.idle.pop()
            if idle.usable:
                process = idle
                break
            self._threads.submit(idle.close)
        self._at_work.add(process)
        return process

    def _back(self, lane: _Lane, process: CodecProcess, late: asyncio.TimerHandle) -> None:
        """The process has nothing to do any more, or is no more."""
        late.cancel()
        lane.places.release()
        if self._closed:
            return
        self._at_work.discard(process)
        if process.usable:
            lane.idle.append(process)
        else:
            self._threads.submit(process.close)
        if lane.retire is not None:
            lane.retire.cancel()
        lane.retire = asyncio.get_running_loop().call_later(self._idle_seconds, self._retire, lane)

    def _retire(self, lane: _Lane) -> None:
        while lane.idle:
            # Giving back the memory of a large one takes a while.
            self._threads.submit(lane.idle.pop().close)

    async def close(self) -> None:
        """Ends all processes, and what they are at."""
        self._closed = True
        for process in self._at_work:
            process.end()
        for lane in self._lanes:
            if lane.retire is not None:
                lane.retire.cancel()
            self._retire(lane)
        await asyncio.to_thread(self._threads.shutdown)
        while self._at_work:
            await asyncio.to_thread(self._at_work.pop().close)
