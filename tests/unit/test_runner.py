"""Batches in real threads: where they run, and what happens when there are none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from gateway.batching.runner import Batch, ModelRunner, execute
from gateway.call import ENDED, Call
from gateway.errors import InferenceFailed
from gateway.tensors import DATATYPES, InferenceRequest, Tensor, TensorSpec
from runtimes.interface import Model

SPEC = TensorSpec("x", DATATYPES["INT64"], (-1,))


class Tracing(Model):
    """Notes the thread of every call; all batches of a group meet before one returns."""

    inputs = outputs = (SPEC,)

    def __init__(self, meet: int = 1) -> None:
        self.threads: list[threading.Thread] = []
        self.barrier = threading.Barrier(meet)

    def infer(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
        self.threads.append(threading.current_thread())
        self.barrier.wait(10)
        return {"x": inputs["x"] + 1}


class Loop:
    """The owning thread: runs what other threads hand over."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = SimpleQueue()

    def call_soon_threadsafe(self, action: Callable[..., object], *args: Any) -> None:
        self.queue.put((action, args))

    def run_one(self) -> None:
        action, args = self.queue.get(timeout=10)
        action(*args)


def batch(value: int) -> Batch:
    call = Call(0.0)
    tensor = Tensor("x", SPEC.datatype, (1,), array=np.array([value]))
    call.request = InferenceRequest("m", "", (tensor,))
    return Batch([call], 1, "idle", 0.0)


def runner(model: Model, loop: Loop, instances: int = 1) -> ModelRunner:
    return ModelRunner(
        model, batched=True, instances=instances, name="m/1",
        call_soon_threadsafe=loop.call_soon_threadsafe,
    )  # fmt: skip


def test_here_means_on_the_owning_thread_and_at_once() -> None:
    model, done = Tracing(), []
    run = runner(model, Loop())
    run.run(batch(1), done.append, here=True)
    assert done[0].outputs["x"].tolist() == [2]
    assert model.threads == [threading.current_thread()]
    run.close()


def test_instances_run_at_the_same_time_and_come_back_on_the_owning_thread() -> None:
    loop, model = Loop(), Tracing(meet=2)
    run = runner(model, loop, instances=2)
    done: list[tuple[Batch, threading.Thread]] = []
    for value in (1, 2):
        run.run(batch(value), lambda b: done.append((b, threading.current_thread())), here=False)
    loop.run_one()
    loop.run_one()
    assert {b.outputs["x"][0] for b, _ in done} == {2, 3}
    assert {thread for _, thread in done} == {threading.current_thread()}
    assert len(set(model.threads)) == 2
    for value in range(4):
        run.run(batch(value), lambda b: None, here=False)
        run.run(batch(value), lambda b: None, here=False)
        loop.run_one()
        loop.run_one()
    assert len(set(model.threads)) == 2, "threads are kept"
    run.close()
    for thread in set(model.threads):
        thread.join(10)
        assert not thread.is_alive()


def test_a_system_without_threads_fails_the_batch_not_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    run = runner(Tracing(), Loop())
    done: list[Batch] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        run.run(batch(1), done.append, here=False)
    assert isinstance(done[0].error, RuntimeError)
    loop = Loop()
    run = runner(Tracing(), loop)
    run.run(batch(1), done.append, here=False)
    loop.run_one()
    assert done[1].error is None
    run.close()


def test_execute_keeps_what_went_wrong() -> None:
    class Broken(Tracing):
        def infer(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
            raise MemoryError("no room")

    each = batch(1)
    execute(Broken(), each, batched=True)
    assert isinstance(each.error, MemoryError)
    assert each.started <= each.assembled <= each.finished


class Separate(Tracing):
    """Answers the requests of a batch one by one; even values are errors, 9 fails all."""

    separate = True

    def infer_each(self, requests: Any, gone: Any) -> Any:
        values = [int(each.inputs[0].array[0]) for each in requests]
        if 9 in values:
            raise ValueError("nine")
        if 8 in values:
            return []
        return [
            {"x": np.array([value, int(gone(n))])} if value % 2 else KeyError(value)
            for n, value in enumerate(values)
        ]


def test_separate_requests_are_answered_one_by_one() -> None:
    run, done = runner(Separate(), Loop()), []
    calls = [batch(value).calls[0] for value in (1, 2, 3)]
    calls[2].state = ENDED
    run.run(Batch(calls, 3, "", 0.0), done.append, here=True)
    first, second, third = done[0].answers
    assert (first["x"].tolist(), third["x"].tolist()) == ([1, 0], [3, 1])
    assert isinstance(second, KeyError)
    assert done[0].error is None
    for value, error in ((9, ValueError), (8, InferenceFailed)):
        run.run(batch(value), done.append, here=True)
        assert isinstance(done[-1].error, error)
        assert done[-1].answers is None
    run.close()
