"""What a process really has in memory, and giving back what it does not use. Linux and glibc;
elsewhere nothing is measured and nothing given back."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import os
import threading
from collections.abc import Callable
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
TRIM_AFTER: Final = 0.2
"""Seconds after an unload until memory is given back: for all that are unloaded in between."""


def resident(pid: int | None = None) -> int:
    """Bytes of a process (this one) that are in memory; 0 where nobody can say."""
    try:
        with open(f"/proc/{pid or 'self'}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def own_share(pid: int) -> int:
    """Bytes that a child process adds: what it shares with others counts in parts. 0 where
    nobody can say."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return resident(pid)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        function = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_size_t]
    function.restype = ctypes.c_int
    trim: Callable[[int], int] = function
    return trim


def trim() -> None:
    """Returns free memory to the system; blocking, for a thread."""
    function = _malloc_trim()
    if function is not None:
        function(0)


def give_back() -> None:
    """Collects garbage and returns free memory to the system; blocking, for a thread."""
    gc.collect()
    trim()


class Trimmer:
    """Gives memory back soon after something was unloaded; for the event loop."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._running: threading.Thread | None = None

    def soon(self, then: Callable[[], object] = lambda: None) -> None:
        """Once, however often it is called in the meantime; `then` is called on the loop."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(TRIM_AFTER, self._start, loop, then)

    def _start(self, loop: asyncio.AbstractEventLoop, then: Callable[[], object]) -> None:
        self._timer = None
        if self._running is not None and self._running.is_alive():
            self.soon(then)
            return

        def work() -> None:
            give_back()
            if not loop.is_closed():
                loop.call_soon_threadsafe(then)

        # Not one of the loop's own threads, for which the gateway would wait at its end.
        self._running = threading.Thread(target=work, name="sluice-trim", daemon=True)
        self._running.start()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
