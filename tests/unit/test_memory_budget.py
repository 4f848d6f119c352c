"""The memory budget's decisions, and the line of loads that wait for some."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelLoadError
from gateway.lifecycle.budget import Evict, Fits, Holding, Never, Stay, Sums, Wait, decide
from gateway.lifecycle.memory import LOOK_AHEAD, MOST_PASSED, Memory
from gateway.lifecycle.resident import own_share, resident
from gateway.lifecycle.states import Record
from gateway.registries.base import AspiredVersion
from tests.support.gateway import ROOT
from tests.support.lifecycle import MIB, World, aspired


def holding(key: str, size: int, stay: Stay, last_used: float = 0.0) -> Holding:
    return Holding(key, size, stay, last_used)


@pytest.mark.parametrize(
    ("need", "held", "verdict"),
    [
        (100, [], Fits()),
        (101, [], Never(0)),
        (50, [holding("a", 60, Stay.LASTING)], Never(60)),
        (50, [holding("a", 60, Stay.LEAVING)], Wait(sure=True)),
        (50, [holding("a", 60, Stay.BUSY)], Wait(sure=False)),
        (50, [holding("a", 60, Stay.IDLE)], Evict(("a",))),
        (
            50,
            [holding("a", 30, Stay.IDLE, 2), holding("b", 30, Stay.IDLE, 1)],
            Evict(("b",)),
        ),
        # The older one need not go when the newer one has to.
        (
            50,
            [holding("a", 10, Stay.IDLE, 1), holding("b", 80, Stay.IDLE, 2)],
            Evict(("b",)),
        ),
        (
            50,
            [holding("a", 30, Stay.IDLE), holding("b", 30, Stay.LEAVING)],
            Wait(sure=True),
        ),
    ],
)
def test_decisions(need: int, held: list[Holding], verdict: object) -> None:
    assert decide(need, 100, Sums(held)) == verdict


@given(
    need=st.integers(0, 120),
    held=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from(Stay), st.integers(0, 5)), max_size=6
    ),
)
def test_what_is_decided_makes_room(need: int, held: list[tuple[int, Stay, int]]) -> None:
    holdings = [Holding(n, size, stay, used) for n, (size, stay, used) in enumerate(held)]
    total = sum(each.size for each in holdings)
    verdict = decide(need, 100, Sums(holdings))
    leaving = sum(each.size for each in holdings if each.stay is Stay.LEAVING)
    match verdict:
        case Fits():
            assert need + total <= 100
        case Evict(keys):
            gone = [each for each in holdings if each.key in keys]
            assert all(each.stay is Stay.IDLE for each in gone)
            freed = [each.size for each in gone]
            assert need + total - leaving - sum(freed) <= 100
            # No more than needed.
            assert all(need + total - leaving - sum(freed) + size > 100 for size in freed)
        case Wait(sure=sure):
            assert need + total > 100
            assert sure == (need + total - leaving <= 100)
        case Never(lasting):
            assert need + lasting > 100


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


class Line:
    """A `Memory` over records whose stay is set by hand."""

    def __init__(self, budget: int, patience: float = 100.0) -> None:
        self.stays: dict[Record, Stay] = {}
        self.evicted: list[str] = []
        self.now = 0.0
        self.looks = 0
        self.memory = Memory(
            budget * MIB,
            patience,
            self.look,
            self.evict,
            lambda: self.now,
        )

    def look(self, record: Record, size: int, asking: Record | None) -> Holding:
        self.looks += 1
        return Holding(record, size, self.stays[record])

    def evict(self, record: Record) -> int:
        self.evicted.append(record.version)
        self.stays[record] = Stay.LEAVING
        return 1

    def record(self, version: str, stay: Stay = Stay.BUSY) -> Record:
        made = Record(AspiredVersion(version, Path(version), "a"), f"model-{version}")
        self.stays[made] = stay
        return made

    async def load(self, version: str, size: int, stay: Stay = Stay.BUSY) -> Record:
        made = self.record(version, stay)
        await self.memory.reserve(made, size * MIB)
        return made

    def start(self, version: str, size: int) -> asyncio.Task[Record]:
        return asyncio.get_running_loop().create_task(self.load(version, size))


def test_small_loads_pass_a_large_one_that_waits_for_models_in_use_but_not_for_ever() -> None:
    async def test() -> None:
        line = Line(100)
        busy = await line.load("busy", 50)
        large = line.start("large", 90)
        await asyncio.sleep(0)
        passed = 0
        for n in range(MOST_PASSED + 3):
            small = line.start(f"small-{n}", 5)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if not small.done():
                break
            line.memory.release(small.result())
            passed += 1
        assert passed == MOST_PASSED
        assert not large.done()
        line.memory.release(busy)
        await large
        line.memory.release(large.result())
        await small

    run(test)


def test_memory_that_is_made_free_for_one_is_not_taken_by_those_behind_it() -> None:
    async def test() -> None:
        line = Line(100)
        idle = await line.load("idle", 60, Stay.IDLE)
        large = line.start("large", 90)
        await asyncio.sleep(0)
        assert line.evicted == ["idle"]
        small = line.start("small", 20)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not small.done() and not large.done()
        line.memory.release(idle)
        record = await large
        assert not small.done()
        line.memory.release(record)
        await small

    run(test)


def test_nobody_waits_for_ever() -> None:
    async def test() -> None:
        line = Line(100, patience=5.0)
        await line.load("busy", 60)
        large = line.start("large", 90)
        await asyncio.sleep(0)
        line.now = 6.0
        with pytest.raises(ModelLoadError, match=r"waited 5 s .* 90 MiB .* 60 MiB of the 100 MiB"):
            await large
        assert line.memory.waiting == 0

    run(test)


def test_what_can_never_fit_fails_at_once_with_the_numbers() -> None:
    async def test() -> None:
        line = Line(100)
        with pytest.raises(
            ModelLoadError, match=r"about 120 MiB .* is 100: set it to at least 120"
        ):
            await line.load("1", 120)
        await line.load("2", 60, Stay.LASTING)
        with pytest.raises(ModelLoadError, match="60 MiB are taken for good: raise it to 110"):
            await line.load("3", 50)

    run(test)


def test_one_that_leaves_the_line_lets_those_behind_it_go() -> None:
    async def test() -> None:
        line = Line(100)
        await line.load("leaving", 30, Stay.LEAVING)
        first, second = line.start("first", 80), line.start("second", 60)
        await asyncio.sleep(0)
        assert not first.done() and not second.done()
        first.cancel()
        await second
        assert line.memory.waiting == 0

    run(test)


def test_more_than_was_thought_makes_the_idle_go() -> None:
    async def test() -> None:
        line = Line(100)
        await line.load("idle", 50, Stay.IDLE)
        grown = await line.load("grown", 50)
        line.memory.settle(grown, 60 * MIB)
        assert line.evicted == ["idle"]

    run(test)


def test_a_long_line_costs_no_more_than_what_is_held() -> None:
    async def test() -> None:
        line = Line(500)
        held = [await line.load(f"held-{n}", 10) for n in range(50)]
        waiting = []
        for n in range(200):
            before = line.looks
            waiting.append(line.start(f"waiting-{n}", 10))
            await asyncio.sleep(0)
            assert line.looks - before <= 2 * len(held)
        before = line.looks
        line.memory.move()
        assert line.looks - before <= 2 * len(held)
        for n, record in enumerate(held):  # and they all get their turn, in the order they came
            line.memory.release(record)
            await waiting[n]
        assert sum(task.done() for task in waiting) == len(held)
        assert line.memory.used == 500 * MIB
        for task in waiting[len(held) :]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert line.memory.waiting == 0

    run(test)


def test_those_far_behind_in_the_line_still_fail_in_time_and_when_they_can_never_fit() -> None:
    async def test() -> None:
        line = Line(100, patience=5.0)
        await line.load("busy", 60)
        waiting = [line.start(f"waiting-{n}", 90) for n in range(3 * LOOK_AHEAD)]
        await asyncio.sleep(0)
        with pytest.raises(ModelLoadError, match="set it to at least 120"):
            await line.load("never", 120)
        line.now = 6.0
        line.memory.move()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all("waited 5 s" in str(task.exception()) for task in waiting)

    run(test)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.sampled_from(Stay)), max_size=8),
    needs=st.lists(st.integers(1, 120), min_size=1, max_size=30),
)
def test_the_budget_holds_and_the_sums_are_right(
    sizes: list[tuple[int, Stay]], needs: list[int]
) -> None:
    async def test() -> None:
        line = Line(100)
        for n, (size, stay) in enumerate(sizes):
            if line.memory.used // MIB + size <= 100:
                await line.load(f"held-{n}", size, stay)
        tasks = [line.start(f"new-{n}", need) for n, need in enumerate(needs)]
        for _ in range(4):
            await asyncio.sleep(0)
            assert line.memory.used == sum(line.memory.held.values()) <= 100 * MIB
            gone = [r for r in line.memory.held if line.stays[r] is Stay.LEAVING]
            for record in gone:
                line.memory.release(record)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert line.memory.waiting == 0
        assert line.memory.used == sum(line.memory.held.values())

    run(test)


# --- with the whole lifecycle


def test_a_swap_that_does_not_fit_twice_keeps_the_old_version_and_says_what_to_set() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            w.loader.sizes = {"m": 60}
            w.apply(aspired("m", on_demand=False, memory_mb=60))
            await w.until(lambda: w.loaded() == {"m/1"})
            w.apply(aspired("m", "2", on_demand=False, memory_mb=60))
            await w.until(lambda: "m/2" in w.manager.failed())
            cause = w.manager.failed()["m/2"]
            assert "60 MiB by version 1, which stays until this one is ready" in cause
            assert "lifecycle.policy to resource" in cause and "to 120" in cause
            assert await w.answer(w.ask("m")) == "1"

    run(test)


def test_resource_first_makes_the_same_swap() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100, policy="resource") as w:
            w.apply(aspired("m", on_demand=False, memory_mb=60))
            await w.until(lambda: w.loaded() == {"m/1"})
            w.apply(aspired("m", "2", on_demand=False, memory_mb=60))
            await w.until(lambda: w.loaded() == {"m/2"})
            assert await w.answer(w.ask("m")) == "2"

    run(test)


def test_the_least_recently_used_goes_and_comes_back() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            w.apply(*(aspired(name, memory_mb=40) for name in "abc"))
            for name in "ab":
                assert await w.answer(w.ask(name)) == "1"
                for servable in w.loader.servables:
                    if servable.name == name:  # later than whole seconds
                        servable.stats.last_inference = (2**41) + ord(name)
            assert await w.answer(w.ask("c")) == "1"
            await w.until(lambda: w.loaded() == {"b/1", "c/1"})
            assert w.manager.memory.evictions == 1
            assert await w.answer(w.ask("a")) == "1"

    run(test)


def test_what_has_calls_is_not_evicted() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            w.apply(*(aspired(name, memory_mb=70) for name in "ab"))
            first = w.ask("a")
            await w.until(lambda: w.loader.servables and not w.loader.servables[0].idle)
            second = w.ask("b")
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert w.loaded() == {"a/1"}
            (record,) = w.manager.models["b"].records
            assert "waiting for 70 MiB" in record.progress
            w.loader.servables[0].dispatcher.finish()
            assert first.served_by == "1"
            assert await w.answer(second) == "1"
            assert w.loaded() == {"b/1"}

    run(test)


def test_a_request_that_comes_during_eviction_waits_for_the_reload() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            w.apply(*(aspired(name, memory_mb=70) for name in "ab"))
            assert await w.answer(w.ask("a")) == "1"
            closing, go_on = threading.Event(), threading.Event()
            model: Any = w.loader.servables[0]
            close = model.close

            def slowly() -> None:
                closing.set()
                assert go_on.wait(30)
                close()

            model.close = slowly
            first = w.ask("b")
            await w.until(closing.is_set)
            second = w.ask("a")
            go_on.set()
            assert {await w.answer(first), await w.answer(second)} == {"1"}

    run(test)


def test_two_splits_that_are_half_loaded_do_not_wait_for_each_other() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            halves = [aspired(name, "1", memory_mb=40) for name in "ab"]
            w.apply(*halves)
            for name in "ab":
                assert await w.answer(w.ask(name)) == "1"
            assert w.loaded() == {"a/1", "b/1"}
            # Each becomes a split, whose other half has no room beside both.
            w.apply(*(aspired(n, "1", "2", memory_mb=40, weights={"1": 1, "2": 1}) for n in "ab"))
            await w.until(lambda: w.loaded() == {"a/1", "a/2"})
            assert w.manager.failed() == {}
            # The other one was not forgotten: it comes back when somebody asks.
            assert await w.answer(w.ask("b")) in ("1", "2")
            await w.until(lambda: w.loaded() == {"b/1", "b/2"})
            assert w.manager.memory.waiting == 0

    run(test)


def test_who_waits_for_what_had_to_make_room_is_answered_all_the_same() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            split = {"1": 1.0, "2": 9.0}  # version 2 is the stable one
            w.apply(*(aspired(n, "1", "2", memory_mb=40, weights=split) for n in "ab"))
            for name in "ab":
                assert await w.answer(w.ask(name, "1")) == "1"
            assert w.loaded() == {"a/1", "b/1"}
            calls = [w.ask(name) for name in "ab"]
            for call in calls:
                assert await w.answer(call) in ("1", "2"), call.error
            assert w.manager.demand.waiting == 0

    run(test)


@pytest.mark.parametrize(("then", "expected"), [(70, 70), (0, 40)])
def test_memory_mb_takes_effect_on_what_is_loaded(then: int, expected: int) -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            w.apply(aspired("idle", memory_mb=40), aspired("m", on_demand=False, memory_mb=40))
            assert await w.answer(w.ask("idle")) == "1"
            await w.until(lambda: w.loaded() == {"idle/1", "m/1"})
            (record,) = w.manager.models["m"].records
            record.measured = 0  # as where others were loading at the same time
            w.apply(aspired("m", on_demand=False, memory_mb=then))
            assert w.manager.memory.held[record] == expected * MIB
            assert record.state == "ready"
            # 70 and 40 are too much: what is idle makes room.
            left = {"m/1"} if then else {"idle/1", "m/1"}
            await w.until(lambda: w.loaded() == left)
            assert w.manager.memory.evictions == (1 if then else 0)

    run(test)


def test_memory_mb_that_changes_during_a_load_counts_after_it() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            gate = w.loader.shut("m")
            w.apply(aspired("m", on_demand=False, memory_mb=40))
            await w.until(lambda: w.loader.loads == ["m/1"])
            w.apply(aspired("m", on_demand=False, memory_mb=20))
            gate.set()
            await w.until(lambda: w.loaded() == {"m/1"})
            assert list(w.manager.memory.held.values()) == [20 * MIB]

    run(test)


# --- the process


# In a process of its own: one that ran other tests has room for these blocks already.
GROWING = """
import os
import numpy as np
from gateway.lifecycle.resident import give_back, own_share, resident

before = resident()
blocks = [np.ones(100_000 // 8) for _ in range(600)]  # below what malloc would map apart
grown = resident() - before
share = own_share(os.getpid())
del blocks
give_back()
print(grown, share, resident() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_resident_memory_is_seen_and_comes_back() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", GROWING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    grown, share, left = map(int, ran.stdout.split())
    assert grown > 40 * MIB
    assert share > 40 * MIB
    assert left < 30 * MIB


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    assert resident(2**22 + 1) == 0
    assert own_share(2**22 + 1) == 0
