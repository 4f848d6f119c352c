"""The child's side of requests, without a child: answers, streams and calls home."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gateway.batching.slices import Slices
from gateway.call import ENDED, Call
from gateway.config import BatchingConfig
from gateway.errors import InferenceFailed, ModelLoadError
from gateway.isolation import messages as m
from gateway.isolation.arena import Arena
from gateway.isolation.channel import Channel
from gateway.isolation.errands import Errands
from gateway.isolation.guard import Guard
from gateway.isolation.home import Home
from gateway.isolation.limits import Group
from gateway.isolation.memory import RUNS, WAITS_FOR_READER, Segment, Table
from gateway.isolation.nursery import Nursery
from gateway.isolation.own_metrics import Numbers, families_of
from gateway.isolation.serving import ChildCall, DeliveringRunner, Runs, Serving
from gateway.model_settings import ModelSettings
from gateway.telemetry import custom
from gateway.tensors import DATATYPES, InferenceRequest, InferenceResponse, Tensor
from runtimes.interface import Artifact
from tests.support.misbehaving import MisbehavingRuntime

PATIENCE = 30.0


class Dispatcher:
    """Takes calls and leaves them to the test."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def submit(self, call: Call) -> None:
        self.calls.append(call)


class Bench:
    """A `Serving` with a gateway's end of its channel."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        one, two = socket.socketpair()
        self.got: list[list[Any]] = []
        self.ours = Channel(loop, one, lambda r, m: self.got.extend(m), lambda why: None)
        self.theirs = Channel(loop, two, lambda r, m: None, lambda why: None)
        self.arena = Arena(Segment, 1 << 30)
        self.child_arena = Arena(Segment, 1 << 30)
        self.table = Table()
        self.serving = Serving(self.theirs, self.child_arena, self.table, "m", "1")
        self.dispatcher = Dispatcher()
        self.serving.dispatcher = self.dispatcher  # type: ignore[assignment]

    def request(self, slot: int) -> None:
        block, size, told = m.put(self.arena, [tensor()])
        number = block >> 44
        if not self.theirs.incoming._maps:
            segment = self.arena.segments[number]
            self.theirs.incoming.add(number, os.dup(segment.fd), segment.size)  # type: ignore[attr-defined]
        sent = m.Sent(
            m.REQUEST, slot, block, size, told, 0.0, None, (), {}, 0, 0, False, False, False,
            None, "",
        )  # fmt: skip
        self.serving.take(sent)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.got) < count:
                await asyncio.sleep(0)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


def tensor() -> Tensor:
    return Tensor("x", DATATYPES["FP32"], (1, 2), np.ones(2, np.float32).tobytes())


@pytest.mark.parametrize("bad", [2**70, object(), "\ud800"])
def test_an_answer_that_cannot_be_written_fails_alone(bad: Any) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            for slot in range(3):
                bench.request(slot)
            for slot, call in enumerate(bench.dispatcher.calls):
                parameters = {"p": bad} if slot == 1 else {"p": slot}
                call.reply(InferenceResponse("m", "1", (tensor(),), parameters=parameters))
            await bench.until(2)
            failed, answers = bench.got
            assert failed[:2] == [m.FAILED, 1]
            assert answers[0] == m.ANSWERS
            assert [(slot, p) for slot, _, p in answers[4]] == [(0, {"p": 0}), (2, {"p": 2})]
            assert len(bench.child_arena) == 1
        finally:
            bench.close()

    asyncio.run(main())


def test_memory_of_answers_that_cannot_be_sent_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            bench.request(0)
            with monkeypatch.context() as patch:
                patch.setattr(m, "fill", lambda *_: 1 / 0)
                bench.dispatcher.calls[0].reply(InferenceResponse("m", "1", (tensor(),)))
                bench.serving.flush()
            await bench.until(1)
            assert bench.got[0][:2] == [m.FAILED, 0]
            assert not len(bench.child_arena)
            home = Home(asyncio.get_running_loop(), bench.theirs, bench.child_arena)
            request = InferenceRequest("m", "", (tensor(),), parameters={"p": 2**70})
            future = home.call(request)
            with pytest.raises(InferenceFailed, match="cannot be sent"):
                await asyncio.wrap_future(future)
            assert not len(bench.child_arena)
        finally:
            bench.close()

    asyncio.run(main())


def test_nothing_is_sent_or_kept_after_the_end() -> None:
    async def main() -> None:
        one, two = socket.socketpair()
        channel = Channel(asyncio.get_running_loop(), one, lambda r, m: None, lambda why: None)
        channel.close()
        two.close()
        fd = os.memfd_create("t")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(40):
            channel.send((1,), fd)
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(fd)

    asyncio.run(main())


def test_a_call_home_that_is_cancelled_at_once_is_answered() -> None:
    async def main() -> None:
        arena = Arena(Segment, 1 << 30)
        block, size, told = m.put(arena, [tensor()])
        sent: list[Any] = []
        leased: list[int] = []

        def lease(block: int, size: int) -> memoryview:
            leased.append(block)
            return arena.view(block)[:size]

        incoming = SimpleNamespace(lease=lease)
        child: Any = SimpleNamespace(
            channel=SimpleNamespace(incoming=incoming), send=sent.append, label="m/1"
        )
        errands = Errands(child, arena, None)
        errands.take((m.HOME_CALL, 7, False, "n", "", (), {}, 0, 0, (block, size, told)))
        errands.take((m.HOME_CANCEL, 7))
        async with asyncio.timeout(PATIENCE):
            while not sent:
                await asyncio.sleep(0)
        assert leased == [block]  # so that the child is told when it comes back
        ((kind, number, answer, error, last),) = sent
        assert (kind, number, answer, last) == (m.HOME_ANSWER, 7, None, True)
        assert error[0] == "Cancelled"
        assert not errands._tasks

    asyncio.run(main())


def test_marks_outlast_callers() -> None:
    table = Table()
    runs = Runs(table)
    assert table.oldest() is None
    first, second = runs.begin(), runs.begin()
    runs.since(first, 5.0)
    runs.since(second, WAITS_FOR_READER)
    assert table.oldest() == 5.0
    runs.end(first)
    assert table.oldest() == WAITS_FOR_READER
    runs.end(second)
    assert table.oldest() is None
    marks = [runs.begin() for _ in range(RUNS + 2)]
    assert marks[-1] is None
    assert sorted(mark for mark in marks if mark is not None) == list(range(RUNS))
    for mark in marks:
        runs.end(mark)
    assert table.oldest() is None
    table.close()


def test_an_ended_request_in_slices_is_not_marked_again() -> None:
    async def main() -> None:
        bench = Bench()
        try:
            bench.request(3)
            (parent,) = bench.dispatcher.calls
            assert isinstance(parent, ChildCall)
            whole: Any = Slices(
                parent, 1, lambda *_: None, lambda *_: None, SimpleNamespace(elsewhere=False)
            )  # type: ignore[arg-type]
            inner: Any = SimpleNamespace(run=lambda *_, **__: None)
            runner = DeliveringRunner(inner, bench.serving, bench.theirs)
            batch: Any = SimpleNamespace(calls=whole.slices)
            parent.state = ENDED
            runner.run(batch, lambda batch: None, here=False)
            assert bench.table.starts[3] == 0.0
            assert bench.table.oldest() is not None
        finally:
            bench.close()

    asyncio.run(main())


def test_garbage_is_collected_less_and_less_for_what_a_model_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected: list[int] = []
    monkeypatch.setattr("gateway.isolation.serving.gc.collect", lambda: collected.append(1))

    async def main() -> None:
        bench = Bench()
        try:
            bench.request(0)
            kept = bench.dispatcher.calls.pop().request
            bench.serving._calls.clear()
            bench.serving._tidy()
            assert not collected  # too young to be suspected
            monkeypatch.setattr("gateway.isolation.serving.OLD_SECONDS", 0.0)
            seconds = []
            for _ in range(10):
                bench.serving._tidy()
                seconds.append(bench.serving._tidy_seconds)
            assert seconds[:3] == [2.0, 4.0, 8.0]
            assert seconds[-1] == 60.0
            assert len(collected) == 10
            del kept
        finally:
            bench.close()

    asyncio.run(main())
    gc.collect()


def test_a_group_is_made_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    monkeypatch.setattr(Group, "_said", False)
    written = Path.write_text

    def write_text(path: Path, text: str) -> int:
        if path.name == "cpu.max":
            raise PermissionError(1, "not permitted")
        return written(path, text)

    monkeypatch.setattr(Path, "write_text", write_text)
    for name in ("one", "two"):
        assert Group.make(name, 0, 1, root=tmp_path) is None
        assert not (tmp_path / name).exists()
    assert caplog.text.count("the limits of the process remain") == 1


def test_numbers_of_children_are_shown_with_ours() -> None:
    ours = custom.add_family("t_requests", "Ours.", "counter")
    assert ours is not None
    ours.values[("model", "m"),] = 2.0
    sent: list[Any] = []
    numbers = Numbers(sent.append)
    numbers.tell()
    numbers.tell()
    assert len(sent) == 1  # nothing has changed
    ours.values[("model", "m"),] = 3.0
    numbers.tell()
    kind, told = sent[-1]
    assert kind == m.METRICS
    source = object()
    custom.show_of(source, families_of([[*each] for each in told]))
    try:
        assert samples("t_requests") == {(("model", "m"),): 6.0}
    finally:
        custom.drop_of(source)
    assert samples("t_requests") == {(("model", "m"),): 3.0}
    custom.drop_family("t_requests")
    assert samples("t_requests") == {}


def samples(name: str) -> dict[Any, float]:
    return {
        tuple(sample.labels.items()): sample.value
        for metric in custom.families()
        if metric.name == name
        for sample in metric.samples
    }


@pytest.fixture
def group() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_the_guard_ends_what_it_watches(group: subprocess.Popen[bytes]) -> None:
    guard = Guard()
    guard.watch(group.pid)
    guard.close()
    assert group.wait(PATIENCE) == -signal.SIGKILL


def test_the_guard_leaves_what_it_was_told_to_forget(group: subprocess.Popen[bytes]) -> None:
    guard = Guard()
    guard.watch(group.pid)
    guard.forget(group.pid)
    guard.close()
    assert group.poll() is None


def test_another_guard_takes_over_from_one_that_was_ended(
    group: subprocess.Popen[bytes],
) -> None:
    guard = Guard()
    guard.watch(group.pid)
    assert guard._process is not None
    guard._process.kill()
    guard._process.wait()
    other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        guard.watch(other.pid)
        guard.close()
        assert group.wait(PATIENCE) == other.wait(PATIENCE) == -signal.SIGKILL
    finally:
        other.kill()
        other.wait()


def test_a_closed_loop_means_that_the_gateway_closes() -> None:
    loop = asyncio.new_event_loop()
    nursery = Nursery(loop, BatchingConfig())
    loop.close()
    artifact = Artifact("m", "1", Path(), ModelSettings())
    with pytest.raises(ModelLoadError, match="the gateway is closing"):
        nursery.load(artifact, MisbehavingRuntime(), lambda runtime: None)


def test_an_error_of_loading_is_not_taken_for_the_gateways_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def load(*_: object) -> Any:
        raise RuntimeError("of the model's own")

    async def main() -> None:
        nursery = Nursery(asyncio.get_running_loop(), BatchingConfig())
        monkeypatch.setattr(nursery, "_load", load)
        artifact = Artifact("m", "1", Path(), ModelSettings())
        with pytest.raises(RuntimeError, match="of the model's own"):
            await asyncio.to_thread(nursery.load, artifact, MisbehavingRuntime(), lambda name: None)
        await nursery.close()

    asyncio.run(main())
