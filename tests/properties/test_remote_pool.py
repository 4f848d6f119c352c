"""Replicas and retries, whatever the order in which attempts begin and end."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtimes.remote.pool import (
    EJECTION,
    FAILURES,
    FIRST_PAUSE,
    FLOOR_RATE,
    FLOOR_SECONDS,
    MAX_EJECTION,
    MAX_PAUSE,
    PROBE_SECONDS,
    UNHEALTHY,
    Endpoint,
    Pool,
    RetryBudget,
    pause,
)

Replica = Endpoint[None]


class Now:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def pool_of(count: int, seed: int = 1) -> tuple[Pool[None], list[Replica], Now]:
    now = Now()
    pool: Pool[None] = Pool(now, Random(seed))
    replicas = [Replica(f"grpc://host:{n + 1}", None) for n in range(count)]
    pool.replace(replicas)
    return pool, replicas, now


def usable(replica: Replica, now: float) -> bool:
    """By the words of the documentation, not by the code."""
    if not replica.ready or replica.missed >= UNHEALTHY:
        return False
    probed = replica.probe and now - replica.probed < PROBE_SECONDS
    return not replica.until or (replica.until <= now and not probed)


class Replicas(RuleBasedStateMachine):
    """Attempts, failures, cancellations, health checks and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.replicas, self.now = pool_of(3)
        self.attempts: list[tuple[Replica, int]] = []

    @rule(avoid=st.sets(st.integers(0, 2), max_size=3))
    def begin(self, avoid: set[int]) -> None:
        avoided = [self.replicas[n] for n in avoid]
        chosen = self.pool.choose(avoided)
        assert chosen is not None, "there is always somebody to try"
        good = [each for each in self.replicas if usable(each, self.now.time)]
        others = [each for each in good if each not in avoided]
        assert self.pool.has_usable(avoided) == bool(others)
        if good:
            among = others or good
            assert chosen in among
            assert chosen.outstanding == min(each.outstanding for each in among)
        self.attempts.append((chosen, self.pool.started(chosen)))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), end=st.sampled_from(["answered", "failed", "dropped"]))
    def end(self, data: st.DataObject, end: str) -> None:
        which = data.draw(st.integers(0, len(self.attempts) - 1))
        replica, epoch = self.attempts.pop(which)
        if end == "failed":
            self.pool.failed(replica, epoch, "broken")
        elif end == "answered":
            self.pool.answered(replica, epoch)
        else:
            self.pool.dropped(replica, epoch)

    @rule(which=st.integers(0, 2), state=st.sampled_from(["ready", "not ready", "silent"]))
    def health(self, which: int, state: str) -> None:
        replica = self.replicas[which]
        if state == "ready":
            self.pool.is_ready(replica)
            assert replica.healthy
        elif state == "silent":
            self.pool.no_answer(replica, "silent")
        else:
            self.pool.not_ready(replica, "loading")

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now.time += seconds

    @invariant()
    def outstanding_is_what_is_under_way(self) -> None:
        for replica in self.replicas:
            count = sum(each is replica for each, _ in self.attempts)
            assert replica.outstanding == count

    @invariant()
    def ejections_are_bounded(self) -> None:
        for replica in self.replicas:
            assert replica.until <= self.now.time + MAX_EJECTION

    def teardown(self) -> None:
        """However it came about: when all is well for a while, all are back."""
        for replica, epoch in self.attempts:
            self.pool.dropped(replica, epoch)
        for replica in self.replicas:
            self.pool.is_ready(replica)
        self.now.time += MAX_EJECTION
        for _ in self.replicas:
            chosen = self.pool.choose([r for r in self.replicas if not r.until])
            assert chosen is not None
            self.pool.answered(chosen, self.pool.started(chosen))
        for replica in self.replicas:
            assert replica.state(self.now.time) == "ready"
            assert (replica.outstanding, replica.until, replica.probe) == (0, 0.0, 0)


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def fail(pool: Pool[None], replica: Replica, times: int = 1) -> None:
    for _ in range(times):
        pool.failed(replica, pool.started(replica), "broken")


def test_failures_in_a_row_eject_and_one_request_brings_back() -> None:
    pool, (first, second), now = pool_of(2)
    fail(pool, first, FAILURES)
    assert first.state(now.time) == "ejected"
    assert all(pool.choose() is second for _ in range(20))
    now.time += EJECTION
    attempt = pool.started(second)
    assert pool.choose() is first, "its time is over, and it has least to do"
    probe = pool.started(first)
    pool.answered(second, attempt)
    pool.dropped(second, pool.started(second))
    assert all(pool.choose() is second for _ in range(20)), "one request alone finds out"
    pool.answered(first, probe)
    assert {pool.choose() for _ in range(50)} == {first, second}


def test_ejections_grow_while_it_is_no_better() -> None:
    pool, (first, _), now = pool_of(2)
    fail(pool, first, FAILURES)
    lengths = []
    for _ in range(10):
        lengths.append(first.until - now.time)
        now.time = first.until
        fail(pool, first)
    assert lengths[:4] == [EJECTION, 2 * EJECTION, 4 * EJECTION, 8 * EJECTION]
    assert lengths[-1] == MAX_EJECTION


def test_failures_apart_do_not_eject() -> None:
    pool, (first, _), now = pool_of(2)
    for _ in range(10):
        fail(pool, first, FAILURES - 1)
        pool.answered(first, pool.started(first))
    assert first.state(now.time) == "ready"


def test_what_began_before_the_ejection_does_not_end_it() -> None:
    pool, (first, _), now = pool_of(2)
    old = pool.started(first)
    fail(pool, first, FAILURES)
    pool.answered(first, old)
    assert first.state(now.time) == "ejected"


def test_when_all_are_ejected_the_first_to_come_back_is_tried() -> None:
    pool, (first, second), now = pool_of(2)
    fail(pool, first, FAILURES)
    now.time += 0.25
    fail(pool, second, FAILURES)
    assert pool.choose() is first
    # An answer to such an attempt is as good as any.
    pool.answered(first, pool.started(first))
    assert first.state(now.time) == "ready"


def test_a_health_check_brings_an_ejected_one_back_early() -> None:
    pool, (first, second), _ = pool_of(2)
    fail(pool, first, FAILURES)
    pool.is_ready(first)
    busy = pool.started(second)
    assert pool.choose() is first
    pool.answered(second, busy)


def test_what_is_not_ready_gets_nothing_while_another_is() -> None:
    pool, (first, second), _ = pool_of(2)
    pool.not_ready(first, "loading")
    assert all(pool.choose([second]) is second for _ in range(20))
    pool.is_ready(first)
    assert pool.choose([second]) is first


def test_one_health_check_without_an_answer_is_forgiven() -> None:
    pool, (first, _), now = pool_of(2)
    pool.no_answer(first, "late")
    assert first.state(now.time) == "ready"
    pool.no_answer(first, "late")
    assert first.state(now.time) == "unreachable"


def test_no_replicas() -> None:
    pool, _, _ = pool_of(0)
    assert pool.choose() is None
    assert not pool.has_usable(())


@given(
    share=st.floats(0, 1),
    events=st.lists(st.one_of(st.just("request"), st.just("retry"), st.floats(0, 5)), max_size=400),
)
def test_never_more_retries_than_the_budget(share: float, events: list[str | float]) -> None:
    now = Now()
    started = now.time
    budget = RetryBudget(now, share)
    requests = retries = 0
    for event in events:
        if event == "request":
            budget.request()
            requests += 1
        elif event == "retry":
            retries += budget.take()
        else:
            assert isinstance(event, float)
            now.time += event
        floor = FLOOR_RATE * (FLOOR_SECONDS + now.time - started)
        assert retries <= share * requests + floor + 1e-6


def test_a_spent_budget_fills_up_again() -> None:
    now = Now()
    budget = RetryBudget(now, 0.5)
    while budget.take():
        pass
    budget.request()
    assert not budget.take()
    budget.request()
    assert budget.take()
    assert not budget.take()
    now.time += 1 / FLOOR_RATE + 1e-9
    assert budget.take()


@given(retry=st.integers(0, 10_000), seed=st.integers(0, 2**32))
def test_pauses_are_jittered_and_bounded(retry: int, seed: int) -> None:
    seconds = pause(retry, Random(seed))
    assert 0 <= seconds <= min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(retry, 60))


def test_a_probe_without_an_end_does_not_keep_a_replica_out() -> None:
    pool, (first, second), now = pool_of(2)
    fail(pool, first, FAILURES)
    now.time += EJECTION
    probe = pool.started(first)
    busy = [pool.started(second) for _ in range(3)]
    assert pool.choose() is second, "one request finds out"
    now.time += PROBE_SECONDS
    assert pool.choose() is first, "that one takes too long to wait for it"
    another = pool.started(first)
    assert pool.choose() is second
    pool.answered(first, probe)  # the first one counts as well
    assert first.state(now.time) == "ready" and first.until == 0.0
    pool.dropped(first, another)
    for each in busy:
        pool.dropped(second, each)
    assert first.outstanding == second.outstanding == 0


def test_the_first_answer_of_a_stream_brings_back() -> None:
    pool, (first, _), now = pool_of(2)
    before = pool.started(first)
    fail(pool, first, FAILURES)
    now.time += EJECTION
    pool.begun(first, before)
    assert first.until, "what began before the ejection says nothing"
    probe = pool.started(first)
    pool.begun(first, probe)
    assert (first.until, first.failures, first.outstanding) == (0.0, 0, 2)
    pool.failed(first, probe, "broken")
    assert first.failures == 1


def test_streams_that_break_in_the_middle_eject() -> None:
    pool, (first, _), now = pool_of(2)
    for _ in range(FAILURES):
        attempt = pool.started(first)
        pool.begun(first, attempt)
        pool.failed(first, attempt, "broken")
    assert first.state(now.time) == "ejected"
