"""Fork servers as the gateway sees them: one for each kind of children, started when needed."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Final

from gateway.isolation.bootstrap import REFUSED
from gateway.isolation.forkserver import STALE
from gateway.isolation.launch import Forked, Ties, plan_of, reap_group, run
from gateway.isolation.limits import Surroundings
from gateway.telemetry.logs import log

IMPORT_SECONDS: Final = 60.0
"""How long a fork server may import."""
FORK_SECONDS: Final = 10.0
LINGER_SECONDS: Final = 60.0
"""How long one without models is kept: on-demand models come back."""
PAUSE_SECONDS: Final = 60.0
"""How long children start as programs after a fork server could not be started."""
PR_SET_CHILD_SUBREAPER: Final = 36

Kind = tuple[Surroundings, tuple[str, ...]]
"""See `nursery`."""


class NotForked(Exception):
    """The fork server has not done it; the text says why, empty where that is in order."""


class _Adopting:
    """While in it, processes whose parents end become ours: the children that are being forked.

    Not for longer, since what models start in the background is none of ours.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._set(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._set(0)

    def _set(self, value: int) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, value, 0, 0, 0)


_adopting: Final = _Adopting()


class ForkServer:
    """One fork server. Made in a thread that lives as long as the gateway."""

    def __init__(self, around: Surroundings, modules: tuple[str, ...]) -> None:
        self.around = around
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._closed = False
        try:
            plan = plan_of(around, fork_server=theirs.fileno(), modules=modules)
            self._process: subprocess.Popen[bytes] = run(
                around, plan, (theirs.fileno(),), subprocess.DEVNULL
            )
        except BaseException:
            self.end.close()
            raise
        finally:
            theirs.close()
        self.end.setblocking(False)
        self.pid = self._process.pid

    def fork(self, around: Surroundings, ties: Ties) -> Forked:
        """A child; blocking, for some milliseconds. Raises `NotForked`, `OSError`."""
        heard, output = os.pipe()
        try:
            report, theirs = os.pipe()
            try:
                with _adopting, self._lock:
                    self._ask(ties, output, theirs)
                    os.close(theirs)
                    theirs = -1
                    pid = self._told(report)
            finally:
                os.close(report)
                if theirs >= 0:
                    os.close(theirs)
        except BaseException:
            os.close(heard)
            raise
        finally:
            os.close(output)
        return Forked(pid, heard)

    def _ask(self, ties: Ties, output: int, report: int) -> None:
        if self._closed:
            raise NotForked("")
        asked = json.dumps([os.getpid(), ties.memory, ties.cpus]).encode()
        try:
            socket.send_fds(self.end, [asked], [ties.channel, ties.lifeline, output, report])
        except OSError as error:
            raise NotForked(f"it takes no orders: {error.strerror}") from error

    def _told(self, report: int) -> int:
        """The child's number. Everybody who could still tell it has closed the pipe by then."""
        poll = select.poll()
        poll.register(report, select.POLLIN)
        end = time.monotonic() + FORK_SECONDS
        told = b""
        while True:
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                # What it may have forked meanwhile finds its lifeline closed.
                self.kill()
                raise NotForked(f"it has not answered within {FORK_SECONDS:g} s")
            data = os.read(report, 64)
            if not data:
                break
            told += data
        if not told.endswith(b"\n"):
            raise NotForked(self.last_words())
        pid = int(told)
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError as error:
            raise NotForked("the system did not make its child ours") from error
        return pid

    def last_words(self) -> str:
        """How it ended, if it did so for no good reason."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(0.5)
            if code in (STALE, REFUSED):
                return ""
            return f"it ended with code {code}"
        return "it forked nothing"

    def kill(self) -> None:
        """At once; its children go on."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Ends it; blocking, for a moment."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.end.close()
        self.kill()
        self._process.wait()
        reap_group(self.pid)  # a fork of its that was to end after the child's


class Forks:
    """The fork servers of one gateway. Owned by its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, starter: Executor) -> None:
        self._loop = loop
        self._starter = starter
        self._servers: dict[Kind, asyncio.Task[ForkServer | None]] = {}
        self._users: Counter[Kind] = Counter()
        self._unsafe: set[Kind] = set()
        """Imports that start threads: in these kinds, each child does them by itself."""
        self._paused: dict[Kind, float] = {}
        self._lost_at: dict[Kind, float] = {}
        self._said: set[Kind] = set()
        self._timers: dict[Kind, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._closed = False

    def kind_of(self, around: Surroundings, modules: tuple[str, ...]) -> Kind:
        """Children with other bounds may have the same fork server."""
        kind = replace(around, memory=0), modules
        return (kind[0], ()) if kind in self._unsafe else kind

    def imported(self, around: Surroundings, modules: tuple[str, ...]) -> bool:
        """Whether a fork server is there that has imported these modules."""
        task = self._servers.get((replace(around, memory=0), modules))
        return bool(task and task.done() and not task.cancelled() and task.result())

    def use(self, around: Surroundings, modules: tuple[str, ...]) -> None:
        """One more model is of this kind."""
        self._users[replace(around, memory=0), modules] += 1

    def leave(self, around: Surroundings, modules: tuple[str, ...]) -> None:
        """One less."""
        self._users[replace(around, memory=0), modules] -= 1
        self._linger(self.kind_of(around, modules))

    async def server(self, around: Surroundings, modules: tuple[str, ...]) -> ForkServer | None:
        """One that is ready; `None` where children have to start as programs."""
        if not (around.fork and sys.platform.startswith("linux")) or self._closed:
            return None
        while True:
            kind = self.kind_of(around, modules)
            if self._paused.get(kind, 0.0) > self._loop.time():
                return None
            task = self._servers.get(kind)
            if task is None:
                task = self._servers[kind] = self._loop.create_task(self._open(kind))
            server = await asyncio.shield(task)
            if server is not None or kind not in self._unsafe:
                self._linger(kind)
                return server

    async def _open(self, kind: Kind) -> ForkServer | None:
        server = None
        making = self._loop.run_in_executor(self._starter, ForkServer, *kind)
        try:
            server = await asyncio.shield(making)
            ready = self._loop.create_future()
            self._loop.add_reader(server.end.fileno(), self._heard, kind, server, ready)
            async with asyncio.timeout(IMPORT_SECONDS):
                threads = await ready
        except (OSError, TimeoutError, ValueError) as error:
            if isinstance(error, TimeoutError):
                error = TimeoutError(f"its imports took more than {IMPORT_SECONDS:g} s")
            self._paused[kind] = self._loop.time() + PAUSE_SECONDS
            self._say(kind, str(error))
        except asyncio.CancelledError:
            making.add_done_callback(_never_wanted)
            raise
        else:
            if not threads:
                return server
            self._unsafe.add(kind)
            log.info(
                "isolation: %s cannot be imported before a fork: threads %s; children of this "
                "kind import it themselves", ", ".join(kind[1]) or "what children need",
                ", ".join(threads),
            )  # fmt: skip
            if not kind[1]:
                self._paused[kind] = float("inf")
        if server is not None:
            self._end(server)
        self._servers.pop(kind, None)
        return None

    def _heard(self, kind: Kind, server: ForkServer, ready: asyncio.Future[Any]) -> None:
        try:
            data = server.end.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            if not ready.done():
                ready.set_result(json.loads(data))
            return
        self._loop.remove_reader(server.end.fileno())
        why = server.last_words()
        if not ready.done():
            ready.set_exception(ValueError(why))
        else:
            self.lost(server, why)
            if self._used(kind) and self._paused.get(kind, 0.0) <= self._loop.time():
                self._servers[kind] = self._loop.create_task(self._open(kind))

    def lost(self, server: ForkServer, why: str) -> None:
        """It is of no use any more; the next child makes another one."""
        for kind, task in list(self._servers.items()):
            if task.done() and not task.cancelled() and task.result() is server:
                del self._servers[kind]
                now = self._loop.time()
                if why and now - self._lost_at.get(kind, -PAUSE_SECONDS) < PAUSE_SECONDS:
                    self._paused[kind] = now + PAUSE_SECONDS
                self._lost_at[kind] = now
                self._say(kind, why)
                self._end(server)

    def _say(self, kind: Kind, why: str) -> None:
        if why and kind not in self._said:
            self._said.add(kind)
            log.warning(
                "isolation: the fork server for %s is gone (%s); no model is harmed, the next "
                "processes may take longer to start", kind[0].python, why,
            )  # fmt: skip

    def _end(self, server: ForkServer) -> None:
        with contextlib.suppress(ValueError, OSError):
            self._loop.remove_reader(server.end.fileno())
        closing = self._loop.run_in_executor(None, server.close)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _linger(self, kind: Kind) -> None:
        if (timer := self._timers.pop(kind, None)) is not None:
            timer.cancel()
        if not self._closed:
            self._timers[kind] = self._loop.call_later(LINGER_SECONDS, self._idle, kind)

    def _idle(self, kind: Kind) -> None:
        del self._timers[kind]
        if self._used(kind):
            return
        task = self._servers.get(kind)
        if task is not None and task.done():
            del self._servers[kind]
            if (server := task.result()) is not None:
                self._end(server)

    def _used(self, kind: Kind) -> bool:
        return any(count and self.kind_of(*of) == kind for of, count in self._users.items())

    async def close(self) -> None:
        """Ends all of them."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in self._servers.values():
            if task.done() and not task.cancelled() and (server := task.result()) is not None:
                self._end(server)
            elif not task.done():
                task.cancel()
        await asyncio.gather(*self._servers.values(), return_exceptions=True)
        self._servers.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)


def _never_wanted(making: asyncio.Future[ForkServer]) -> None:
    """One that is there, perhaps only now, when the gateway is closing."""
    if not making.cancelled() and making.exception() is None:
        making.result().close()
