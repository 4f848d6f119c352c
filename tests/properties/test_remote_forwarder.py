"""The dispatcher of models that batch by themselves: every call ends once, nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batching.clock import LoopClock
from gateway.contract import Contract
from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    QueueFull,
    SluiceError,
    Unavailable,
)
from gateway.forwarding import Forwarder
from gateway.lifecycle.dispatchers import make_dispatcher
from gateway.lifecycle.probe import Findings
from gateway.model_settings import BatchingSettings, LimitSettings, ModelSettings, QueueSettings
from gateway.pipeline import AwaitableCall
from gateway.telemetry.stats import ServableStats
from gateway.tensors import DATATYPES, InferenceRequest, InferenceResponse, Tensor, TensorSpec
from runtimes.interface import ForwardingModel, Headers, Outputs

FP32 = DATATYPES["FP32"]
X, Y = TensorSpec("x", FP32, (-1, 2)), TensorSpec("y", FP32, (-1, 2))


class Elsewhere(ForwardingModel):
    """A model whose answers the test gives."""

    inputs = (X,)
    outputs = (Y,)
    probed = False

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.seen: list[tuple[InferenceRequest, float | None]] = []
        self.waiting: dict[str, asyncio.Future[InferenceResponse]] = {}
        self.cancelled: list[str] = []

    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        self.seen.append((request, deadline))
        future = self.waiting[request.id] = self.loop.create_future()
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        finally:
            del self.waiting[request.id]

    def answer(self, id: str) -> None:
        if id in self.waiting and not self.waiting[id].done():
            self.waiting[id].set_result(InferenceResponse("m", "1", (), id=id))

    def fail(self, id: str, error: Exception) -> None:
        if id in self.waiting and not self.waiting[id].done():
            self.waiting[id].set_exception(error)

    async def infer_async(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], parameters: Mapping[str, Any]
    ) -> Outputs:
        raise NotImplementedError

    def status(self) -> dict[str, object]:
        return {"endpoints": []}


class CountedCall(AwaitableCall):
    """Counts its ends."""

    __slots__ = ("ends",)
    protocol = "test"

    def __init__(self, request: InferenceRequest, deadline: float | None = None) -> None:
        super().__init__(request, perf_counter(), deadline)
        self.ends = 0
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())

    def _replied(self, response: InferenceResponse) -> None:
        self.ends += 1
        super()._replied(response)

    def _failed(self, error: SluiceError) -> None:
        self.ends += 1
        super()._failed(error)

    def _cancelled(self) -> None:
        self.ends += 1
        super()._cancelled()


def call_of(id: str, rows: int = 1, deadline: float | None = None, **other: Any) -> CountedCall:
    x = Tensor("x", FP32, (rows, 2), array=np.zeros((rows, 2), np.float32))
    request = InferenceRequest("m", "", (x,), id=id, **other)
    return CountedCall(request, deadline)


def forwarder_of(model: Elsewhere, *, batched: bool = True, **settings: Any) -> Forwarder:
    dispatcher = make_dispatcher(
        "m", "1", model, Findings(16 if batched else 0), Contract((X,), (Y,), batched=batched),
        ModelSettings(**settings), LoopClock(model.loop), 0.0,
    )  # fmt: skip
    assert isinstance(dispatcher, Forwarder)
    return dispatcher


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "submit", "answer", "fail", "cancel", "step"]),
            st.integers(0, 9),
            st.integers(1, 5),
        ),
        max_size=60,
    )
)
def test_every_call_ends_once_and_nothing_is_left(events: list[tuple[str, int, int]]) -> None:
    async def test() -> None:
        model = Elsewhere()
        forwarder = forwarder_of(model)
        calls: list[CountedCall] = []
        for what, which, rows in events:
            if what == "submit":
                call = call_of(str(len(calls)), rows)
                calls.append(call)
                forwarder.submit(call)
            elif what == "step":
                await settle()
            elif calls:
                call = calls[which % len(calls)]
                if what == "answer":
                    model.answer(call.request.id)
                elif what == "fail":
                    model.fail(call.request.id, Unavailable("away"))
                else:
                    call.cancel()
            under_way = sum(call.ends == 0 for call in calls)
            assert forwarder.pending == under_way
            assert forwarder.rows == sum(call.rows for call in calls if call.ends == 0)
        await settle()
        for call in calls:
            model.answer(call.request.id)
        await settle()
        assert [call.ends for call in calls] == [1] * len(calls)
        assert (forwarder.pending, forwarder.rows, forwarder.bytes) == (0, 0, 0)
        assert model.waiting == {}
        stats = forwarder.stats
        assert stats.requests.total() == len(calls)
        assert stats.success.count + stats.fail.count == len(calls)
        assert stats.execution_count == stats.success.count
        assert stats.request_seconds["test"].count == len(calls) if calls else True

    run(test)


def test_an_answer_with_all_its_counts() -> None:
    async def test() -> None:
        model = Elsewhere()
        forwarder = forwarder_of(model)
        call = call_of("a", rows=3, timeout_us=5_000_000)
        call.route = "split"
        forwarder.submit(call)
        await settle()
        (request, deadline), *_ = model.seen
        assert request is call.request
        assert deadline == pytest.approx(call.arrived + 5)
        model.answer("a")
        response = await call.future
        assert response.route == "split"
        stats: ServableStats = forwarder.stats
        assert stats.requests == {("test", "ok"): 1}
        assert (stats.inference_count, stats.execution_count) == (3, 1)
        assert stats.closed == {"forwarded": 1}
        assert stats.compute_infer.ns > 0

    run(test)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Unavailable("away"), Unavailable, "away"),
        (ValueError("bad /srv/models/secret/x"), InferenceFailed, "ValueError: bad x"),
    ],
)
def test_failures(error: Exception, kind: type[SluiceError], text: str) -> None:
    async def test() -> None:
        model = Elsewhere()
        forwarder = forwarder_of(model)
        call = call_of("a")
        forwarder.submit(call)
        await settle()
        model.fail("a", error)
        with pytest.raises(kind) as caught:
            await call.future
        assert text in str(caught.value)
        assert forwarder.stats.fail.count == 1
        assert forwarder.pending == 0

    run(test)


@pytest.mark.parametrize("begun", [True, False])
def test_a_caller_who_goes_away_is_felt_on_the_other_side(begun: bool) -> None:
    async def test() -> None:
        model = Elsewhere()
        forwarder = forwarder_of(model)
        call, other = call_of("a"), call_of("b")
        forwarder.submit(call)
        forwarder.submit(other)
        if begun:
            await settle()
        call.cancel()
        assert forwarder.pending == 1
        await settle()
        assert model.cancelled == (["a"] if begun else [])
        assert forwarder.stats.requests == {("test", "cancelled"): 1}
        model.answer("b")
        assert (await other.future).id == "b"

    run(test)


def test_requests_that_do_not_fit_are_refused() -> None:
    def request(*tensors: Tensor, **other: Any) -> CountedCall:
        return CountedCall(InferenceRequest("m", "", tensors, **other))

    def tensor(name: str = "x", shape: tuple[int, ...] = (1, 2), kind: str = "FP32") -> Tensor:
        datatype = DATATYPES[kind]
        return Tensor(name, datatype, shape, array=np.zeros(shape, datatype.dtype))

    async def test() -> None:
        model = Elsewhere()
        forwarder = forwarder_of(model)
        good = call_of("good")
        forwarder.submit(good)  # whose signature is known from now on
        for call, text in (
            (request(), "missing"),
            (request(tensor("z")), "no input 'z'"),
            (request(tensor(kind="INT64")), "INT64 was sent"),
            (request(tensor(shape=(1, 3))), r"\[1, 3\] was sent"),
            (request(tensor(), tensor()), "given twice"),
            (request(tensor(shape=(0, 2))), "0 rows"),
            (request(tensor(), outputs=("z",)), "no output 'z'"),
        ):
            with pytest.raises(InvalidRequest, match=text):
                forwarder.submit(call)
        late = call_of("late", deadline=perf_counter() - 1)
        with pytest.raises(DeadlineExceeded):
            forwarder.submit(late)
        assert forwarder.pending == 1
        good.cancel()
        await settle()

    run(test)


def test_a_first_dimension_that_is_no_batch_is_looked_at_each_time() -> None:
    async def test() -> None:
        model = Elsewhere()
        fixed = TensorSpec("x", FP32, (1, 2))
        model.inputs = (fixed,)
        forwarder = make_dispatcher(
            "m", "1", model, Findings(0), Contract((fixed,), (Y,), batched=False),
            ModelSettings(), LoopClock(model.loop), 0.0,
        )  # fmt: skip
        good = call_of("good", rows=1)
        forwarder.submit(good)
        with pytest.raises(InvalidRequest):
            forwarder.submit(call_of("bad", rows=2))
        good.cancel()
        await settle()

    run(test)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batching": BatchingSettings(queue=QueueSettings(max_rows=6))}, "6 rows"),
        ({"batching": BatchingSettings(queue=QueueSettings(max_bytes=40))}, "40 bytes"),
        ({"batching": BatchingSettings(queue=QueueSettings(max_requests=2))}, "2 requests"),
        ({"limits": LimitSettings(max_in_flight=2)}, "2 requests in flight"),
    ],
)
def test_what_is_under_way_is_bounded(settings: dict[str, Any], text: str) -> None:
    async def test() -> None:
        model = Elsewhere()
        forwarder = forwarder_of(model, **settings)
        calls = [call_of(str(n), rows=2) for n in range(3)]
        for call in calls[:2]:
            forwarder.submit(call)
        with pytest.raises(QueueFull, match=text):
            forwarder.submit(call_of("too much", rows=3))
        await settle()
        model.answer("0")
        await calls[0].future
        forwarder.submit(calls[2])
        for call in calls:
            call.cancel()
        await settle()
        alone = call_of("alone", rows=16)
        forwarder.submit(alone)  # any size may be the only one
        alone.cancel()
        await settle()

    run(test)


def test_the_rows_of_one_request_are_bounded() -> None:
    async def test() -> None:
        forwarder = forwarder_of(Elsewhere(), limits=LimitSettings(max_rows=4))
        with pytest.raises(InvalidRequest, match="takes at most 4"):
            forwarder.submit(call_of("a", rows=5))

    run(test)


class Batched(Elsewhere):
    """The gateway forms its batches, and the server goes away."""

    batches_itself = False

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.batches: list[int] = []

    async def infer_async(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], parameters: Mapping[str, Any]
    ) -> Outputs:
        self.batches.append(len(inputs["x"]))
        raise self.error


@pytest.mark.parametrize(
    ("error", "batches"),
    [
        (Unavailable("the connection broke; it may have been executed"), [4]),
        (InferenceFailed("one of you is at fault"), [4, 2, 1, 1, 2, 1, 1]),
    ],
)
def test_a_batch_that_may_have_been_executed_is_not_run_again_in_parts(
    error: SluiceError, batches: list[int]
) -> None:
    async def test() -> None:
        model = Batched(error)
        model.instances = 1
        dispatcher = make_dispatcher(
            "m", "1", model, Findings(16), Contract((X,), (Y,), batched=True), ModelSettings(),
            LoopClock(model.loop), 0.0,
        )  # fmt: skip
        calls = [call_of(str(n)) for n in range(4)]
        for call in calls:
            dispatcher.submit(call)
        for call in calls:
            with pytest.raises(type(error)):
                await call.future
        assert model.batches == batches

    run(test)


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), SystemExit(3)])
def test_a_model_that_cancels_itself_or_exits_fails_its_call_alone(raised: BaseException) -> None:
    class Broken(Elsewhere):
        async def forward(self, *_: Any) -> InferenceResponse:
            await asyncio.sleep(0)
            raise raised

    async def test() -> None:
        forwarder = forwarder_of(Broken())
        call = call_of("a", 2)
        forwarder.submit(call)
        with pytest.raises(InferenceFailed, match=type(raised).__name__):
            await call.future
        assert (forwarder.pending, forwarder.rows, forwarder.bytes) == (0, 0, 0)

    run(test)


def test_more_rows_than_the_server_takes_are_refused() -> None:
    async def test() -> None:
        model = Elsewhere()
        model.max_batch_size = 4
        forwarder = forwarder_of(model)
        with pytest.raises(InvalidRequest, match=r"5 rows.*at most 4.*max_batch_size"):
            forwarder.submit(call_of("a", 5))
        assert forwarder.pending == 0
        forwarder.submit(call_of("b", 4))
        await settle()
        model.answer("b")
        await settle()
        assert forwarder.pending == 0

    run(test)


# --- batches of the gateway's


class Batching(Elsewhere):
    """Takes batches, and answers when it is let."""

    batches_itself = False
    elsewhere = True

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.batches: list[tuple[int, float | None, str | None]] = []
        self.stopped = 0

    async def infer_until(
        self, inputs: Any, outputs: Any, parameters: Any, deadline: Any, headers: Any
    ) -> Outputs:
        self.batches.append((len(inputs["x"]), deadline, headers("traceparent")))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return {"y": inputs["x"]}


class TracedCall(CountedCall):
    __slots__ = ()

    def header(self, name: str) -> str | None:
        return "00-ab" if name == "traceparent" else None


def batcher_of(model: Batching, **settings: Any) -> Any:
    model.instances = 1
    return make_dispatcher(
        "m", "1", model, Findings(16), Contract((X,), (Y,), batched=True),
        ModelSettings(**settings), LoopClock(model.loop), 0.0,
    )  # fmt: skip


def traced(id: str, deadline: float | None = None) -> CountedCall:
    return TracedCall(call_of(id).request, deadline)


def test_a_batch_has_the_latest_deadline_and_of_one_call_its_headers() -> None:
    async def test() -> None:
        model = Batching()
        batcher = batcher_of(model)
        soon, late = perf_counter() + 100, perf_counter() + 200
        groups = [[soon], [soon, late], [soon, None]]
        calls = []
        for number, group in enumerate(groups):
            calls += [traced(f"{number}{n}", each) for n, each in enumerate(group)]
            for call in calls[-len(group) :]:
                batcher.submit(call)
            await settle()
            model.gate.set()
            await asyncio.gather(*(call.future for call in calls))
            model.gate.clear()
        assert model.batches == [(1, soon, "00-ab"), (2, late, None), (2, None, None)]

    run(test)


def test_running_calls_end_at_their_own_deadline_and_the_batch_with_the_last() -> None:
    async def test() -> None:
        model = Batching()
        batcher = batcher_of(model)
        first, second = traced("a", perf_counter() + 0.05), traced("b", perf_counter() + 1e3)
        batcher.submit(first)
        batcher.submit(second)
        with pytest.raises(DeadlineExceeded, match="may be executing"):
            await first.future
        assert second.ends == model.stopped == 0, "the other goes on"
        second.cancel()
        while batcher.pending:
            await asyncio.sleep(0)
        assert model.stopped == 1
        assert (first.ends, second.ends) == (1, 1)
        model.gate.set()
        again = traced("c")
        batcher.submit(again)
        await again.future

    run(test)


def test_a_batch_cancelled_before_its_first_step_gives_its_place_back() -> None:
    async def test() -> None:
        model = Batching()
        batcher = batcher_of(model)
        call = traced("a")
        batcher.submit(call)
        batcher.flush()
        call.cancel()
        while batcher.pending:
            await asyncio.sleep(0)
        assert model.batches == []
        model.gate.set()
        again = traced("b")
        batcher.submit(again)
        await again.future

    run(test)


def test_the_slices_of_a_large_request_end_at_its_deadline() -> None:
    async def test() -> None:
        model = Batching()
        batcher = batcher_of(model)
        call = call_of("a", 40, perf_counter() + 0.05)
        batcher.submit(call)
        with pytest.raises(DeadlineExceeded):
            await call.future
        while batcher.pending:
            await asyncio.sleep(0)
        assert model.stopped == 1
        assert call.ends == 1

    run(test)
