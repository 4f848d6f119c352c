"""Runs batches: on the loop when they are cheap, in a thread of the instance's when they are
not, and as a task where the model computes elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Protocol

from gateway.batching.assembly import assemble, check_rows, wanted_outputs
from gateway.call import ENDED, Call
from gateway.contract import for_the_model
from gateway.errors import InferenceFailed
from gateway.tensors import Array, Parameter
from runtimes.interface import AsyncModel, Model


class Batch:
    """Calls that run together, then their outputs or the error. Times in the clock's seconds."""

    __slots__ = (
        "answers", "assembled", "calls", "cancel", "closed", "deadline", "error", "finished",
        "outputs", "reason", "rows", "started",
    )  # fmt: skip

    def __init__(self, calls: Sequence[Call], rows: int, reason: str, closed: float) -> None:
        self.calls = calls
        self.rows = rows
        self.reason = reason
        self.closed = closed
        self.started = self.assembled = self.finished = closed
        self.outputs: Mapping[str, Array] = {}
        self.answers: Sequence[Mapping[str, Array] | Exception] | None = None
        """One for each call, in place of `outputs`, where the model kept them separate."""
        self.error: Exception | None = None
        self.deadline: float | None = None
        """The latest of its calls'; `None` where one has none."""
        self.cancel: Callable[[], object] | None = None
        """Stops its work; set by runners that can. `done` is called all the same."""


class Runner(Protocol):
    """Executes batches. `done` is called on the owning thread, perhaps before `run` returns."""

    def run(self, batch: Batch, done: Callable[[Batch], None], *, here: bool) -> None: ...

    def close(self) -> None: ...


def parameters_of(model: Model, batch: Batch) -> dict[str, Parameter]:
    """The parameters that a batch runs with: equal in all of its calls."""
    if not model.parameters_matter:
        return {}
    return for_the_model(batch.calls[0].request.parameters)


def as_exception(error: BaseException) -> Exception:
    """What a model raised. One that exits or cancels itself fails its batch, nothing else."""
    if isinstance(error, Exception):
        return error
    return InferenceFailed(f"the model raised {type(error).__name__}")


def execute(model: Model, batch: Batch, *, batched: bool) -> None:
    """Assembles the batch, calls the runtime and keeps what came of it. Never raises."""
    batch.started = perf_counter()
    try:
        inputs = assemble(batch.calls, batch.rows)
        batch.assembled = perf_counter()
        outputs = model.infer(inputs, wanted_outputs(batch.calls), parameters_of(model, batch))
        if batched:
            check_rows(outputs, batch.rows)
        batch.outputs = outputs
    except BaseException as error:
        batch.error = as_exception(error)
    batch.finished = perf_counter()


def execute_each(model: Model, batch: Batch, *, batched: bool) -> None:
    """As `execute`, for a model that answers the requests of a batch one by one."""
    calls = batch.calls
    batch.started = batch.assembled = perf_counter()
    try:
        requests = [call.request for call in calls]
        answers = model.infer_each(requests, lambda index: calls[index].state == ENDED)
        if len(answers) != len(calls):
            raise InferenceFailed(f"the model gave {len(answers)} answers to {len(calls)} requests")
        batch.answers = answers
    except BaseException as error:
        batch.error = as_exception(error)
    batch.finished = perf_counter()


class ModelRunner:
    """Runs batches of one model; `instances` threads at most, started when first needed."""

    def __init__(
        self,
        model: Model,
        *,
        batched: bool,
        instances: int,
        name: str,
        call_soon_threadsafe: Callable[..., object],
    ) -> None:
        self._model = model
        self._execute = execute_each if model.separate else execute
        self._batched = batched
        self._instances = instances
        self._name = name
        self._call_soon_threadsafe = call_soon_threadsafe
        self._work: SimpleQueue[tuple[Batch, Callable[[Batch], None]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0

    def run(self, batch: Batch, done: Callable[[Batch], None], *, here: bool) -> None:
        if here:
            self._execute(self._model, batch, batched=self._batched)
            done(batch)
            return
        self._busy += 1
        if self._busy > len(self._threads) and len(self._threads) < self._instances:
            thread = threading.Thread(
                target=self._loop, name=f"{self._name}/{len(self._threads)}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system gives no more threads
                if not self._threads:
                    self._busy -= 1
                    batch.error = error
                    done(batch)
                    return
            else:
                self._threads.append(thread)
        self._work.put((batch, done))

    def _loop(self) -> None:
        while (item := self._work.get()) is not None:
            batch, done = item
            self._execute(self._model, batch, batched=self._batched)
            try:
                self._call_soon_threadsafe(self._came_back, batch, done)
            except RuntimeError:
                return  # the loop is closed: nobody is left to hear it
            del item, batch, done  # not kept in memory until the next one comes

    def _came_back(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        self._busy -= 1
        done(batch)

    def close(self) -> None:
        """Lets the threads end once they are idle."""
        for _ in self._threads:
            self._work.put(None)
        self._threads = []


def _of_nobody(name: str) -> str | None:
    """The headers of a batch of several callers."""
    return None


class AsyncRunner:
    """Runs batches of a model that answers later: one task a batch, on the owning loop."""

    def __init__(self, model: AsyncModel, *, batched: bool) -> None:
        self._model = model
        self._batched = batched
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[asyncio.Task[None], Callable[[], object]] = {}
        """What is left to do at the end of each, if it does not come to it by itself."""

    def run(self, batch: Batch, done: Callable[[Batch], None], *, here: bool) -> None:
        task = self._loop.create_task(self._run(batch, done))
        batch.cancel = task.cancel
        self._tasks[task] = partial(self._never_begun, batch, done)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        missing = self._tasks.pop(task)
        if task.cancelled():
            missing()

    def _never_begun(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        """Cancelled before its first step, a task does nothing at all."""
        batch.error = as_exception(asyncio.CancelledError())
        done(batch)

    async def _run(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        model = self._model
        batch.started = perf_counter()
        try:
            inputs = assemble(batch.calls, batch.rows)
            batch.assembled = perf_counter()
            parameters = parameters_of(model, batch)
            calls = batch.calls
            headers = calls[0].header if len(calls) == 1 else _of_nobody
            outputs = await model.infer_until(
                inputs, wanted_outputs(calls), parameters, batch.deadline, headers
            )
            if self._batched:
                check_rows(outputs, batch.rows)
            batch.outputs = outputs
        except (Exception, asyncio.CancelledError, SystemExit) as error:
            batch.error = as_exception(error)
        batch.finished = perf_counter()
        done(batch)

    def close(self) -> None:
        """Nothing is pending, so there is nothing to give back."""
