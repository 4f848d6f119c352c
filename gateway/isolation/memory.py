"""Shared memory without names: nothing can be left behind in /dev/shm or elsewhere."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import tempfile
import weakref
from collections import deque
from time import perf_counter
from typing import Any, Final

import numpy as np

from gateway.isolation.arena import place

SLOTS: Final = 65536
"""Calls that may be with one child at the same time."""
RUNS: Final = 4096
"""Batches and streams that are watched at the same time; more may run, unwatched."""
WAITS_FOR_READER: Final = float("inf")
"""In the table: it has begun to run, but nothing is to be expected of it now."""
_TABLE_BYTES: Final = (SLOTS + RUNS) * 8
_WITHOUT_PAGES: Final = 1 << 20
"""Segments up to this size keep their pages when they are idle."""


def anonymous_file(size: int) -> int:
    """A descriptor of `size` zero bytes in memory. Raises `OSError`."""
    if sys.platform == "linux":
        fd = os.memfd_create("sluice", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        fd, path = tempfile.mkstemp(prefix="sluice-")
        os.unlink(path)
    try:
        os.ftruncate(fd, size)
        if sys.platform == "linux":
            # Whoever maps a file that shrinks is killed when it looks at what is gone.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Segment:
    """Memory that this side writes and the other one reads."""

    __slots__ = ("_map", "fd", "size", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = anonymous_file(size)
        self._map = mmap.mmap(self.fd, size)
        self.view = memoryview(self._map)

    def forget(self) -> None:
        """Gives the pages back; what is read later are zeros."""
        if self.size > _WITHOUT_PAGES and hasattr(mmap, "MADV_REMOVE"):
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Unmaps it."""
        self.view.release()
        self._map.close()
        os.close(self.fd)


class Table:
    """For each call with the child, when it began to run, in seconds of the monotonic clock, and
    the same for whatever occupies the model (`runs`), which outlasts callers that leave.

    0 = it waits. The child writes it and the gateway reads it, also after the child's death.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = anonymous_file(_TABLE_BYTES) if fd is None else fd
        self._map = mmap.mmap(self.fd, _TABLE_BYTES)
        whole = memoryview(self._map).cast("d")
        self.starts = whole[:SLOTS]
        self.runs = whole[SLOTS:]
        whole.release()

    def oldest(self) -> float | None:
        """When the batch or stream began that runs longest; `None` if nothing runs, infinity if
        whatever does waits for a reader."""
        runs = np.frombuffer(self._map, np.float64, RUNS, SLOTS * 8)
        running = runs[runs != 0.0]
        return float(running.min()) if running.size else None

    def clear(self) -> None:
        """As new."""
        np.frombuffer(self._map, np.float64)[:] = 0.0

    def close(self) -> None:
        """Unmaps it."""
        self.starts.release()
        self.runs.release()
        self._map.close()
        os.close(self.fd)


class Lease(weakref.ref[Any]):
    """Notices when nobody looks at a block any more."""

    __slots__ = ("block", "since")
    block: int
    since: float
    """In seconds of the monotonic clock."""


class Incoming:
    """The other side's segments, mapped for reading.

    A block is leased for as long as anything is left that looks into it, however far its
    arrays have travelled; then its number is in `released`.
    """

    def __init__(self) -> None:
        self.released: deque[int] = deque()
        self._maps: dict[int, mmap.mmap] = {}
        self._leases: dict[int, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def add(self, number: int, fd: int, size: int) -> None:
        """A new segment; takes the descriptor over."""
        try:
            self._maps[number] = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def drop(self, number: int) -> None:
        """A segment is gone on the other side."""
        # Not closed: an array that is just being deleted may still hold it.
        del self._maps[number]

    def lease(self, block: int, size: int) -> memoryview:
        """The first `size` bytes of a block, read-only. Raises `ValueError` or `KeyError` for what
        is no block."""
        number, start = place(block)
        whole = np.frombuffer(self._maps[number], np.uint8, max(size, 1), start)
        lease = Lease(whole, self._ended)
        lease.block = block
        lease.since = perf_counter()
        self._leases[block] = lease
        return whole.data

    def _ended(self, lease: Lease) -> None:
        # In whichever thread the last view died: a deque may be added to in any.
        self._leases.pop(lease.block, None)
        self.released.append(lease.block)

    def oldest(self) -> float:
        """For how many seconds the first of the blocks has been looked at; 0 if none is."""
        try:
            lease = next(iter(self._leases.values()), None)
        except RuntimeError:  # one ended in another thread just now
            return 0.0
        return 0.0 if lease is None else perf_counter() - lease.since

    def take_released(self) -> list[int]:
        """The blocks whose leases ended since the last time."""
        released = self.released
        taken: list[int] = []
        while released:
            taken.append(released.popleft())
        return taken

    def close(self) -> None:
        """Forgets everything; what is still looked at stays mapped for as long as it is."""
        self._maps.clear()
        self._leases.clear()
