"""The gateway's side of the processes that read and write large JSON.

There are two lanes, so that who sends a few hundred kilobytes does not wait behind somebody's
hundred megabytes. A process is started when there is work for it, and ended when there was none
for a while.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from gateway.apart import child, wire
from gateway.errors import InferenceFailed, SluiceError
from gateway.telemetry.logs import log

T = TypeVar("T")
LONG: Final = 4 * 1024 * 1024
"""Bytes from which work goes into the lane of long work, and is not worth finishing for nobody."""
IDLE_SECONDS: Final = 60.0
TRIES: Final = 2
_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from gateway.apart.child import main; main()"
)


class ProcessEnded(Exception):
    """The process is gone, or was told to go, before it had answered."""


class Broken(Exception):
    """An error that is none of ours came out of a function; its text is the error's type."""


class CodecProcess:
    """One process, started with the first call. All but `end` is for one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._over = False

    @property
    def pid(self) -> int | None:
        """`None` before the start."""
        return None if self._process is None else self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it may be called again."""
        return not self._over

    def call(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        """What the function gives over there; waits for it.

        Raises `SluiceError` as the function does, `Broken` for its other errors, `ProcessEnded`,
        and `OSError` where no process can be started.
        """
        sock = self._sock or self._start()
        try:
            wire.send(sock, (function, arguments))
            told = wire.receive(sock)
        except (EOFError, OSError):
            self.close()
            raise ProcessEnded from None
        found: T = _result(told)
        return found

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
                    stdin=subprocess.DEVNULL,
                    # It computes nothing for which more than one thread would be of use.
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                    pass_fds=(theirs.fileno(),),
                )
        except BaseException:
            ours.close()
            raise
        self._sock = ours
        if self._over:  # told so while it was started
            self._process.kill()
        return ours

    def end(self) -> None:
        """Ends the process at once, from whatever thread; a call that waits for it raises."""
        self._over = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the process and waits for its end."""
        self.end()
        if self._sock is not None:
            self._sock.close()
        if self._process is not None:
            self._process.wait()


def _result(told: tuple[Any, ...]) -> Any:
    """What was told, or raises the error that was."""
    kind, *rest = told
    if kind == child.DONE:
        return rest[0]
    if kind == child.REFUSED:
        error_type, text = rest
        error: SluiceError = error_type.__new__(error_type, text)
        raise error
    name, trace = rest
    log.error("unexpected error in the process that reads and writes JSON: %s", trace)
    raise Broken(name)


class _Lane:
    def __init__(self, width: int) -> None:
        self.places = asyncio.Semaphore(width)
        self.idle: list[CodecProcess] = []
        self.retire: asyncio.TimerHandle | None = None


class CodecProcesses:
    """Runs functions in processes of their own. Owned by the event loop."""

    def __init__(self, width: int | None = None, idle_seconds: float = IDLE_SECONDS) -> None:
        """`width`: processes a lane at most."""
        width = width or max(1, (os.cpu_count() or 1) // 4)
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
        """What `function` gives for the arguments. It is importable, and can be run twice.

        `size`: about how many bytes there are to read or write. `after` is called with the result,
        in a thread. Being cancelled stops the work. Raises `SluiceError` as the function does;
        its other errors are logged, and are an `InferenceFailed` that begins with `trouble`.
        """
        for _ in range(TRIES):
            try:
                return await self._once(size, function, arguments, after)
            except ProcessEnded:
                pass  # killed by somebody, perhaps for the memory that another request took
            except Broken as error:
                raise InferenceFailed(f"{trouble}: {error}") from None
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
        process = lane.idle.pop() if lane.idle else CodecProcess()
        self._at_work.add(process)

        def work() -> T:
            try:
                found = process.call(function, arguments)
            except OSError as error:
                log.error("cannot start a process for large JSON, others wait: %s", error.strerror)
                found = _result(child.outcome(function, arguments))
            if after is not None:
                after(found)
            return found

        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        working.add_done_callback(lambda _: self._back(lane, process))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            working.add_done_callback(lambda done: done.cancelled() or done.exception())
            if size >= LONG:
                process.end()
            raise

    def _back(self, lane: _Lane, process: CodecProcess) -> None:
        """The process has nothing to do any more, or is no more."""
        self._at_work.discard(process)
        lane.places.release()
        if self._closed:
            process.close()
            return
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

    def close(self) -> None:
        """Ends all processes, and what they are at."""
        self._closed = True
        for process in self._at_work:
            process.end()
        for lane in self._lanes:
            if lane.retire is not None:
                lane.retire.cancel()
            self._retire(lane)
        self._threads.shutdown(wait=True)
