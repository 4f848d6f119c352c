"""The lifecycle's policy: what is done next, and that it ends where it should."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lifecycle.policy import Load, Unload, next_action, with_stand_in
from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredVersion

Policy = Literal["availability", "resource"]
BOTH = pytest.mark.parametrize("policy", ["availability", "resource"])


def wanted(version: str, files: str = "a") -> AspiredVersion:
    return AspiredVersion(version, Path(version), files)


def aspire(*versions: str, files: str = "a") -> dict[str, AspiredVersion]:
    return {version: wanted(version, files) for version in versions}


def record(version: str, state: State, files: str = "a", retry_at: float = 0.0) -> Record:
    made = Record(wanted(version, files))
    made.state = state
    made.retry_at = retry_at
    made.attempts = 1 if state == State.FAILED else 0
    return made


# --- one step


def test_the_newest_version_is_loaded_first() -> None:
    action = next_action(aspire("1", "2", "10"), [], 0.0)
    assert action == Load(wanted("10"))


def test_availability_loads_the_new_version_before_the_old_one_goes() -> None:
    old = record("1", State.READY)
    assert next_action(aspire("2"), [old], 0.0) == Load(wanted("2"))
    new = record("2", State.WARMING)
    assert next_action(aspire("2"), [old, new], 0.0) is None
    new.state = State.READY
    assert next_action(aspire("2"), [old, new], 0.0) == Unload(old)


def test_resource_unloads_the_old_version_and_waits_for_it() -> None:
    old = record("1", State.READY)
    assert next_action(aspire("2"), [old], 0.0, "resource") == Unload(old)
    old.state = State.DRAINING
    assert next_action(aspire("2"), [old], 0.0, "resource") is None
    assert next_action(aspire("2"), [], 0.0, "resource") == Load(wanted("2"))


def test_resource_waits_for_a_load_that_nobody_wants_any_more() -> None:
    old = record("1", State.LOADING)
    assert next_action(aspire("2"), [old], 0.0, "resource") is None


def test_a_broken_new_version_never_replaces_a_good_one() -> None:
    old = record("1", State.READY)
    broken = record("2", State.FAILED, retry_at=9.0)
    assert next_action(aspire("2"), [old, broken], 0.0) is None
    assert next_action(aspire("2"), [old, broken], 9.0) == Load(wanted("2"), broken)


def test_changed_files_load_beside_the_old_ones() -> None:
    old = record("1", State.READY, "a")
    changed = aspire("1", files="b")
    assert next_action(changed, [old], 0.0) == Load(changed["1"])
    new = record("1", State.FAILED, "b", retry_at=9.0)
    assert next_action(changed, [old, new], 0.0) is None
    new = record("1", State.READY, "b")
    assert next_action(changed, [old, new], 0.0) == Unload(old)


def test_a_repaired_version_is_loaded_at_once_and_its_failure_forgotten() -> None:
    broken = record("1", State.FAILED, "a", retry_at=99.0)
    repaired = aspire("1", files="b")
    assert next_action(repaired, [broken], 0.0) == Load(repaired["1"])
    assert next_action(repaired, [broken, record("1", State.LOADING, "b")], 0.0) == Unload(broken)


@BOTH
def test_a_removed_model_goes(policy: Policy) -> None:
    ready = record("1", State.READY)
    failed = record("2", State.FAILED)
    assert next_action({}, [ready], 0.0, policy) == Unload(ready)
    assert next_action({}, [failed], 0.0, policy) == Unload(failed)
    assert next_action({}, [record("1", State.LOADING)], 0.0, policy) is None


@BOTH
def test_what_waits_to_be_loaded_is_dropped_when_nobody_wants_it(policy: Policy) -> None:
    waiting = record("1", State.KNOWN)
    assert next_action({}, [waiting], 0.0, policy) == Unload(waiting)


def test_a_version_that_is_draining_is_loaded_anew_when_it_is_wanted_again() -> None:
    assert next_action(aspire("1"), [record("1", State.DRAINING)], 0.0) == Load(wanted("1"))


# --- stand-ins


def test_an_older_version_stands_in_while_nothing_aspired_can_be_loaded() -> None:
    aspired, spare = aspire("3"), {"2": wanted("2"), "1": wanted("1")}
    assert with_stand_in(aspired, spare, []) == aspired
    assert with_stand_in(aspired, spare, [record("3", State.LOADING)]) == aspired
    failed = record("3", State.FAILED)
    assert list(with_stand_in(aspired, spare, [failed])) == ["2", "3"]
    # While it is tried again the stand-in stays, whatever the policy.
    failed.state = State.LOADING
    assert list(with_stand_in(aspired, spare, [failed])) == ["2", "3"]
    worse = [failed, record("2", State.FAILED)]
    assert list(with_stand_in(aspired, spare, worse)) == ["1", "2", "3"]
    failed.state = State.READY
    assert with_stand_in(aspired, spare, worse) == aspired


def test_nothing_stands_in_for_one_of_several() -> None:
    records = [record("3", State.FAILED), record("2", State.READY)]
    aspired = aspire("2", "3")
    assert with_stand_in(aspired, aspire("1"), records) == aspired


def test_nothing_stands_in_while_the_old_files_still_serve() -> None:
    records = [record("3", State.READY, "old files"), record("3", State.FAILED)]
    assert with_stand_in(aspire("3"), aspire("2"), records) == aspire("3")


def test_a_failure_of_other_files_does_not_count() -> None:
    records = [record("3", State.FAILED, "old files")]
    assert with_stand_in(aspire("3"), aspire("2"), records) == aspire("3")


# --- any history


class Simulation:
    """One model's records under a policy; loads and drains end when the test says so."""

    def __init__(self, policy: Policy, broken: set[tuple[str, str]]) -> None:
        self.policy: Policy = policy
        self.broken = broken
        self.desired: dict[str, AspiredVersion] = {}
        self.records: list[Record] = []
        self.now = 0.0
        self.loads: list[tuple[str, str]] = []

    def want(self, desired: dict[str, AspiredVersion]) -> None:
        self.desired = desired
        self.act()

    def act(self) -> None:
        for _ in range(100):
            before = copy.copy(self.records)
            action = next_action(self.desired, self.records, self.now, self.policy)
            assert self.records == before
            assert action == next_action(self.desired, self.records, self.now, self.policy)
            if action is None:
                return
            self.do(action)
            self.check()
        raise AssertionError("the policy does not come to an end")

    def do(self, action: Load | Unload) -> None:
        if isinstance(action, Load):
            new = Record(action.aspired)
            if action.retry is not None:
                new.attempts = action.retry.attempts
                self.records.remove(action.retry)
            self.records.append(new)
            self.loads.append(key(new))
            return
        assert action.record.state in (State.KNOWN, State.READY, State.FAILED)
        if action.record.state == State.READY:
            self.check_unload(action.record)
            action.record.state = State.DRAINING
        else:
            self.records.remove(action.record)

    def check(self) -> None:
        alive = [key(r) for r in self.records if r.state != State.DRAINING]
        assert len(alive) == len(set(alive)), "the same files are loaded twice"

    def check_unload(self, gone: Record) -> None:
        ready = [r for r in self.records if r.state == State.READY and self.is_wanted(r)]
        assert not self.is_wanted(gone)
        if self.policy == "availability" and self.desired:
            assert ready, "the last version that could answer was taken away"
            if gone.version in self.desired:
                assert gone.version in {r.version for r in ready}

    def is_wanted(self, record: Record) -> bool:
        want = self.desired.get(record.version)
        return want is not None and want.fingerprint == record.aspired.fingerprint

    def pending(self) -> list[Record]:
        return [r for r in self.records if r.state not in (State.READY, State.FAILED)]

    def end(self, record: Record) -> None:
        """A load or a drain ends."""
        if record.state == State.DRAINING:
            self.records.remove(record)
        elif key(record) in self.broken:
            record.state = State.FAILED
            record.attempts += 1
            record.retry_at = self.now + 10
        else:
            record.state = State.READY
        self.act()


def key(record: Record) -> tuple[str, str]:
    return record.version, str(record.aspired.fingerprint)


VERSIONS = st.sampled_from(["1", "2", "3"])
FILES = st.sampled_from(["a", "b"])
DESIRED = st.dictionaries(VERSIONS, FILES)
STEPS = st.lists(
    st.one_of(
        DESIRED.map(lambda d: ("want", d)),
        st.integers(0, 5).map(lambda n: ("end", n)),
        st.sampled_from([0.5, 20.0]).map(lambda s: ("wait", s)),
    ),
    max_size=25,
)


def play(simulation: Simulation, steps: Iterable[tuple[str, object]]) -> None:
    for what, value in steps:
        if what == "want":
            assert isinstance(value, dict)
            simulation.want({v: wanted(v, value[v]) for v in sorted(value)})
        elif what == "wait":
            assert isinstance(value, float)
            simulation.now += value
            simulation.act()
        elif pending := simulation.pending():
            assert isinstance(value, int)
            record = pending[value % len(pending)]
            if record.state == State.KNOWN:
                record.state = State.LOADING
            else:
                simulation.end(record)


@given(
    policy=st.sampled_from(["availability", "resource"]),
    broken=st.sets(st.tuples(VERSIONS, FILES)),
    steps=STEPS,
)
def test_whatever_happens_it_settles_with_what_is_wanted(
    policy: Policy, broken: set[tuple[str, str]], steps: list[tuple[str, object]]
) -> None:
    simulation = Simulation(policy, broken)
    play(simulation, steps)
    for _ in range(100):
        pending = simulation.pending()
        if not pending:
            break
        simulation.end(pending[0])
    simulation.now += 0.0
    simulation.act()
    assert not simulation.pending()
    ready = {key(r) for r in simulation.records if r.state == State.READY}
    desired = {(v, str(a.fingerprint)) for v, a in simulation.desired.items()}
    assert desired - broken <= ready
    kept = ready - desired
    if kept:  # only for want of something better
        assert policy == "availability"
        assert not (desired - broken) or all(
            (version, files) in broken
            for version, files in desired
            if version in {v for v, _ in kept}
        )


@given(broken=st.sets(st.tuples(VERSIONS, FILES)), steps=STEPS, last=DESIRED)
def test_resource_never_holds_two_versions_in_place_of_one(
    broken: set[tuple[str, str]], steps: list[tuple[str, object]], last: dict[str, str]
) -> None:
    class Strict(Simulation):
        def do(self, action: Load | Unload) -> None:
            if isinstance(action, Load):
                other = [r for r in self.records if not self.is_wanted(r)]
                assert all(r.state in (State.FAILED, State.KNOWN) for r in other)
            super().do(action)

    play(Strict("resource", broken), [*steps, ("want", last)])


@given(files=FILES, count=st.integers(1, 5))
def test_nothing_is_loaded_again_while_nothing_changes(files: str, count: int) -> None:
    simulation = Simulation("availability", set())
    for _ in range(count):
        simulation.want(aspire("1", "2", files=files))
        for record in simulation.pending():
            simulation.end(record)
        simulation.now += 1000
    assert sorted(simulation.loads) == [("1", files), ("2", files)]


def test_failed_loads_are_tried_again_and_no_sooner_than_they_may() -> None:
    simulation = Simulation("availability", {("1", "a")})
    simulation.want(aspire("1"))
    simulation.end(simulation.records[0])
    simulation.now = 9.9
    simulation.act()
    assert len(simulation.loads) == 1
    simulation.now = 10.0
    simulation.act()
    assert len(simulation.loads) == 2
    assert simulation.records[0].attempts == 1
