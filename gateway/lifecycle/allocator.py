"""How glibc's malloc keeps memory for large tensors. Elsewhere nothing is set.

As it is by default, blocks above 32 MiB come from the system each time and go back to it, and so
do the ends of its heaps: every request touches fresh pages, four times what copying would cost.
So the memory is kept between requests, and given back once there have been no large ones for
a while.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

from gateway.lifecycle.resident import trim

KEPT: Final = 512 << 20
"""Bytes at the end of the heap that stay between requests."""
AFTER: Final = 15.0
"""Seconds without a large request until memory is given back; at most twice as long."""
FEW_CORES: Final = 4
"""Up to so many, all threads share a heap: others' cannot hold blocks above 64 MiB. With more
cores they might wait for each other."""
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def _mallopt() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other libraries read the numbers differently
        function: Callable[[int, int], int] = library.mallopt
    except (OSError, AttributeError):
        return None
    return function


def share_heap() -> None:
    """One heap for all threads, on few cores. To be called before there are any."""
    mallopt = _mallopt()
    if mallopt is not None and (os.cpu_count() or 1) <= FEW_CORES:
        mallopt(_ARENA_MAX, 1)


def keep_memory() -> bool:
    """What is freed from here on is kept for the next request; whether it could be set."""
    mallopt = _mallopt()
    if mallopt is None:
        return False
    # What starting has left behind does not belong to it.
    trim()
    return bool(mallopt(_TRIM_THRESHOLD, KEPT) and mallopt(_MMAP_MAX, 0))


class Reserve:
    """Gives the kept memory back when there have been no large requests for a while; for the
    event loop. `count` says how many there were, ever."""

    def __init__(self, count: Callable[[], int], after: float = AFTER) -> None:
        self._count = count
        self._after = after
        self._loop = asyncio.get_running_loop()
        self._seen = count()
        self._kept = False
        self._timer = self._loop.call_later(after, self._look)

    def _look(self) -> None:
        seen = self._count()
        if seen != self._seen:
            self._seen = seen
            self._kept = True
        elif self._kept:
            self._kept = False
            # Not one of the loop's own threads, for which the gateway would wait at its end.
            threading.Thread(target=trim, name="sluice-trim", daemon=True).start()
        self._timer = self._loop.call_later(self._after, self._look)

    def close(self) -> None:
        self._timer.cancel()
