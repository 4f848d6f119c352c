"""The server's statistics beside a run: read in a thread, about once a second."""

from __future__ import annotations

import bisect
import threading
import time
from typing import Final, Self

from loadtests.bench.plan import Target
from loadtests.bench.results import Server
from loadtests.bench.server import ServerStats, Snapshot, difference

EVERY_S: Final = 1.0
FIRST_S: Final = 10.0
"""Seconds that the first reading is waited for."""


class Watch:
    """Readings with their times (ns of `time.monotonic_ns`), while ``with`` lasts."""

    def __init__(self, target: Target, *, on: bool) -> None:
        self._target = target
        self._times: list[int] = []
        self._snapshots: list[Snapshot] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._wake = threading.Event()
        self._first = threading.Event()
        self._last = False
        self._thread = threading.Thread(target=self._run, daemon=True) if on else None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
            # What comes first must not wait for a server that is busy already.
            self._first.wait(FIRST_S)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def now(self) -> None:
        """Has a reading taken at once."""
        self._wake.set()

    def finish(self) -> None:
        """Takes a last reading."""
        if self._thread is not None:
            self._last = True
            self._over.set()
            self._wake.set()
            self._thread.join()

    def _run(self) -> None:
        try:
            with ServerStats(self._target) as statistics:
                # It may have none: asking again and again would be load.
                while not self._over.is_set() and self._read(statistics):
                    self._first.set()
                    self._wake.wait(EVERY_S)
                    self._wake.clear()
                if self._last and self._times:
                    self._read(statistics)
        finally:
            self._first.set()

    def _read(self, statistics: ServerStats) -> bool:
        """Whether the server says anything, now or before."""
        began = time.monotonic_ns()
        snapshot = statistics.read()
        ended = time.monotonic_ns()
        if snapshot is not None:
            with self._lock:
                self._times.append((began + ended) // 2)
                self._snapshots.append(snapshot)
        return bool(self._times)

    def between(self, start: int, end: int) -> Server | None:
        """What the server did between the readings nearest to `start` and `end`; ``None`` where
        there are no two."""
        with self._lock:
            first, last = self._nearest(start), self._nearest(end)
            if first is None or last is None or last <= first:
                return None
            return difference(self._snapshots[first], self._snapshots[last])

    def around(self, start: int, end: int) -> Server | None:
        """What the server did between the last reading before `start` and the first after `end`,
        or the latest there is."""
        with self._lock:
            first = max(bisect.bisect_right(self._times, start) - 1, 0)
            last = min(bisect.bisect_left(self._times, end), len(self._times) - 1)
            if last <= first:
                return None
            return difference(self._snapshots[first], self._snapshots[last])

    def _nearest(self, at: int) -> int | None:
        if not self._times:
            return None
        return min(range(len(self._times)), key=lambda index: abs(self._times[index] - at))
