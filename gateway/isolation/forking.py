"""One fork server as the gateway sees it. `forkserver` is what runs in it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Final

from gateway.isolation.adoption import adopting, reap
from gateway.isolation.bootstrap import REFUSED
from gateway.isolation.forkserver import STALE
from gateway.isolation.launch import Forked, Ties, plan_of, run
from gateway.isolation.limits import Surroundings

FORK_SECONDS: Final = 10.0
"""How long one fork may take."""
_LATE_SECONDS: Final = 60.0


class NotForked(Exception):
    """The fork server has not done it; the text says why, empty where that is in order."""


class ForkServer:
    """One fork server. Made in a thread that lives as long as the gateway."""

    def __init__(self, around: Surroundings, modules: tuple[str, ...]) -> None:
        self._around = around
        self._path = list(sys.path)
        self._environment = around.environment(os.environ)
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

    def fits(self) -> bool:
        """Whether children would still begin with the variables and the path that are ours now."""
        return self._path == sys.path and self._environment == self._around.environment(os.environ)

    def fork(self, around: Surroundings, ties: Ties) -> Forked:
        """A child; blocking, for some milliseconds. Raises `NotForked`, `OSError`."""
        heard, output = os.pipe()
        try:
            report, theirs = os.pipe()
            try:
                with adopting, self._lock:
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
                self.kill()
                threading.Thread(
                    target=_end_late, args=(os.dup(report),), name="sluice-late-fork", daemon=True
                ).start()
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
        reap()  # a fork of its that was to end after the child's


def _end_late(report: int) -> None:
    """Ends a child that nobody waits for any more, if it is still forked; in a thread."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    told = b""
    try:
        while poll.poll(_LATE_SECONDS * 1000) and (data := os.read(report, 64)):
            told += data
    finally:
        os.close(report)
    if told.endswith(b"\n"):
        # Is it ours? Else its number may be another's by now.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, int(told), os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(int(told), signal.SIGKILL)
            os.waitpid(int(told), 0)
