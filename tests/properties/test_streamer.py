"""The streamer under whatever callers and models do, in any order: each call ends once, answers
keep their order, places are never more than there are, and nothing is left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from heapq import heappop, heappush
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batching.answers import AHEAD
from gateway.batching.assembly import Splitter
from gateway.batching.policy import BatchPolicy
from gateway.batching.streamer import Streamer
from gateway.contract import Contract
from gateway.errors import SluiceError
from gateway.model_settings import BatchingSettings, LimitSettings, QueueSettings
from gateway.pipeline import AwaitableCall
from gateway.telemetry.stats import ServableStats
from gateway.tensors import DATATYPES, InferenceRequest, Tensor, TensorSpec
from runtimes.interface import AsyncModel

INT64 = DATATYPES["INT64"]
TURNS = 12
"""Turns of the loop in which everything that can happen has happened."""


class HandClock:
    """Stands still until it is moved on; for the rest it is the running loop's."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.time = 1000.0
        self.call_soon = loop.call_soon
        self.call_soon_threadsafe = loop.call_soon_threadsafe
        self._timers: list[tuple[float, int, list[Any]]] = []
        self._count = 0

    def now(self) -> float:
        return self.time

    def call_later(self, delay: float, action: Callable[[], object], /) -> HandTimer:
        self._count += 1
        entry: list[Any] = [action]
        heappush(self._timers, (self.time + delay, self._count, entry))
        return HandTimer(entry)

    def lag(self, seconds: float) -> None:
        """The loop is late: the time has passed, the timers have not been looked at."""
        self.time += seconds

    def move(self, seconds: float) -> None:
        self.time += seconds
        while self._timers and self._timers[0][0] <= self.time:
            action = heappop(self._timers)[2][0]
            if action is not None:
                action()


class HandTimer:
    def __init__(self, entry: list[Any]) -> None:
        self._entry = entry

    def cancel(self) -> None:
        self._entry[0] = None


class Puppet(AsyncModel):
    """Does with each request what it is told, one word after the other."""

    inputs = (TensorSpec("n", INT64, (1,)),)
    outputs = (TensorSpec("y", INT64, (1,)),)
    decoupled = True

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.words: dict[int, asyncio.Queue[str]] = {}
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.given: dict[int, int] = {}

    def tell(self, n: int, word: str) -> None:
        self.words.setdefault(n, asyncio.Queue()).put_nowait(word)

    async def infer_async(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
        raise NotImplementedError

    async def stream_async(self, inputs: Any, outputs: Any, parameters: Any) -> AsyncIterator[Any]:
        n = int(inputs["n"][0])
        self.begun.append(n)
        words = self.words.setdefault(n, asyncio.Queue())
        try:
            while (word := await words.get()) != "end":
                if word == "raise":
                    raise ValueError("as told")
                value = self.given[n] = self.given.get(n, 0) + 1
                yield {"y": np.array([value - 1])}
        finally:
            self.ended.append(n)


class Reader:
    """One caller: how many answers it got, and how it ended."""

    def __init__(self, n: int, call: AwaitableCall, answers: Any) -> None:
        self.n = n
        self.call = call
        self.answers = answers
        self.values: list[int] = []
        self.end: object = None
        self.closed = False
        self._step: asyncio.Task[Any] | None = None

    def read(self) -> None:
        if self.end is None and not self.closed and (self._step is None or self._step.done()):
            self._step = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        try:
            response = await anext(self.answers)
        except StopAsyncIteration:
            self.end = "ok"
        except SluiceError as error:
            self.end = error
        else:
            self.values.append(int(response.outputs[0].array[0]))

    async def close(self) -> None:
        self.closed = True
        if self._step is not None and not self._step.done():
            self._step.cancel()
            await asyncio.gather(self._step, return_exceptions=True)
        await self.answers.aclose()


class World:
    def __init__(self, instances: int, queue: QueueSettings, most: int) -> None:
        self.clock = HandClock()
        self.model = Puppet()
        self.stats = ServableStats()
        self.instances = instances
        self.streamer = Streamer(
            "m/1",
            self.model,
            Contract(self.model.inputs, self.model.outputs, batched=False),
            BatchPolicy(
                BatchingSettings(enabled=False, queue=queue),
                max_rows=1,
                instances=instances,
                limits=LimitSettings(max_in_flight=most),
            ),
            Splitter("m", "1", self.model.outputs),
            self.clock,
            self.stats,
        )
        self.readers: list[Reader] = []
        self.refused = 0

    def open(self, left: float | None) -> None:
        n = len(self.readers)
        tensor = Tensor("n", INT64, (1,), array=np.array([n]))
        now = self.clock.now()
        deadline = None if left is None else now + left
        call = Protocolled(InferenceRequest("m", "", (tensor,)), now, deadline)
        try:
            answers = self.streamer.stream(call)
        except SluiceError:
            self.refused += 1
            return
        self.readers.append(Reader(n, call, answers))

    async def settle(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        model = self.model
        running = len(model.begun) - len(model.ended)
        assert running <= self.instances
        assert self.streamer.pending >= self.streamer.waiting
        assert model.begun == sorted(model.begun), "first come, first served"
        for reader in self.readers:
            assert reader.values == list(range(len(reader.values)))
            ahead = model.given.get(reader.n, 0) - len(reader.values)
            assert ahead <= AHEAD or reader.closed or reader.end is not None
            if self.streamer.waiting:
                # Whoever waits does so because every place is taken.
                assert self.streamer.pending - self.streamer.waiting == self.instances

    async def finish(self) -> None:
        """Everybody lets the model end and reads to the end."""
        for _ in range(200):
            for reader in self.readers:
                self.model.tell(reader.n, "end")
                reader.read()
            await self.settle()
            if all(reader.closed or reader.end is not None for reader in self.readers):
                break
        await self.settle()


class Protocolled(AwaitableCall):
    __slots__ = ()
    protocol = "test"


who = st.integers(0, 5)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from([None, None, 0.5, 3.0])),
        st.tuples(st.just("give"), who),
        st.tuples(st.just("give many"), who),
        st.tuples(st.just("end"), who),
        st.tuples(st.just("raise"), who),
        st.tuples(st.just("read"), who),
        st.tuples(st.just("close"), who),
        st.tuples(st.just("cancel"), who),
        st.tuples(st.just("move"), st.sampled_from([0.1, 1.0, 5.0])),
        st.tuples(st.just("lag"), st.sampled_from([1.0, 5.0])),
        st.tuples(st.just("settle"), st.none()),
    ),
    max_size=40,
)


async def play(
    script: list[tuple[str, Any]], instances: int, queue: QueueSettings, most: int
) -> None:
    world = World(instances, queue, most)
    for what, whom in script:
        reader = None
        if what not in ("open", "move", "lag", "settle"):
            if not world.readers:
                continue
            reader = world.readers[whom % len(world.readers)]
        if what == "open":
            world.open(whom)
        elif what == "move":
            world.clock.move(whom)
        elif what == "lag":
            world.clock.lag(whom)
        elif what == "settle":
            await world.settle()
        elif what == "read":
            assert reader is not None
            reader.read()
        elif what == "close":
            assert reader is not None
            await reader.close()
        elif what == "cancel":
            assert reader is not None
            reader.call.cancel()
        else:
            assert reader is not None
            for _ in range(10 if what == "give many" else 1):
                world.model.tell(reader.n, what.split()[0])
    await world.settle()
    await world.finish()
    streamer, model = world.streamer, world.model
    assert streamer.pending == streamer.waiting == streamer.waiting_bytes == 0
    assert not streamer._streams
    assert sorted(model.begun) == sorted(model.ended)
    # Every call that was let in ended once, one way or another.
    assert world.stats.requests.total() == len(world.readers)
    ok = sum(reader.end == "ok" for reader in world.readers)
    assert world.stats.requests["test", "ok"] == ok == world.stats.success.count
    for reader in world.readers:
        if reader.end == "ok":
            assert len(reader.values) == model.given.get(reader.n, 0)
    streamer.close()


@settings(max_examples=300, deadline=None)
@given(
    actions,
    st.integers(1, 3),
    st.builds(
        QueueSettings,
        max_requests=st.sampled_from([0, 0, 2]),
        timeout_us=st.sampled_from([0, 0, 700_000]),
        timeout_action=st.sampled_from(["reject", "delay"]),
    ),
    st.sampled_from([0, 0, 3]),
)
def test_every_call_ends_once(
    script: list[tuple[str, Any]], instances: int, queue: QueueSettings, most: int
) -> None:
    asyncio.run(play(script, instances, queue, most))
