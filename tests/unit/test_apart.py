"""Processes that run functions for the gateway: results, errors, and their own ends."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gateway.apart import wire
from gateway.apart.processes import CodecProcesses
from gateway.errors import InferenceFailed, InvalidRequest
from gateway.tensors import BYTES, Tensor, datatype
from tests.support.gateway import PATIENCE


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_a_function_gives_or_raises_comes_back() -> None:
    async def main() -> None:
        apart = CodecProcesses(1)
        try:
            large = np.arange(100_000, dtype=np.int64)
            copy = await apart.run(1, np.copy, large)
            assert np.array_equal(copy, large)
            assert copy.flags.writeable
            body = memoryview(bytes(range(256)) * 4096)
            assert await apart.run(1, len, body) == len(body)
            assert await apart.run(1, bytes.upper, b"a" * 100_000) == b"A" * 100_000
            tensor = await apart.run(1, Tensor, "x", BYTES, (1,), b"\1\0\0\0a")
            assert tensor.datatype is BYTES
            assert tensor.array.tolist() == [b"a"]
            with pytest.raises(InvalidRequest, match="unknown datatype 'FP31'"):
                await apart.run(1, datatype, "FP31")
            with pytest.raises(InferenceFailed, match=r"^cannot do it: ValueError$"):
                await apart.run(1, int, "one", trouble="cannot do it")
            assert len(apart.pids) == 1
            with pytest.raises(InferenceFailed, match="ended 2 times"):
                await apart.run(1, os._exit, 3)
            assert apart.pids == []
        finally:
            apart.close()

    asyncio.run(main())


def test_what_was_sent_is_not_kept() -> None:
    ours, theirs = socket.socketpair()
    array = np.ones(100_000)
    gone = weakref.ref(array)
    with ours, theirs, ThreadPoolExecutor(1) as thread:
        reading = thread.submit(wire.receive, theirs)
        gc.disable()
        try:
            wire.send(ours, [array])
            assert reading.result()[0].sum() == 100_000
            del array
            assert gone() is None
        finally:
            gc.enable()


def test_who_is_not_needed_ends() -> None:
    async def main() -> None:
        apart = CodecProcesses(1, idle_seconds=0.0)
        try:
            pid = await apart.run(1, os.getpid)
            async with asyncio.timeout(PATIENCE):
                while alive(pid):
                    await asyncio.sleep(0.01)
            assert apart.pids == []
        finally:
            apart.close()

    asyncio.run(main())


def test_where_no_process_can_be_started_the_work_is_done_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)

    async def main() -> None:
        apart = CodecProcesses(1)
        try:
            assert await apart.run(1, os.getpid) == os.getpid()
            with pytest.raises(InvalidRequest):
                await apart.run(1, datatype, "FP31")
        finally:
            apart.close()

    asyncio.run(main())
