"""Overload in simulated time: who is refused, who never is, and what that is good for."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batching.curve import CostCurve
from gateway.errors import DeadlineUnmeetable, QueueFull, Saturated
from gateway.model_settings import BatchingSettings, QueueSettings
from tests.properties import simulation
from tests.properties.simulation import DEFAULTS, MS, SimCall, Simulation

Cost = Callable[[int], float]
MOST = 64


def affine(rows: int) -> float:
    """Batches pay: capacity 376 rows/s at 64 rows."""
    return 10 * MS + 2.5 * MS * rows


def linear(rows: int) -> float:
    """Batches do not pay at all: capacity 100 rows/s."""
    return 10 * MS * rows


def constant(rows: int) -> float:
    """Rows cost nothing: capacity 320 rows/s, with full batches alone."""
    return 200 * MS


@pytest.fixture(autouse=True)
def _long_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_MOST_EVENTS", 10_000_000)


def make(cost: Cost, setup: BatchingSettings = DEFAULTS, **options: Any) -> Simulation:
    """One whose costs are known; without the checks at every step, which are for short scenes."""
    sim = Simulation(setup, max_rows=MOST, cost=cost, **options)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        sim.batcher.curve.observe(rows, cost(rows))
    sim.clock.after_event = lambda: None
    sim.runner.before = lambda batch: None
    return sim


def offer(
    sim: Simulation, rate: float, seconds: float, start: float = 0.0, seed: int = 1, **how: Any
) -> list[SimCall]:
    """Requests of one row that come whatever becomes of the others, at random times."""
    chance = random.Random(seed)
    end = sim.clock.now() + start + seconds
    calls: list[SimCall] = []

    def one() -> None:
        calls.append(sim.arrive(**how))
        after = chance.expovariate(rate)
        if sim.clock.now() + after < end:
            sim.at(after, one)

    sim.at(start, one)
    return calls


def workers(
    sim: Simulation, count: int, seconds: float, jitter: float = 5 * MS, ramp: float = 0.0
) -> None:
    """Callers that send the next request when the last one was answered."""
    chance = random.Random(2)
    end = sim.clock.now() + seconds

    def one() -> None:
        if sim.clock.now() >= end:
            return
        call = sim.call()
        pause = chance.expovariate(1 / jitter) + (0.0 if call.error is None else 1.0)
        call.at_end = lambda: sim.at(pause, one)
        sim.submit(call)

    for number in range(count):
        sim.at(ramp * number / count, one)


def refused(sim: Simulation) -> int:
    return sum(call.error is not None for call in sim.calls)


def p99(calls: list[SimCall], after: float) -> float:
    took = sorted(
        call.ended_at - call.arrived
        for call in calls
        if call.response is not None and call.ended_at is not None and call.arrived >= after
    )
    return took[int(len(took) * 0.99)]


CAPACITY = {affine: 64 / affine(64), linear: 100.0, constant: 320.0}


@pytest.mark.parametrize("cost", CAPACITY, ids=lambda cost: cost.__name__)
def test_above_capacity_most_is_answered_and_soon(cost: Cost) -> None:
    capacity = CAPACITY[cost]
    # It takes some full batches to notice, and those of the linear one take 640 ms.
    seconds, settled = (16.0, 11.0) if cost is linear else (9.0, 5.0)
    reference = make(cost)
    usual = offer(reference, 0.8 * capacity, seconds)
    reference.run()
    assert refused(reference) == 0
    for times in (1.25, 3.0):
        sim = make(cost)
        start = sim.clock.now()
        calls = offer(sim, times * capacity, seconds)
        sim.run()
        late = [call for call in calls if call.arrived >= start + settled]
        answered = sum(
            call.response is not None and start + settled <= (call.ended_at or 0) < start + seconds
            for call in calls
        )
        assert answered / (seconds - settled) >= 0.9 * capacity
        assert p99(late, 0) <= 2 * p99(usual, start + 1)
        errors = [call.error for call in calls if call.error is not None]
        assert all(isinstance(error, Saturated) for error in errors)
        assert all(error.retry_after > 0 for error in errors if isinstance(error, Saturated))


def test_what_was_let_in_is_kept() -> None:
    """Nobody is thrown out of the queue that had built up."""
    sim = make(affine)
    offer(sim, 3 * CAPACITY[affine], 4)
    sim.run()
    assert all(call.response is not None for call in sim.calls if call.accepted)


def test_the_refusal_says_why() -> None:
    sim = make(affine)
    offer(sim, 1000, 2)
    sim.run()
    error = next(call.error for call in reversed(sim.calls) if call.error is not None)
    text = str(error)
    assert "more comes to m/1 than it can do" in text
    assert "rows/s" in text
    assert "the work ahead takes about" in text


@pytest.mark.parametrize(
    ("count", "jitter", "ramp"), [(500, 0.001, 0.0), (500, 0.2, 0.0), (500, 0.005, 0.8)]
)
@pytest.mark.parametrize("cost", [affine, linear, constant], ids=lambda cost: cost.__name__)
def test_callers_that_wait_for_their_answers_are_never_refused(
    cost: Cost, count: int, jitter: float, ramp: float
) -> None:
    sim = make(cost)
    workers(sim, count, 6, jitter, ramp)
    sim.run()
    assert refused(sim) == 0
    # Whole batches all the time: nothing was given away either.
    full = sim.stats.batch_sizes[MOST].compute_infer.count * MOST
    assert full >= 0.85 * sim.stats.inference_count


def test_a_burst_is_absorbed() -> None:
    sim = make(affine)
    sim.at(0.1, lambda: [sim.arrive() for _ in range(2000)])
    sim.run()
    assert refused(sim) == 0


def test_bursts_on_a_steady_load_are_absorbed() -> None:
    sim = make(affine)
    offer(sim, 0.7 * CAPACITY[affine], 12)
    for second in (2, 5, 8):
        sim.at(second, lambda: [sim.arrive() for _ in range(150)])
    sim.run()
    assert refused(sim) == 0


def test_it_is_over_when_less_comes() -> None:
    sim = make(affine)
    capacity = CAPACITY[affine]
    offer(sim, 2 * capacity, 5)
    after = offer(sim, 0.8 * capacity, 8, start=5)
    sim.run()
    start = sim.calls[0].arrived
    assert any(call.error is not None for call in sim.calls)
    assert not sim.batcher.overload.on
    assert all(call.error is None for call in after if call.arrived > start + 8)
    # And batches may be full again, so that callers who wait get the whole throughput.
    sim.at(0, lambda: [sim.arrive() for _ in range(300)])
    sim.run()
    assert sim.runner.log[-3].rows == MOST


def test_it_is_forgotten_when_everybody_goes() -> None:
    sim = make(affine)
    offer(sim, 2 * CAPACITY[affine], 4)
    sim.run()
    assert sim.batcher.overload.on
    sim.at(60, lambda: [sim.arrive() for _ in range(1000)])
    sim.run()
    assert all(call.error is None for call in sim.calls[-1000:])


def test_steady_overload_does_not_come_and_go() -> None:
    sim = make(affine)
    offer(sim, 1.3 * CAPACITY[affine], 12)
    states: list[bool] = []
    judge = sim.batcher._end_window

    def watched(now: float) -> None:
        judge(now)
        states.append(sim.batcher.overload.on)

    sim.batcher._end_window = watched  # type: ignore[method-assign]
    sim.run()
    changes = sum(one != other for one, other in pairwise(states))
    assert changes == 1
    assert states[-1]


def test_zero_switches_it_off() -> None:
    sim = make(affine, BatchingSettings(queue=QueueSettings(overload_wait_us=0)))
    offer(sim, 1000, 6)
    sim.run()
    assert refused(sim) == 0


def test_nonsense_is_refused() -> None:
    for value in (-1, 0.5, "soon"):
        with pytest.raises(msgspec.ValidationError, match="overload_wait_us"):
            msgspec.convert({"overload_wait_us": value}, QueueSettings)


def test_a_wait_can_be_set() -> None:
    sim = make(affine, BatchingSettings(queue=QueueSettings(overload_wait_us=400_000)))
    start = sim.clock.now()
    calls = offer(sim, 800, 14)
    sim.run()
    assert 0.3 < p99(calls, start + 8) < 0.6
    assert refused(sim)


def test_urgent_requests_go_on_being_served() -> None:
    sim = make(affine, BatchingSettings(priority_levels=2, priority_ageing_us=1_000_000))
    offer(sim, 2 * CAPACITY[affine], 8, priority=2)
    # Those who have waited for a second by the time it is noticed are overtaken by nobody.
    urgent = offer(sim, 0.1 * CAPACITY[affine], 5, start=3, seed=5, priority=1)
    sim.run()
    assert refused(sim)
    assert all(call.error is None for call in urgent)


class InnerCall(SimCall):
    inner = True


def test_what_models_ask_for_admitted_calls_is_never_refused() -> None:
    sim = make(affine)
    offer(sim, 2 * CAPACITY[affine], 6)
    inner: list[SimCall] = []

    def ask() -> None:
        plain = sim.call()
        call = InnerCall(plain.request, plain.arrived)
        call.clock = sim.clock
        sim.calls[-1] = call
        inner.append(sim.submit(call))

    for number in range(50):
        sim.at(3 + number * 0.05, ask)
    sim.run()
    assert all(call.error is None for call in inner)


def test_large_requests_are_refused_whole_or_not_at_all() -> None:
    sim = make(affine)
    offer(sim, 1.5 * CAPACITY[affine], 8)
    large = offer(sim, 2, 8, seed=9, rows=200)
    sim.run()
    assert any(call.error is not None for call in large)
    assert all(call.accepted == (call.response is not None) for call in large)


def test_deadlines_that_cannot_be_kept_are_signs_of_overload_too() -> None:
    """They keep the queue from growing; it would stand at the deadline for ever."""
    sim = make(affine)
    start = sim.clock.now()
    calls = offer(sim, 2 * CAPACITY[affine], 12, deadline=0.6)
    sim.run()
    assert p99(calls, start + 6) < 0.3
    late = [call.error for call in calls if call.error is not None and call.arrived > start + 6]
    assert all(isinstance(error, Saturated) for error in late)
    assert any(isinstance(call.error, DeadlineUnmeetable) for call in calls)


def test_a_full_queue_is_a_sign_of_overload_too() -> None:
    sim = make(affine, BatchingSettings(queue=QueueSettings(max_rows=200)))
    offer(sim, 3 * CAPACITY[affine], 6)
    sim.run()
    kinds = {type(call.error) for call in sim.calls if call.error is not None}
    assert kinds == {QueueFull, Saturated}


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3000),
            st.sampled_from([1, 1, 1, 3, 9]),
            st.sampled_from([None, None, 30, 400]),
            st.sampled_from([None, None, None, 0, 100]),
            st.sampled_from(["", "", "", "poison", "short"]),
        ),
        min_size=50,
        max_size=400,
    ),
    st.booleans(),
    st.integers(1, 2),
    st.sampled_from([None, 1, 5_000, 100_000]),
)
def test_each_call_ends_once(
    scene: list[tuple[int, int, int | None, int | None, str]],
    ordered: bool,
    instances: int,
    wait: int | None,
) -> None:
    setup = BatchingSettings(
        preserve_ordering=ordered, queue=QueueSettings(overload_wait_us=wait), max_delay_us=3000
    )
    sim = Simulation(setup, max_rows=4, cost=lambda rows: 10 * MS + rows * MS, instances=instances)
    model = sim.model
    assert isinstance(model, simulation.AddOne)

    def arrive(rows: int, deadline: int | None, cancel: int | None, fault: str) -> None:
        call = sim.call(rows, deadline=None if deadline is None else deadline * MS)
        if fault:
            getattr(model, fault).add(call.first_id)
        if cancel is not None:
            sim.at(cancel * MS, call.cancel)
        sim.submit(call)

    for at, *what in scene:
        sim.at(at * MS, lambda what=what: arrive(*what))  # type: ignore[misc]
    offer(sim, 500, 3)
    sim.run()


def test_the_smallest_batch_that_pays() -> None:
    def learned(cost: Cost, sizes: tuple[int, ...] = (1, 3, 6, 12, 24, 48, 64)) -> CostCurve:
        curve = CostCurve()
        for rows in sizes:
            for _ in range(20):
                curve.observe(rows, cost(rows))
        return curve

    assert learned(linear).paying(64, 0.95) == 1
    assert learned(constant).paying(64, 0.95) == 64
    assert learned(affine).paying(64, 0.95) == 40
    assert learned(lambda rows: affine(32), (30,)).paying(64, 0.95) == 32
    assert learned(linear, (64,)).paying(64, 0.95) == 64
    assert CostCurve().paying(64, 0.95) == 1
    assert CostCurve().between(3) is None
    assert learned(affine).between(5) == pytest.approx(affine(5))
