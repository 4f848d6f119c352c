"""What the gateway's processes hold: memory, file descriptors, threads."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import replace

from loadtests.compare.processes import tree
from loadtests.kernel import status
from loadtests.soak.ledger import BAD, End, Ledger
from loadtests.soak.results import Sample


def descriptors(pid: int) -> int:
    """Open file descriptors."""
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def at(latencies: list[float], percent: float) -> float | None:
    """µs at a percentile of sorted seconds."""
    if not latencies:
        return None
    return latencies[min(len(latencies) - 1, int(len(latencies) * percent / 100))] * 1e6


MOST_SAMPLES = 4000
"""Beyond this, two neighbours become one, so that a long soak does not fill the memory."""


def joined(first: Sample, second: Sample) -> Sample:
    """Two neighbours as one: counts added, slower latencies, and what was held at the end."""
    return replace(
        second,
        at_s=first.at_s,
        seconds=first.seconds + second.seconds,
        ok=first.ok + second.ok,
        failed=first.failed + second.failed,
        refused=first.refused + second.refused,
        cancelled=first.cancelled + second.cancelled,
        p50_us=max(filter(None, (first.p50_us, second.p50_us)), default=None),
        p99_us=max(filter(None, (first.p99_us, second.p99_us)), default=None),
    )


class Watch:
    """Takes a sample every few seconds."""

    def __init__(self, pid: int, ledger: Ledger) -> None:
        self._pid = pid
        self._ledger = ledger
        self._began = self._last = time.monotonic()
        self._counts = (0, 0, 0, 0)
        self.samples: list[Sample] = []

    def take(self) -> Sample:
        """One sample, of the time since the last."""
        now = time.monotonic()
        total = self._ledger.total
        counts = (
            total(End.OK), total(*BAD), total(End.REFUSED, End.KILLED), total(End.CANCELLED)
        )  # fmt: skip
        ok, failed, refused, cancelled = (
            new - old for new, old in zip(counts, self._counts, strict=True)
        )
        latencies = self._ledger.take_latencies()
        members = tree(self._pid)
        sample = Sample(
            at_s=self._last - self._began,
            seconds=now - self._last,
            ok=ok,
            failed=failed,
            refused=refused,
            cancelled=cancelled,
            p50_us=at(latencies, 50),
            p99_us=at(latencies, 99),
            memory_mib=status(self._pid, "VmRSS") / 1024,
            children_mib=sum(status(pid, "VmRSS") for pid in members[1:]) / 1024,
            descriptors=descriptors(self._pid),
            threads=status(self._pid, "Threads"),
            processes=len(members),
        )
        self._counts, self._last = counts, now
        self.samples.append(sample)
        if len(self.samples) >= MOST_SAMPLES:
            pairs = zip(self.samples[::2], self.samples[1::2], strict=False)
            self.samples = [joined(first, second) for first, second in pairs]
        return sample

    async def every(self, seconds: float) -> None:
        """Samples until it is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            self.take()
