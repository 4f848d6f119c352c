"""Streams of answers from models in threads and on the loop, and what models do wrong."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gateway.batching.answers import AHEAD
from gateway.batching.assembly import Splitter
from gateway.batching.clock import LoopClock
from gateway.batching.policy import BatchPolicy
from gateway.batching.streamer import Streamer
from gateway.call import ENDED
from gateway.contract import Contract
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    QueueFull,
    SluiceError,
    Unsupported,
)
from gateway.model_settings import BatchingSettings, LimitSettings, QueueSettings
from gateway.pipeline import AwaitableCall
from gateway.telemetry.stats import ServableStats
from gateway.tensors import DATATYPES, InferenceRequest, Tensor, TensorSpec
from runtimes.interface import AsyncModel, Model

INT64, BYTES = DATATYPES["INT64"], DATATYPES["BYTES"]
PATIENCE = 60.0
Steps = Callable[..., Any]
"""What a model does with a request: (n, parameters) → its outputs, one after the other."""


class Threaded(Model):
    inputs = (TensorSpec("n", INT64, (1,)), TensorSpec("t", BYTES, (1,), optional=True))
    outputs = (TensorSpec("y", INT64, (1,)), TensorSpec("t", BYTES, (1,)))
    decoupled = True

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def infer(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
        raise NotImplementedError

    def stream(self, inputs: Any, outputs: Any, parameters: Any) -> Iterator[Any]:
        found: Iterator[Any] = self.steps(int(inputs["n"][0]), parameters)
        return found


class OnLoop(AsyncModel):
    inputs = Threaded.inputs
    outputs = Threaded.outputs
    decoupled = True

    def __init__(self, steps: Steps) -> None:
        super().__init__(asyncio.get_running_loop())
        self.steps = steps

    async def infer_async(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
        raise NotImplementedError

    async def stream_async(self, inputs: Any, outputs: Any, parameters: Any) -> AsyncIterator[Any]:
        for each in self.steps(int(inputs["n"][0]), parameters):
            await asyncio.sleep(0)
            yield each


KINDS = pytest.mark.parametrize("kind", [Threaded, OnLoop])


class ACall(AwaitableCall):
    __slots__ = ()
    protocol = "test"


def streamer(
    model: Model,
    instances: int = 1,
    batching: BatchingSettings | None = None,
    limits: LimitSettings | None = None,
) -> Streamer:
    return Streamer(
        "m/1",
        model,
        Contract(model.inputs, model.outputs, batched=False),
        BatchPolicy(
            batching or BatchingSettings(enabled=False),
            max_rows=1,
            instances=instances,
            limits=limits,
        ),
        Splitter("m", "1", model.outputs),
        LoopClock(asyncio.get_running_loop()),
        ServableStats(),
    )


def call(n: int = 0, left: float | None = None, **more: Any) -> ACall:
    tensor = Tensor("n", INT64, (1,), array=np.array([n]))
    inputs = (tensor, *more.pop("inputs", ()))
    now = LoopClock.now()
    deadline = None if left is None else now + left
    return ACall(InferenceRequest("m", "", inputs, **more), now, deadline)


def counting(n: int, parameters: Any) -> Iterator[Any]:
    for value in range(n):
        yield {"y": np.array([value])}


async def values(answers: Any) -> list[int]:
    return [int(each.outputs[0].array[0]) async for each in answers]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def run(test: Callable[[], Any]) -> None:
    """Runs it on a loop; no thread of a streamer may be left behind."""
    before = threading.enumerate()
    asyncio.run(test())
    for thread in threading.enumerate():
        if thread.name.startswith("m/1/") and thread not in before:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@KINDS
def test_answers_in_order_and_one_end(kind: Any) -> None:
    async def test() -> None:
        tested = streamer(kind(counting))
        each = call(50, id="a")
        each.route = "label"
        answers = tested.stream(each)
        first = await anext(answers)
        assert (first.id, first.model, first.version, first.route) == ("a", "m", "1", "label")
        assert await values(answers) == list(range(1, 50))
        assert each.state == ENDED and tested.stats.requests["test", "ok"] == 1
        with pytest.raises(StopAsyncIteration):
            await anext(answers)
        await answers.aclose()
        assert tested.stats.requests.total() == 1
        assert tested.stats.streamed == 50 and len(tested.stats.answers) == 50
        tested.close()

    run(test)


@KINDS
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"z": np.array([1])}, "output 'z', which it does not declare"),
        ({"y": np.array([1.0])}, "output 'y' as float64, but declares it INT64"),
        ([1, 2], "gave list as an answer"),
        (None, "gave NoneType as an answer"),
    ],
)
def test_wrong_answers_fail_behind_the_good_ones(kind: Any, given: Any, text: str) -> None:
    closed = threading.Event()

    def steps(n: int, parameters: Any) -> Iterator[Any]:
        try:
            yield {"y": np.array([7])}
            yield given
            yield {"y": np.array([8])}
        finally:
            closed.set()

    async def test() -> None:
        tested = streamer(kind(steps))
        answers = tested.stream(call())
        assert (await anext(answers)).outputs[0].array.tolist() == [7]
        with pytest.raises(InferenceFailed, match=text):
            await anext(answers)
        await until(lambda: closed.is_set() and not tested.pending)
        assert tested.stats.failures["BACKEND"] == tested.stats.requests.total() == 1
        tested.close()

    run(test)


@KINDS
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_model_that_exits_ends_its_stream_alone(kind: Any, error: BaseException) -> None:
    if kind is OnLoop and not isinstance(error, SystemExit):
        pytest.skip("on the loop these are not the model's to raise")

    def steps(n: int, parameters: Any) -> Iterator[Any]:
        if n:
            raise error
        yield {"y": np.array([1])}

    async def test() -> None:
        tested = streamer(kind(steps))
        with pytest.raises(InferenceFailed, match=type(error).__name__):
            await anext(tested.stream(call(1)))
        assert await values(tested.stream(call(0))) == [1]
        tested.close()

    run(test)


def test_a_model_that_cancels_itself_ends_its_stream_alone() -> None:
    class Broken(OnLoop):
        async def stream_async(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
            yield {"y": np.array([1])}
            raise asyncio.CancelledError

    async def test() -> None:
        tested = streamer(Broken(counting))
        answers = tested.stream(call())
        await anext(answers)
        with pytest.raises(InferenceFailed, match="cancelled itself"):
            await anext(answers)
        await until(lambda: not tested.pending)

    run(test)


def test_a_model_may_use_its_arrays_again() -> None:
    def steps(n: int, parameters: Any) -> Iterator[Any]:
        array = np.zeros(1, np.int64)
        for value in range(n):
            array[0] = value
            yield {"y": array}

    async def test() -> None:
        tested = streamer(Threaded(steps))
        answers = tested.stream(call(3))
        await until(lambda: not tested.pending)
        assert await values(answers) == [0, 1, 2]
        tested.close()

    run(test)


def test_any_iterator_will_do() -> None:
    async def test() -> None:
        tested = streamer(Threaded(lambda n, parameters: [{"y": np.array([n])}] * 2))
        assert await values(tested.stream(call(4))) == [4, 4]
        tested.close()
        tested = streamer(Threaded(lambda n, parameters: None))
        with pytest.raises(InferenceFailed, match="TypeError"):
            await anext(tested.stream(call()))
        tested.close()

    run(test)


def test_a_model_is_let_ahead_so_far_and_no_further() -> None:
    made: list[int] = []

    def steps(n: int, parameters: Any) -> Iterator[Any]:
        for value in range(n):
            made.append(value)
            yield {"y": np.array([value])}

    async def test() -> None:
        tested = streamer(Threaded(steps))
        answers = tested.stream(call(100))
        await until(lambda: len(made) == AHEAD)
        await asyncio.sleep(0.05)
        assert len(made) == AHEAD
        for read in range(1, 11):
            await anext(answers)
            await until(lambda read=read: len(made) == AHEAD + read)
        await answers.aclose()
        await until(lambda: not tested.pending)
        assert len(made) <= AHEAD + 11
        tested.close()

    run(test)


def test_generators_are_closed_in_their_own_thread() -> None:
    threads: list[str] = []

    def steps(n: int, parameters: Any) -> Iterator[Any]:
        threads.append(threading.current_thread().name)
        try:
            while True:
                yield {"y": np.array([n])}
        except GeneratorExit:
            threads.append(threading.current_thread().name)
            raise

    async def test() -> None:
        tested = streamer(Threaded(steps))
        answers = tested.stream(call())
        await anext(answers)
        await answers.aclose()
        await until(lambda: not tested.pending)
        assert len(threads) == 2 and len(set(threads)) == 1
        assert tested.stats.requests["test", "cancelled"] == 1
        tested.close()

    run(test)


def test_a_model_that_does_not_stop_keeps_its_place() -> None:
    inside, stuck = threading.Event(), threading.Event()

    def steps(n: int, parameters: Any) -> Iterator[Any]:
        yield {"y": np.array([n])}
        if n == 1:
            inside.set()
            assert stuck.wait(PATIENCE)
        yield {"y": np.array([n])}

    async def test() -> None:
        tested = streamer(Threaded(steps))
        first = tested.stream(call(1))
        await anext(first)
        second = tested.stream(call(2))
        await until(inside.is_set)
        await first.aclose()
        await asyncio.sleep(0.05)
        assert (tested.pending, tested.waiting) == (2, 1), "its thread is still in the model"
        stuck.set()
        assert await values(second) == [2, 2]
        await until(lambda: not tested.pending)
        tested.close()

    run(test)


def test_a_model_that_yields_when_told_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    def steps(n: int, parameters: Any) -> Iterator[Any]:
        while True:
            try:
                yield {"y": np.array([n])}
            except GeneratorExit:
                yield {"y": np.array([-1])}

    async def test() -> None:
        tested = streamer(Threaded(steps))
        answers = tested.stream(call())
        await anext(answers)
        await answers.aclose()
        await until(lambda: not tested.pending)
        assert "m/1 failed after it was stopped" in caplog.text
        tested.close()

    run(test)


@KINDS
def test_cancelling_the_call_wakes_the_reader(kind: Any) -> None:
    def steps(n: int, parameters: Any) -> Iterator[Any]:
        yield {"y": np.array([0])}
        while kind is Threaded and each.state != ENDED:
            pass
        while kind is OnLoop:
            yield {"y": np.array([0])}

    async def test() -> None:
        tested = streamer(kind(steps))
        answers = tested.stream(each)
        reading = asyncio.ensure_future(values(answers))
        await until(lambda: tested.stats.streamed)
        each.cancel()
        with pytest.raises(Cancelled):
            await reading
        await until(lambda: not tested.pending)
        assert tested.stats.requests.total() == 1
        tested.close()

    async def prepared() -> None:
        nonlocal each
        each = call()
        await test()

    each: ACall
    run(prepared)


@KINDS
def test_cancelling_the_reader_stops_the_model(kind: Any) -> None:
    async def test() -> None:
        gate = threading.Event()

        def steps(n: int, parameters: Any) -> Iterator[Any]:
            if kind is Threaded:
                gate.wait(PATIENCE)
            yield {"y": np.array([0])}

        tested = streamer(kind(steps))
        each = call()
        reading = asyncio.ensure_future(anext(tested.stream(each)))
        reading.get_loop().call_soon(reading.cancel)
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert each.state == ENDED
        gate.set()
        await until(lambda: not tested.pending)
        assert tested.stats.failures["CANCELED"] == 1
        tested.close()

    run(test)


def test_closing_at_once_leaves_nothing_behind() -> None:
    async def test() -> None:
        for kind in (Threaded, OnLoop):
            tested = streamer(kind(counting))
            running, waiting = tested.stream(call(5)), tested.stream(call(5))
            await waiting.aclose()
            await running.aclose()
            await running.aclose()
            assert tested.waiting == tested.waiting_bytes == 0
            await until(lambda tested=tested: not tested.pending)
            assert tested.stats.requests.total() == 2
            with pytest.raises(StopAsyncIteration):
                await anext(running)
            tested.close()

    run(test)


def test_throwing_into_the_answers_closes_them() -> None:
    async def test() -> None:
        tested = streamer(Threaded(counting))
        answers = tested.stream(call(5))
        with pytest.raises(ValueError, match="mine"):
            await answers.athrow(ValueError("mine"))
        await until(lambda: not tested.pending)
        tested.close()

    run(test)


def test_one_reader_at_a_time() -> None:
    async def test() -> None:
        gate = threading.Event()

        def steps(n: int, parameters: Any) -> Iterator[Any]:
            gate.wait(PATIENCE)
            yield {"y": np.array([0])}

        tested = streamer(Threaded(steps))
        answers = tested.stream(call())
        reading = asyncio.ensure_future(anext(answers))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already"):
            await anext(answers)
        gate.set()
        await reading
        await answers.aclose()
        await until(lambda: not tested.pending)
        tested.close()

    run(test)


@KINDS
def test_what_is_refused_at_once(kind: Any) -> None:
    async def test() -> None:
        tested = streamer(kind(counting))
        with pytest.raises(Unsupported):
            tested.submit(call())
        wrong = ACall(
            InferenceRequest("m", "", (Tensor("n", INT64, (2,), array=np.zeros(2, np.int64)),)), 0.0
        )
        with pytest.raises(InvalidRequest, match="takes shape"):
            tested.stream(wrong)
        with pytest.raises(InvalidRequest, match="has no output 'q'"):
            tested.stream(call(outputs=("q",)))
        broken = Tensor("t", BYTES, (1,), b"\xff\0\0\0a")
        with pytest.raises(InvalidRequest, match="BYTES"):
            tested.stream(call(inputs=(broken,), unchecked=True))
        with pytest.raises(DeadlineExceeded, match="before the request was queued"):
            tested.stream(call(left=-1.0))
        assert not (tested.pending or tested._streams or tested.stats.requests)

    run(test)


def test_bounds_of_the_line() -> None:
    cases: list[tuple[QueueSettings, LimitSettings, str]] = [
        (QueueSettings(max_requests=1), LimitSettings(), r"\(1 requests\)"),
        (QueueSettings(max_rows=1), LimitSettings(), r"\(1 rows\)"),
        (QueueSettings(max_bytes=8), LimitSettings(), r"\(8 bytes\)"),
        (QueueSettings(), LimitSettings(max_in_flight=2), r"\(2 requests in flight\)"),
    ]

    async def test() -> None:
        for queue, limits, text in cases:
            batching = BatchingSettings(enabled=False, queue=queue)
            tested = streamer(OnLoop(counting), 1, batching, limits)
            kept = [tested.stream(call(1)), tested.stream(call(2))]
            with pytest.raises(QueueFull, match=text):
                tested.stream(call())
            assert [await values(each) for each in kept] == [[0], [0, 1]]
            assert await values(tested.stream(call(1))) == [0]

    run(test)


def test_urgent_requests_go_first() -> None:
    async def test() -> None:
        begun: list[int] = []

        def steps(n: int, parameters: Any) -> Iterator[Any]:
            begun.append(n)
            yield {"y": np.array([n])}

        batching = BatchingSettings(enabled=False, priority_levels=3, default_priority=2)
        tested = streamer(OnLoop(steps), 1, batching)
        streams = [tested.stream(call(n, priority=n)) for n in (2, 3, 1)]
        for each in streams:
            await values(each)
        assert begun == [2, 1, 3]

    run(test)


@KINDS
def test_deadline_of_a_running_stream(kind: Any) -> None:
    closed = threading.Event()

    def steps(n: int, parameters: Any) -> Iterator[Any]:
        try:
            while True:
                yield {"y": np.array([0])}
        finally:
            closed.set()

    async def test() -> None:
        tested = streamer(kind(steps))
        answers = tested.stream(call(left=0.05))
        with pytest.raises(DeadlineExceeded, match="answers of m/1; the model was stopped"):
            await values(answers)
        await until(lambda: closed.is_set() and not tested.pending)
        assert tested.stats.failures["REJECTED"] == 1
        tested.close()

    run(test)


def test_reserved_parameters_are_not_the_models() -> None:
    seen: list[Any] = []

    def steps(n: int, parameters: Any) -> Iterator[Any]:
        seen.append(parameters)
        yield {"y": np.array([0])}

    async def test() -> None:
        tested = streamer(Threaded(steps))
        parameters = {"warm": 1, "timeout": 9, "triton_enable_empty_final_response": True}
        await values(tested.stream(call(parameters=parameters)))
        assert seen == [{"warm": 1}]
        tested.close()

    run(test)


def test_a_system_without_threads_fails_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def test() -> None:
        tested = streamer(Threaded(counting), 2)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            failing = [tested.stream(call(2)) for _ in range(4)]
            for each in failing:
                with pytest.raises(InferenceFailed, match="no more threads"):
                    await anext(each)
        assert not tested.pending
        assert await values(tested.stream(call(2))) == [0, 1]
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            both = [tested.stream(call(9)) for _ in range(2)]
            for each in both:  # the one thread that there is does them one after the other
                assert await values(each) == list(range(9))
        tested.close()

    run(test)


def test_storm() -> None:
    """Many callers who read, dawdle, leave and fail at random; nothing is lost or left."""
    running = 0
    most = 0
    lock = threading.Lock()

    def steps(n: int, parameters: Any) -> Iterator[Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            for value in range(n % 13):
                if n % 7 == 3 and value == 5:
                    raise ValueError("as agreed")
                yield {"y": np.array([value])}
        finally:
            with lock:
                running -= 1

    async def caller(tested: Streamer, rng: random.Random, n: int) -> None:
        each = call(n)
        answers = tested.stream(each)
        leave = rng.randrange(20)
        got: list[int] = []
        try:
            async for response in answers:
                got.append(int(response.outputs[0].array[0]))
                if len(got) == leave:
                    break
                if rng.random() < 0.2:
                    await asyncio.sleep(rng.random() / 500)
        except SluiceError:
            assert n % 7 == 3
        else:
            assert len(got) == min(n % 13, leave or 20)
        finally:
            await answers.aclose()
        assert got == list(range(len(got)))
        assert each.state == ENDED

    async def test() -> None:
        tested = streamer(Threaded(steps), 3)
        rng = random.Random(7)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(caller(tested, rng, n) for n in range(300)))
        await until(lambda: not tested.pending)
        assert tested.stats.requests.total() == 300
        assert running == 0 and most <= 3 and len(tested._threads) <= 3
        tested.close()

    run(test)
