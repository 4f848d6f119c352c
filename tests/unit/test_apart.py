"""Processes that run functions for the gateway: results, errors, and their own ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.apart import process, wire
from gateway.apart.processes import LONG, CodecProcesses
from gateway.codecs.large import write_v1
from gateway.errors import InferenceFailed, InvalidRequest
from gateway.tensors import BYTES, InferenceResponse, Tensor
from tests.support import apart_work as work
from tests.support.gateway import PATIENCE


def using(test: Callable[[CodecProcesses], Awaitable[None]], width: int = 1, **more: Any) -> None:
    """Runs `test` with processes that call the functions of `work`."""

    async def main() -> None:
        apart = CodecProcesses(width, package=work.PACKAGE, **more)
        try:
            async with asyncio.timeout(PATIENCE):
                await test(apart)
        finally:
            await apart.close()

    asyncio.run(main())


async def until(met: Callable[[], object]) -> None:
    while not met():
        await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_a_function_gives_or_raises_comes_back() -> None:
    async def test(apart: CodecProcesses) -> None:
        large = np.arange(100_000, dtype=np.int64)
        copy = await apart.run(1, work.same, large)
        assert np.array_equal(copy, large)
        assert copy.flags.writeable
        body = memoryview(bytes(range(256)) * 4096)
        assert await apart.run(1, work.size, body) == len(body)
        assert await apart.run(1, work.upper, b"a" * 100_000) == b"A" * 100_000
        tensor = await apart.run(1, work.strings, b"\1\0\0\0a")
        assert tensor.datatype is BYTES
        assert tensor.array.tolist() == [b"a"]
        with pytest.raises(InvalidRequest, match="unknown datatype 'FP31'"):
            await apart.run(1, work.datatype, "FP31")
        with pytest.raises(InvalidRequest, match=r"^no$"):
            await apart.run(1, work.refuse, "no")
        with pytest.raises(InferenceFailed, match=r"^cannot do it: ValueError$"):
            await apart.run(1, work.number, "one", trouble="cannot do it")
        assert len(apart.pids) == 1
        with pytest.raises(InferenceFailed, match="ended 2 times"):
            await apart.run(1, work.leave)
        assert apart.pids == []

    using(test)


def test_what_cannot_be_sent_harms_no_other_call() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd"

    async def test(apart: CodecProcesses) -> None:
        pid = await apart.run(1, work.pid)
        for call in (
            (work.same, work.OwnRefusal),  # the process does not take it
            (work.same, np.zeros(2, complex)),  # we do not send it
            (work.something,),  # the process sends it, but we do not take it
            (os.getpid,),
        ):
            with pytest.raises(InferenceFailed, match=r"^internal error: "):
                await apart.run(1, *call)
            if call[0] is work.something:
                assert pid not in apart.pids
                pid = await apart.run(1, work.pid)
        assert apart.pids == [pid]
        # What a model puts among strings is written as its text.
        answer = await apart.run(1, work.same, np.array([Odd(), None, b"b"], object))
        assert answer.tolist() == ["odd", "None", b"b"]
        response = InferenceResponse("m", "1", [Tensor("y", BYTES, (3,), array=answer)])
        assert write_v1(response) == b'{"predictions":["odd","None","b"]}'

    using(test)


@pytest.mark.parametrize("where", ["_room", "_bytes", "load", "send"])
def test_nothing_is_read_from_a_connection_on_which_something_went_wrong(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The rest of an answer, which clients choose, would be taken for the next one."""

    async def test(apart: CodecProcesses) -> None:
        data = np.arange(200_000)
        pid = await apart.run(1, work.pid)
        right = getattr(wire, where)

        def wrong(*args: Any) -> None:
            if where == "send":
                args[0].sendall(args[1][0])
            raise MemoryError

        monkeypatch.setattr(wire, where, wrong)
        with pytest.raises(InferenceFailed, match=r"^internal error: MemoryError$"):
            await apart.run(1, work.same, data)
        monkeypatch.setattr(wire, where, right)
        assert not alive(pid)
        assert pid not in apart.pids

    using(test)


def test_modules_of_the_working_directory_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)

    async def test(apart: CodecProcesses) -> None:
        assert await apart.run(1, work.pid) in apart.pids

    using(test)


def test_who_is_not_needed_ends() -> None:
    async def test(apart: CodecProcesses) -> None:
        pid = await apart.run(1, work.pid)
        await until(lambda: not alive(pid))
        assert apart.pids == []

    using(test, idle_seconds=0.0)


def test_a_start_is_finished_for_whoever_comes_next(tmp_path: Path) -> None:
    made = tmp_path / "made"

    async def test(apart: CodecProcesses) -> None:
        first = asyncio.create_task(apart.run(LONG, work.make, str(made)))
        await until(lambda: apart.pids)
        pids = apart.pids
        first.cancel()
        assert [await apart.run(LONG, work.pid)] == pids
        assert not made.exists()

    using(test)


def test_those_that_died_while_idle_cost_nobody_an_answer() -> None:
    async def test(apart: CodecProcesses) -> None:
        pids = await asyncio.gather(*[apart.run(1, work.pid) for _ in range(2)])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert await apart.run(1, work.pid) not in pids

    using(test, width=2)


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_process_that_hangs_is_ended(abandoned: bool) -> None:
    async def test(apart: CodecProcesses) -> None:
        pid = await apart.run(1, work.pid)
        os.kill(pid, signal.SIGSTOP)
        if abandoned:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(apart.run(1, work.pid), 0.05)
        else:
            apart.most_seconds = 0.05
            with pytest.raises(InferenceFailed, match="took more than 0 s to read"):
                await apart.run(1, work.pid)
            apart.most_seconds = PATIENCE
        assert await apart.run(1, work.pid) != pid

    using(test, unwanted_seconds=0.0)


@pytest.mark.parametrize("why", ["none", "version"])
def test_where_no_process_can_be_used_the_work_is_done_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    if why == "none":
        monkeypatch.setattr(subprocess, "Popen", refuse)
    else:  # as after an upgrade of the files
        monkeypatch.setattr(process, "__version__", "0.0.1")

    async def test(apart: CodecProcesses) -> None:
        assert await apart.run(1, work.pid) == os.getpid()
        if why == "none":
            with pytest.raises(InvalidRequest):
                await apart.run(1, work.datatype, "FP31")

    using(test)
    assert {"none": "temporarily unavailable", "version": "start it again"}[why] in caplog.text


def test_closing_does_not_stop_the_loop() -> None:
    told = threading.Event()
    seen: list[bool] = []

    async def test(apart: CodecProcesses) -> None:
        busy = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait(_: int) -> None:
            loop.call_soon_threadsafe(busy.set)
            seen.append(told.wait(PATIENCE))

        task = asyncio.create_task(apart.run(1, work.pid, after=wait))
        await busy.wait()
        loop.call_later(0.01, told.set)
        await apart.close()
        await task

    using(test)
    assert seen == [True]
