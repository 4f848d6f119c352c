"""Processes that became ours because their parents ended; the kernel keeps them until we take note
of their end. Linux.

A process that we have started is in our session or in one of its own. So one that is in another
session was adopted, and nobody else waits for it: others' `subprocess.Popen` lose no exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Final

PR_SET_CHILD_SUBREAPER: Final = 36
_REAP_SECONDS: Final = 1.0


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
        reap()

    def _set(self, value: int) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, value, 0, 0, 0)


adopting: Final = _Adopting()


def reap() -> set[int]:
    """Takes note of all adopted processes that have ended; returns the sessions of the others."""
    ours, left = os.getsid(0), set()
    for pid in _children():
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            session = os.getsid(pid)
            if session not in (ours, pid) and not os.waitpid(pid, os.WNOHANG)[0]:
                left.add(session)
    return left


def reap_session(session: int) -> None:
    """What was in it has been killed: takes note of those of them that are ours; blocking, for a
    moment. While the session's number is not free yet for another."""
    end = time.monotonic() + _REAP_SECONDS
    while session in reap() and time.monotonic() < end:
        time.sleep(0.002)


def _children() -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # no Linux
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has ended
                found += map(int, (task / "children").read_text().split())
    return found
