"""Timers of an event loop that keep microseconds.

The timers of asyncio and uvloop count whole milliseconds, which at 1,000 requests a second is the
distance between two of them. Linux has timers that are file descriptors and know nanoseconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME
_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK
_SPEC: Final = struct.Struct("@llll")
_SECOND: Final = 1_000_000_000


class Timer:
    """Calls `then` in the loop at the time it was last set to, once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
        self._loop = loop
        self._then = then
        self._handle: asyncio.TimerHandle | None = None
        self._libc: Any = None
        self._fd = -1
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            fd = libc.timerfd_create(time.CLOCK_MONOTONIC, _FLAGS)
            if fd >= 0:
                self._libc, self._fd = libc, fd
                loop.add_reader(fd, self._ring)

    def set(self, at: int) -> None:
        """To `at`, in the nanoseconds of `time.monotonic_ns`; a time that is over: at once."""
        if self._fd >= 0:
            # 0 would stop it.
            seconds, rest = divmod(max(at, 1), _SECOND)
            spec = _SPEC.pack(0, 0, seconds, rest)
            self._libc.timerfd_settime(self._fd, _ABSOLUTE, spec, None)
            return
        if self._handle is not None:
            self._handle.cancel()
        wait = max(at - time.monotonic_ns(), 0) / _SECOND
        self._handle = self._loop.call_later(wait, self._then)

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # set again since it rang
            os.read(self._fd, 8)
            self._then()

    def close(self) -> None:
        """Never calls again."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
