"""The batcher's invariants, in generated scenarios of simulated time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.batching.policy import HORIZON
from gateway.call import ENDED
from gateway.errors import (
    DeadlineExceeded,
    DeadlineUnmeetable,
    InferenceFailed,
    InvalidInput,
    QueueFull,
    WrongRows,
)
from gateway.model_settings import (
    BatchingSettings,
    LimitSettings,
    PriorityQueueSettings,
    QueueSettings,
)
from tests.properties.simulation import DEFAULTS, MS, TICK, AddOne, SimCall, Simulation


@dataclass(frozen=True)
class Arrival:
    """One call of a scenario; times in milliseconds."""

    at: int
    rows: int
    width: int
    priority: int
    deadline: int | None
    timeout: int
    outputs: tuple[str, ...]
    cancel_after: int | None
    """-1: at once, before anything else happens."""
    fault: str
    at_end: str
    """What the caller does as its call ends: nothing, cancel the next one, send another."""


def arrivals(
    *, faults: bool = True, cancels: bool = True, deadlines: bool = True, most_rows: int = 11
) -> st.SearchStrategy[list[Arrival]]:
    rare = st.sampled_from
    return st.lists(
        st.builds(
            Arrival,
            at=st.integers(0, 40),
            rows=st.one_of(st.integers(1, 3), st.integers(1, most_rows)),
            width=st.integers(1, 2),
            priority=st.integers(0, 4),
            deadline=st.one_of(st.none(), st.integers(1, 60)) if deadlines else st.none(),
            timeout=rare([0, 0, 0, 5000, 30_000]) if deadlines else st.just(0),
            outputs=rare([(), (), ("y",), ("z",), ("z", "y")]),
            cancel_after=(
                st.one_of(st.none(), st.none(), st.integers(-1, 45)) if cancels else st.none()
            ),
            fault=rare(["", "", "", "", "poison", "short"]) if faults else st.just(""),
            at_end=rare(["", "", "", "cancel", "send"]) if cancels else st.just(""),
        ),
        min_size=1,
        max_size=24,
    )


QUEUES = st.builds(
    QueueSettings,
    max_requests=st.sampled_from([0, 0, 5]),
    max_rows=st.sampled_from([8192, 8192, 12]),
    max_bytes=st.sampled_from([2**28, 2**28, 200]),
    timeout_us=st.sampled_from([0, 0, 15_000]),
    timeout_action=st.sampled_from(["reject", "reject", "delay"]),
    allow_timeout_override=st.booleans(),
)
LEVEL_QUEUES = st.dictionaries(
    st.integers(1, 3),
    st.builds(
        PriorityQueueSettings,
        max_requests=st.sampled_from([None, 1, 3]),
        timeout_us=st.sampled_from([None, 8000]),
        timeout_action=st.sampled_from([None, "reject", "delay"]),
        allow_timeout_override=st.sampled_from([None, True, False]),
    ),
    max_size=2,
)
SETTINGS = st.builds(
    BatchingSettings,
    enabled=st.sampled_from([True, True, True, False]),
    preferred_sizes=st.sampled_from([(), (), (2,), (2, 3)]),
    max_delay_us=st.sampled_from([0, 0, 0, 5000]),
    preserve_ordering=st.sampled_from([False, False, True]),
    priority_levels=st.sampled_from([0, 0, 3]),
    default_priority=st.sampled_from([0, 1]),
    priority_ageing_us=st.sampled_from([1000, 20_000]),
    queue=QUEUES,
    priority_queues=LEVEL_QUEUES,
)
COSTS = {
    "fast": lambda rows: 0.05 * MS,
    "slow": lambda rows: 10 * MS,
    "by rows": lambda rows: 2 * MS + rows * MS,
    "instant": lambda rows: 0.0,
}
SETUPS = st.fixed_dictionaries(
    {
        "settings": SETTINGS,
        "max_rows": st.integers(1, 6),
        "instances": st.integers(1, 3),
        "inline_seconds": st.sampled_from([0.0, 0.0, 1 * MS]),
        "batched": st.sampled_from([True, True, True, False]),
        "cost": st.sampled_from(sorted(COSTS)).map(COSTS.__getitem__),
        "limits": st.sampled_from([None, None, LimitSettings(max_rows=9, max_in_flight=8)]),
    }
)


def play(sim: Simulation, scenario: list[Arrival]) -> list[SimCall]:
    """Puts a scenario on the clock, runs it to its end, gives its calls in order."""
    calls: dict[int, SimCall] = {}
    model = sim.model
    assert isinstance(model, AddOne)

    def cancel(index: int) -> None:
        if index in calls:
            calls[index].cancel()

    def arrive(index: int, each: Arrival) -> None:
        call = calls[index] = sim.call(
            each.rows,
            each.width,
            deadline=None if each.deadline is None else each.deadline * MS,
            priority=each.priority,
            timeout_us=each.timeout,
            outputs=each.outputs,
        )
        if each.fault == "poison":
            model.poison.add(call.first_id)
        elif each.fault == "short" and sim.batched:
            model.short.add(call.first_id)
        if each.at_end == "cancel":
            call.at_end = lambda: cancel(index + 1)
        elif each.at_end == "send":
            call.at_end = lambda: sim.arrive(1, 3)
        sim.submit(call)
        if each.cancel_after == -1:
            call.cancel()
        elif each.cancel_after is not None:
            sim.at(each.cancel_after * MS, call.cancel)

    for index, each in enumerate(scenario):
        sim.at(each.at * MS, lambda index=index, each=each: arrive(index, each))
    sim.run()
    return [calls[index] for index in range(len(scenario))]


@settings(max_examples=settings.default.max_examples * 2)  # type: ignore[union-attr]
@given(setup=SETUPS, scenario=arrivals())
def test_every_call_ends_once_with_its_own_rows(
    setup: dict[str, Any], scenario: list[Arrival]
) -> None:
    sim = Simulation(**setup)
    calls = play(sim, scenario)
    short = any(each.fault == "short" for each in scenario)
    for each, call in zip(scenario, calls, strict=True):
        event(call.ends[0])
        if isinstance(call.error, InvalidInput):
            assert each.fault == "poison", "fails for another's fault"
        if isinstance(call.error, WrongRows):
            assert short
        if call.response is not None:
            assert each.fault == "" or (each.fault == "short" and not sim.batched)
        if isinstance(call.error, DeadlineExceeded) and call.accepted:
            assert call.deadline is not None and call.ended_at is not None
            # Time may pass in one step where the model runs on the loop.
            slack = 2 * TICK + (2 * MS if setup["inline_seconds"] else 0)
            # The whole keeps the queue's limit where its slices were forgiven it.
            limits = {call.deadline, call.own_deadline or call.deadline}
            if any(each.fault == "poison" for each in scenario):
                # It may have been running at its deadline, in a batch that failed later.
                assert call.ended_at >= min(limits)
            else:
                assert any(limit <= call.ended_at <= limit + slack for limit in limits)


@given(setup=SETUPS, scenario=arrivals(faults=False, cancels=False, deadlines=False))
def test_everything_is_answered_when_nothing_is_wrong(
    setup: dict[str, Any], scenario: list[Arrival]
) -> None:
    setup |= {"settings": BatchingSettings(), "limits": None}
    calls = play(Simulation(**setup), scenario)
    assert all(call.ends == ["reply"] for call in calls)


# --- cancellation


@given(
    setup=SETUPS,
    scenario=arrivals(faults=False, cancels=False, deadlines=False),
    gone=st.sets(st.integers(0, 23)),
    after=st.integers(0, 9),
)
def test_cancelling_what_runs_changes_nothing_for_the_others(
    setup: dict[str, Any], scenario: list[Arrival], gone: set[int], after: int
) -> None:
    setup |= {"limits": None, "inline_seconds": 0.0}
    calm = play(Simulation(**setup), scenario)
    sim = Simulation(**setup)
    model_runs = sim.runner.before

    def cancel_while_running(batch: Any) -> None:
        model_runs(batch)
        for call in batch.calls:
            if isinstance(call, SimCall) and int(call.request.id[1:]) in gone:
                sim.at(after * MS * 0.001, call.cancel)

    sim.runner.before = cancel_while_running
    # Calls are numbered as they arrive: the same in both runs.
    play(sim, scenario)
    by_id = {call.request.id: call for call in sim.calls}
    for call in calm:
        again = by_id[call.request.id]
        if again.ends != ["cancel"]:
            assert again.ended_at == pytest.approx(call.ended_at)
            assert again.ends == call.ends


@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    gone=st.sets(st.integers(0, 19)),
    busy=st.booleans(),
    order=st.sampled_from([False, True]),
)
def test_cancelling_what_waits_delays_nobody(
    rows: list[int], gone: set[int], busy: bool, order: bool
) -> None:
    def run(gone: set[int]) -> list[SimCall]:
        sim = Simulation(BatchingSettings(preserve_ordering=order), max_rows=4)
        if busy:
            sim.arrive(4)
            sim.clock.settle()
        calls = [sim.arrive(each) for each in rows]
        for index in gone & set(range(len(calls))):
            calls[index].cancel()
        sim.run()
        return calls

    calm, changed = run(set()), run(gone)
    for before, after in zip(calm, changed, strict=True):
        if after.ends != ["cancel"]:
            assert after.ends == before.ends
            assert after.ended_at is not None and before.ended_at is not None
            assert after.ended_at <= before.ended_at + TICK


@given(stage=st.integers(0, 60), rows=st.integers(1, 30), poison=st.booleans())
def test_cancelling_an_oversized_call_leaves_nothing_behind(
    stage: int, rows: int, poison: bool
) -> None:
    sim = Simulation(max_rows=4, instances=2)
    others = [sim.arrive(2) for _ in range(3)]
    call = sim.call(rows)
    if poison:
        sim.model.poison.add(call.first_id)  # type: ignore[attr-defined]
    sim.submit(call)
    others += [sim.arrive(1) for _ in range(3)]
    sim.at(stage * MS, call.cancel)
    if stage == 0:
        call.cancel()
    sim.run()
    assert all(other.ends == ["reply"] for other in others)
    assert call.ends in (["reply"], ["cancel"], ["InvalidInput"])


def test_cancelling_twice_and_after_the_end_does_nothing() -> None:
    sim = Simulation()
    call = sim.arrive()
    sim.run()
    call.cancel()
    call.cancel()
    assert call.ends == ["reply"]
    sim.check_end()


# --- failures


@given(
    rows=st.lists(st.integers(1, 2), min_size=1, max_size=12),
    poison=st.sets(st.integers(0, 11)),
    instances=st.integers(1, 2),
    ordered=st.booleans(),
)
def test_only_the_poisoned_members_of_a_batch_fail(
    rows: list[int], poison: set[int], instances: int, ordered: bool
) -> None:
    sim = Simulation(BatchingSettings(preserve_ordering=ordered), max_rows=64, instances=instances)
    calls = [sim.call(each) for each in rows]
    for index in poison & set(range(len(calls))):
        sim.model.poison.add(calls[index].first_id)  # type: ignore[attr-defined]
    for call in calls:
        sim.submit(call)
    sim.run()
    for index, call in enumerate(calls):
        assert call.ends == (["InvalidInput"] if index in poison else ["reply"])


def test_wrong_rows_fail_the_whole_batch_and_say_why() -> None:
    sim = Simulation(max_rows=8)
    calls = [sim.call() for _ in range(5)]
    sim.model.short.add(calls[2].first_id)  # type: ignore[attr-defined]
    for call in calls:
        sim.submit(call)
    sim.run()
    assert all(isinstance(call.error, WrongRows) for call in calls)
    assert "shape [4, 1] for a batch of 5 rows" in str(calls[0].error)
    assert len(sim.runner.log) == 1


def test_a_call_whose_deadline_passes_between_retries_is_not_executed() -> None:
    sim = Simulation(max_rows=8)
    bad = sim.call(deadline=18 * MS)
    sim.model.poison.add(bad.first_id)  # type: ignore[attr-defined]
    sim.submit(bad)
    hasty, waits, patient = (sim.arrive(deadline=each * MS) for each in (22, 25, 500))
    sim.run()
    # All four until 10, the first two until 20; then the first is too late, the second runs
    # until 30, and the third ends at its deadline although the runtime is busy.
    assert bad.ends == ["DeadlineExceeded"]
    assert hasty.ends == ["reply"]
    assert waits.ends == ["DeadlineExceeded"]
    assert waits.ended_at == pytest.approx(1000.025, abs=2 * TICK)
    assert patient.ends == ["reply"]


def test_a_caller_that_breaks_while_it_is_answered_harms_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sim = Simulation(max_rows=4)
    # One of them has so many rows that it is cut up.
    first, broken, large, deaf, last = (sim.call(rows) for rows in (1, 1, 9, 1, 1))

    def fails(_: object) -> None:
        raise RuntimeError("the socket is on fire")

    for each in (broken, large, deaf):
        each._replied = fails  # type: ignore[method-assign]
    deaf._failed = fails  # type: ignore[method-assign]
    for each in (first, broken, large, deaf, last):
        sim.submit(each)
    sim.clock.run()
    assert first.ends == last.ends == ["reply"]
    assert broken.ends == large.ends == ["InferenceFailed"]
    assert deaf.state == ENDED
    assert sim.batcher.pending == sim.batcher.waiting == sim.batcher.waiting_bytes == 0
    assert "the socket is on fire" in caplog.text


def test_a_caller_that_breaks_as_its_call_expires_harms_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sim = Simulation(max_rows=1)
    sim.arrive()
    sim.clock.settle()
    broken, other = sim.arrive(deadline=5 * MS), sim.arrive(deadline=5 * MS)

    def fails() -> None:
        raise RuntimeError("the socket is on fire")

    broken.at_end = fails
    sim.run()
    assert other.ends == ["DeadlineExceeded"]
    assert "the socket is on fire" in caplog.text


class Ragged(AddOne):
    """Gives as many columns as the batch has rows, or the wrong type, or no rows at all."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def infer(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
        answer = dict(super().infer(inputs, outputs, parameters))
        rows = len(inputs["x"])
        if self.how == "columns":
            return {name: array.repeat(rows, axis=1) for name, array in answer.items()}
        if self.how == "type":
            return {name: array.astype("f4") for name, array in answer.items()}
        if self.how == "missing":
            del answer["y"]
        elif self.how == "extra":
            answer["surprise"] = answer["y"]
        return answer


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("how", ["columns", "type", "missing", "extra"])
def test_a_model_that_breaks_its_word_fails_calls_but_not_the_batcher(how: str, rows: int) -> None:
    sim = Simulation(max_rows=4, model=Ragged(how))
    calls = [sim.arrive(rows, outputs=("y", "z")), sim.arrive(1, outputs=("y", "z"))]
    sim.clock.run()
    assert sim.counters() == (0, 0, 0, 0)
    for call in calls:
        assert len(call.ends) == 1
    if how in ("type", "missing", "extra"):
        for call in calls:
            assert isinstance(call.error, InferenceFailed)
            assert "output" in str(call.error)
    if how == "columns" and rows == 6:
        assert isinstance(calls[0].error, InferenceFailed)


# --- deadlines


@given(
    deadlines=st.lists(st.integers(1, 50), min_size=1, max_size=15),
    cost=st.sampled_from([3, 10, 30]),
)
def test_expired_calls_end_at_their_deadline_though_the_runtime_is_busy(
    deadlines: list[int], cost: int
) -> None:
    sim = Simulation(max_rows=2, cost=lambda rows: cost * MS)
    calls = [sim.arrive(deadline=each * MS) for each in deadlines]
    sim.run()
    for call in calls:
        if call.ends == ["DeadlineExceeded"]:
            assert call.deadline is not None and call.ended_at is not None
            assert call.deadline <= call.ended_at <= call.deadline + 2 * TICK
            assert "was not executed" in str(call.error)
    assert calls[deadlines.index(min(deadlines))].ends == ["reply"]


@given(scenario=arrivals(faults=False, cancels=False), setup=SETUPS)
def test_only_a_busy_servable_says_that_a_deadline_cannot_be_met(
    scenario: list[Arrival], setup: dict[str, Any]
) -> None:
    sim = Simulation(**setup)
    submit = sim.submit

    def watched(call: SimCall) -> SimCall:
        busy = sim.batcher.pending > 0
        submit(call)
        if isinstance(call.error, DeadlineUnmeetable):
            assert busy
            assert call.error.retry_after is not None and call.error.retry_after > 0
        return call

    sim.submit = watched  # type: ignore[method-assign]
    play(sim, scenario)


def test_a_deadline_that_is_easily_met_is_not_refused() -> None:
    sim = Simulation(max_rows=64, cost=lambda rows: 5 * MS)
    sim.arrive()
    sim.run()
    # One row is running for 5 ms; nothing says that the next call has to wait for 64 rows.
    sim.arrive()
    sim.clock.settle()
    assert sim.arrive(deadline=30 * MS).accepted
    assert not sim.arrive(deadline=1 * MS).accepted
    sim.run()


def test_a_deadline_that_has_passed_is_refused() -> None:
    sim = Simulation()
    call = sim.call(deadline=1 * MS)
    sim.clock.time += 2 * MS
    sim.submit(call)
    assert isinstance(call.error, DeadlineExceeded)
    sim.run()


def test_a_delay_is_not_held_beyond_a_deadline() -> None:
    sim = Simulation(BatchingSettings(max_delay_us=100_000), max_rows=8)
    call = sim.arrive(deadline=30 * MS)
    sim.run()
    assert call.ends == ["reply"]


# --- order


@given(
    setup=SETUPS,
    scenario=arrivals(cancels=False, most_rows=3),
)
def test_nobody_is_overtaken_by_who_came_much_later(
    setup: dict[str, Any], scenario: list[Arrival]
) -> None:
    ageing = 20 * MS
    setup["settings"] = BatchingSettings(priority_levels=3, priority_ageing_us=20_000)
    setup["limits"] = None
    sim = Simulation(**setup)
    play(sim, [Arrival(**{**vars(a), "width": 1, "fault": ""}) for a in scenario])
    started = {
        id(call): position for position, batch in enumerate(sim.runner.log) for call in batch.calls
    }
    for a in sim.calls:
        for b in sim.calls:
            both = id(a) in started and id(b) in started
            if both and b.arrived > a.arrived and started[id(b)] < started[id(a)]:
                levels = sim.policy.level(a.request.priority) - sim.policy.level(b.request.priority)
                horizon = 0.0 if b.deadline is None else HORIZON
                assert b.arrived <= a.arrived + levels * ageing + horizon + TICK


def test_the_urgent_overtake_and_those_who_wait_long_are_not_overtaken() -> None:
    settings = BatchingSettings(priority_levels=2, priority_ageing_us=15_000)
    sim = Simulation(settings, max_rows=1)
    sim.arrive(priority=1)
    sim.clock.settle()
    low = sim.arrive(priority=2)
    urgent = [sim.call(priority=1) for _ in range(0)]
    for at in (1, 2, 12, 14, 16, 22, 26):
        sim.at(at * MS, lambda: urgent.append(sim.arrive(priority=1)))
    sim.run()
    ahead = [call for call in urgent if (call.ended_at or 0) < (low.ended_at or 0)]
    assert [round((call.arrived - 1000) / MS) for call in ahead] == [1, 2, 12, 14]


def test_the_earliest_deadline_goes_first() -> None:
    sim = Simulation(max_rows=1)
    sim.arrive()
    sim.clock.settle()
    calls = {at: sim.arrive(deadline=at * MS) for at in (400, 200, 300, 100)}
    calls[2000] = sim.arrive()
    sim.run()
    assert sorted(calls) == sorted(calls, key=lambda at: calls[at].ended_at or 0)


@given(scenario=arrivals(), setup=SETUPS)
def test_answers_keep_the_order_of_arrival_where_that_is_asked_for(
    scenario: list[Arrival], setup: dict[str, Any]
) -> None:
    setup["settings"] = BatchingSettings(
        preserve_ordering=True,
        max_delay_us=setup["settings"].max_delay_us,
        enabled=setup["settings"].enabled,
    )
    sim = Simulation(**setup)
    answered: list[int] = []
    create = sim.call

    def call(*args: Any, **options: Any) -> SimCall:
        made = create(*args, **options)
        number = len(sim.calls)
        end = made._replied

        def replied(response: Any) -> None:
            answered.append(number)
            end(response)

        made._replied = replied  # type: ignore[method-assign]
        return made

    sim.call = call  # type: ignore[method-assign]
    play(sim, scenario)
    assert answered == sorted(answered)


# --- bounds


def busy(settings: BatchingSettings = DEFAULTS, **options: Any) -> Simulation:
    """With one call that runs, so that all others wait."""
    sim = Simulation(settings, max_rows=4, **options)
    sim.arrive(4)
    sim.clock.settle()
    return sim


@given(rows=st.lists(st.integers(1, 9), min_size=1, max_size=20), bound=st.integers(1, 20))
def test_waiting_rows_are_bounded(rows: list[int], bound: int) -> None:
    sim = busy(BatchingSettings(queue=QueueSettings(max_rows=bound)))
    for each in rows:
        ahead = sim.batcher.waiting_rows
        call = sim.arrive(each)
        assert call.accepted == (not ahead or ahead + each <= bound)
        assert call.accepted or isinstance(call.error, QueueFull)
    sim.run()


@given(rows=st.lists(st.integers(1, 9), min_size=1, max_size=20), bound=st.integers(1, 200))
def test_waiting_bytes_are_bounded(rows: list[int], bound: int) -> None:
    sim = busy(BatchingSettings(queue=QueueSettings(max_bytes=bound)))
    for each in rows:
        ahead = sim.batcher.waiting_bytes
        call = sim.arrive(each)
        assert call.accepted == (not ahead or ahead + each * 8 <= bound)
    sim.run()


def test_waiting_requests_are_bounded_per_level() -> None:
    sim = busy(
        BatchingSettings(
            priority_levels=3,
            queue=QueueSettings(max_requests=2),
            priority_queues={1: PriorityQueueSettings(max_requests=1)},
        )
    )
    accepted = [sim.arrive(priority=level).accepted for level in (1, 1, 2, 2, 2, 3)]
    assert accepted == [True, False, True, True, False, True]
    waits = [call for call in sim.calls if not call.ends]
    waits[1].cancel()
    assert sim.arrive(priority=1).accepted
    full = sim.arrive(priority=2)
    assert isinstance(full.error, QueueFull)
    assert "full" in str(full.error)
    assert (full.error.retry_after or 0) > 0
    sim.run()


def test_calls_in_flight_are_bounded() -> None:
    sim = busy(limits=LimitSettings(max_in_flight=2, max_rows=5))
    assert sim.arrive().accepted
    assert isinstance(sim.arrive().error, QueueFull)
    sim.run()
    assert "limits.max_rows" in str(sim.arrive(6).error)
    sim.run()


# --- oversized calls


@given(rows=st.integers(1, 40), width=st.integers(1, 3), bytes_like=st.booleans())
def test_oversized_calls_are_cut_up_and_put_together_again(
    rows: int, width: int, bytes_like: bool
) -> None:
    sim = Simulation(max_rows=4, instances=2)
    call = sim.arrive(rows, width, outputs=("z",) if bytes_like else ())
    sim.run()
    assert call.ends == ["reply"]
    assert len(sim.runner.log) == -(-rows // 4)


@given(rows=st.integers(5, 30), fault=st.sampled_from(["poison", "short"]), where=st.integers(0))
def test_one_bad_slice_fails_the_whole(rows: int, fault: str, where: int) -> None:
    sim = Simulation(max_rows=4, instances=2)
    call = sim.call(rows)
    bad = call.first_id + where % rows
    getattr(sim.model, fault).add(bad)
    sim.submit(call)
    after = sim.arrive(4)
    sim.run()
    assert call.ends == ["InvalidInput" if fault == "poison" else "WrongRows"]
    assert after.ends == ["reply"]
    assert sim.stats.fail.count == 1


def test_the_deadline_of_an_oversized_call_ends_all_its_slices() -> None:
    sim = Simulation(max_rows=4)
    call = sim.arrive(40, deadline=35 * MS)
    sim.run()
    assert call.ends == ["DeadlineExceeded"]
    assert call.ended_at == pytest.approx(1000.035, abs=2 * TICK)
    assert len(sim.runner.log) == 4


# --- settings of the queue


def test_delay_on_timeout_goes_on_at_the_end_of_the_line() -> None:
    queue = QueueSettings(timeout_us=5_000, timeout_action="delay")
    sim = busy(BatchingSettings(queue=queue))
    late = sim.arrive(3)
    sim.at(6 * MS, lambda: sim.arrive(3))
    sim.run()
    fresh = sim.calls[-1]
    assert late.ends == fresh.ends == ["reply"]
    assert (fresh.ended_at or 0) < (late.ended_at or 0)


@pytest.mark.parametrize("deadline", [3, 12])
def test_delay_on_timeout_forgives_the_queue_but_not_the_caller(deadline: int) -> None:
    queue = QueueSettings(timeout_us=5_000, timeout_action="delay")
    sim = busy(BatchingSettings(queue=queue))
    late = sim.arrive(3, deadline=deadline * MS)
    sim.at(6 * MS, lambda: sim.arrive(3))
    sim.run()
    assert late.ends == ["DeadlineExceeded"]
    assert late.ended_at == pytest.approx(1000 + deadline * MS, abs=2 * TICK)


def test_delay_on_timeout_also_holds_for_slices() -> None:
    queue = QueueSettings(timeout_us=5_000, timeout_action="delay")
    sim = busy(BatchingSettings(queue=queue))
    whole = sim.arrive(9)
    mortal = sim.arrive(9, deadline=12 * MS)
    sim.run()
    assert whole.ends == ["reply"]
    assert mortal.ends == ["DeadlineExceeded"]


@pytest.mark.parametrize(
    ("queue", "own", "timeout", "ends_after"),
    [
        (QueueSettings(timeout_us=5_000), None, 0, 5),
        (QueueSettings(timeout_us=5_000), None, 3_000, 3),
        (QueueSettings(timeout_us=5_000), None, 8_000, 5),
        (QueueSettings(timeout_us=5_000, allow_timeout_override=False), None, 3_000, 5),
        (QueueSettings(timeout_us=5_000), PriorityQueueSettings(timeout_us=2_000), 0, 2),
        (
            QueueSettings(timeout_us=5_000),
            PriorityQueueSettings(allow_timeout_override=False),
            3_000,
            5,
        ),
        (
            QueueSettings(timeout_us=5_000, timeout_action="delay"),
            PriorityQueueSettings(timeout_action="reject"),
            3_000,
            3,
        ),
        (QueueSettings(), PriorityQueueSettings(timeout_us=4_000), 0, 4),
        (QueueSettings(), None, 3_000, 3),
        (QueueSettings(allow_timeout_override=False), None, 3_000, 3),
        (QueueSettings(timeout_us=5_000), PriorityQueueSettings(timeout_us=0), 0, None),
        (QueueSettings(timeout_us=5_000), PriorityQueueSettings(timeout_action="delay"), 0, None),
    ],
)
def test_time_limits_of_queue_and_request(
    queue: QueueSettings, own: PriorityQueueSettings | None, timeout: int, ends_after: int | None
) -> None:
    levels = {} if own is None else {2: own}
    sim = busy(BatchingSettings(priority_levels=2, queue=queue, priority_queues=levels))
    call = sim.arrive(priority=2, timeout_us=timeout)
    sim.run()
    if ends_after is None:
        assert call.ends == ["reply"]
    else:
        assert call.ends == ["DeadlineExceeded"]
        assert call.ended_at == pytest.approx(1000 + ends_after * MS, abs=2 * TICK)


# --- when batches close


def test_batches_say_why_they_were_closed() -> None:
    sim = Simulation(
        BatchingSettings(max_delay_us=5_000, preferred_sizes=(2,)), max_rows=4, instances=1
    )
    sim.arrive(1)
    sim.run()
    assert sim.runner.log[-1].started == pytest.approx(1000.005, abs=2 * TICK)
    start = sim.clock.time
    for _ in range(3):
        sim.arrive(1)
    sim.run()
    assert sim.runner.log[-2].started == start
    assert sim.runner.log[-2].rows == 2
    for _ in range(5):
        sim.arrive(1)
    sim.run()
    assert sim.stats.closed == {"delay": 3, "preferred": 1, "full": 1}


def test_a_batch_grows_while_the_runtime_is_busy() -> None:
    sim = Simulation(max_rows=64)
    for at in range(20):
        sim.at(at * MS, lambda: sim.arrive())
    sim.run()
    assert [batch.rows for batch in sim.runner.log] == [1, 10, 9]


class Scaled(AddOne):
    parameters_matter = True


def test_parameters_that_matter_keep_batches_apart() -> None:
    values: list[Any] = [None, {"k": 1}, {"k": True}, {"k": 1.0}, {"k": "1"}, {"j": 1}]
    sim = Simulation(max_rows=64, model=Scaled())
    for value in values * 2:
        sim.arrive(parameters=value)
    # What is meant for the gateway does not part anybody.
    sim.arrive(parameters={"timeout": 10**7, "priority": 1})
    sim.run()
    given_to_model = sim.model.parameters  # type: ignore[attr-defined]
    assert len(given_to_model) == len(values)
    assert [repr(each) for each in given_to_model] == [repr(each or {}) for each in values]
    plain = Simulation(max_rows=64)
    for value in values:
        plain.arrive(parameters=value)
    plain.run()
    assert len(plain.runner.log) == 1
    assert plain.model.parameters == [{}]  # type: ignore[attr-defined]


def test_many_signatures_are_forgotten_when_idle() -> None:
    sim = Simulation()
    for width in range(1, 300):
        sim.arrive(1, width)
        sim.run()
    assert len(sim.batcher._lines) <= 257


def test_nobody_is_chosen_for_a_call_that_has_just_expired() -> None:
    sim = Simulation(max_rows=2)
    sim.arrive(1, 1)
    sim.clock.settle()
    first = sim.arrive(1, 2)
    sim.at(1 * MS, lambda: sim.arrive(1, 1))
    # Due at the very moment at which the runtime is free again, and most urgent.
    late = sim.arrive(1, 1, deadline=10 * MS)
    sim.run()
    later = sim.calls[-1]
    assert late.ends == ["DeadlineExceeded"]
    assert (first.ended_at or 0) < (later.ended_at or 0)
