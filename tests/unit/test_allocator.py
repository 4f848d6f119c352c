"""What the heap keeps between large requests, and when it is given back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from gateway.lifecycle import allocator

FAULTS = """
import resource
from gateway.lifecycle.allocator import keep_memory, share_heap
share_heap()
print(keep_memory())
for turn in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (96 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_blocks_above_the_usual_bound_are_kept() -> None:
    if allocator._mallopt() is None:
        pytest.skip("glibc's malloc alone")
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=60
    )
    kept, first, second = done.stdout.split()
    assert kept == "True"
    assert int(second) < int(first) / 10


def test_memory_is_given_back_once_after_the_last_large_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trimmed = threading.Semaphore(0)
    monkeypatch.setattr(allocator, "trim", trimmed.release)

    async def main() -> None:
        count = 0
        turns = 0

        def counted() -> int:
            nonlocal turns
            turns += 1
            return count

        async def until(wanted: int) -> None:
            while turns < wanted:
                await asyncio.sleep(0.001)

        with closing(allocator.Reserve(counted, after=0.001)):
            await until(4)
            assert not trimmed.acquire(blocking=False), "there was nothing to give back"
            count = 1
            await until(turns + 5)
            assert await asyncio.to_thread(trimmed.acquire, timeout=30)
            await until(turns + 3)
            assert not trimmed.acquire(blocking=False)
        seen = turns
        await asyncio.sleep(0.02)
        assert turns == seen, "closed"

    asyncio.run(main())
