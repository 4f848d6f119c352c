"""Loads and what becomes of them: turns, threads, outcomes, and what they held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.lifecycle.states import State
from gateway.routing import Route, Router
from gateway.telemetry.lifecycle import lifecycle_metrics
from gateway.tensors import DATATYPES, TensorSpec
from gateway.threads import Threads
from tests.support.lifecycle import PATIENCE, World, aspired


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


# --- a model that asks for another one while it is loading


def test_an_inner_load_is_estimated_while_the_outer_one_has_the_only_thread() -> None:
    async def test() -> None:
        async with World(load_threads=1, memory_budget_mb=100) as w:
            gate = w.loader.shut("outer")
            w.apply(aspired("outer"), aspired("inner"))
            outer = w.ask("outer")
            await w.until(lambda: w.loader.loads == ["outer/1"])
            assert w.manager.on_demand.want("inner", "", urgent=True) is None
            await w.until(lambda: w.loaded() == {"inner/1"})
            gate.set()
            assert await w.answer(outer) == "1"

    run(test)


@pytest.mark.parametrize("budget", [0, 100])
def test_a_load_in_the_queue_is_hurried_when_the_outer_one_asks_for_it(budget: int) -> None:
    async def test() -> None:
        async with World(load_threads=1, memory_budget_mb=budget) as w:
            gate = w.loader.shut("outer")
            w.apply(aspired("outer"), aspired("inner"), aspired("other"))
            outer = w.ask("outer")
            await w.until(lambda: w.loader.loads == ["outer/1"])
            w.ask("inner")  # in the queue, behind `outer`
            other = w.ask("other")
            await asyncio.sleep(0.02)
            assert w.manager.on_demand.want("inner", "", urgent=True) is None
            await w.until(lambda: w.loaded() == {"inner/1"})
            assert not other.ends
            gate.set()
            assert await w.answer(outer) == await w.answer(other) == "1"

    run(test)


def test_what_is_loaded_instead_of_a_broken_inner_version_does_not_wait_either() -> None:
    async def test() -> None:
        async with World(load_threads=1) as w:
            gate = w.loader.shut("outer")
            w.apply(aspired("outer"), aspired("inner", "2", files="broken", stand_ins=("1",)))
            outer = w.ask("outer")
            await w.until(lambda: w.loader.loads == ["outer/1"])
            assert w.manager.on_demand.want("inner", "", urgent=True) is None
            await w.until(lambda: w.loaded() == {"inner/1"})
            gate.set()
            assert await w.answer(outer) == "1"

    run(test)


def test_hurried_work_runs_once() -> None:
    threads = Threads(1, "test")
    gate = threading.Event()
    ran: list[str] = []
    first = threads.submit(lambda: gate.wait(PATIENCE))
    second = threads.submit(lambda: ran.append("second"))
    third = threads.submit(lambda: ran.append("third"))
    threads.hurry(second)
    second.result(PATIENCE)
    threads.hurry(second)  # it has ended: nothing to do
    threads.hurry(first)
    assert ran == ["second"] and not third.done()
    gate.set()
    third.result(PATIENCE)
    assert ran == ["second", "third"]


# --- outcomes of loads by hand


@pytest.mark.parametrize("on_demand", [False, True])
def test_who_loads_by_hand_hears_what_came_of_it(*, on_demand: bool) -> None:
    async def test() -> None:
        async with World() as w:
            w.apply(aspired("good", "1", "2", on_demand=on_demand), aspired("bad"))
            w.loader.broken.add("bad")
            heard = w.manager.load_now("bad", ["1"])
            assert await heard["1"] == "bad/1 is broken"
            # What failed on demand is not asked for any more, and can be tried again at once.
            w.loader.broken.clear()
            assert await w.manager.load_now("bad", ["1"])["1"] == ""
            both = w.manager.load_now("good", ["1", "2"])
            assert [await both["1"], await both["2"]] == ["", ""]
            assert w.manager.load_now("nobody") == {}

    run(test)


def test_by_default_the_versions_that_requests_need_are_told_of() -> None:
    async def test() -> None:
        async with World() as w:
            w.apply(aspired("m", "1", "2", "3", weights={"1": 1, "3": 1}))
            heard = w.manager.load_now("m")
            assert heard.keys() == {"1", "3"}
            heard["3"].cancel()  # one who does not wait any more disturbs nobody
            again = w.manager.load_now("m")
            assert [await heard["1"], await again["1"], await again["3"]] == ["", "", ""]

    run(test)


def test_who_loads_by_hand_hears_that_it_is_gone() -> None:
    async def test() -> None:
        async with World() as w:
            w.loader.shut("m")
            w.apply(aspired("m", on_demand=False))
            heard = w.manager.load_now("m", ["1", "7"])
            assert await heard["7"] == "it is not wanted any more"
            w.apply(gone=("m",))
            assert await heard["1"] == "it is not wanted any more"
            w.apply(aspired("n"))
            w.loader.shut("n")
            left = w.manager.load_now("n")
            w.loader.gates["m"].set()
        assert await left["1"] == "the gateway is ending"

    run(test)


# --- fetching


class Downloads:
    """Tells how far it is until it is stopped."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.stopped = threading.Event()

    def fetch(self, origin: Any, told: Callable[[int, int], object]) -> Any:
        here = 0
        self.started.set()
        try:
            while True:
                here += 1000
                told(here, 10**12)
        finally:
            self.stopped.set()


def test_a_download_that_nobody_wants_any_more_is_stopped() -> None:
    async def test() -> None:
        fetcher = Downloads()
        async with World(fetcher) as w:
            made = aspired("m", on_demand=False)
            origin: Any = SimpleNamespace(uri="s3://m", folder="1")
            versions = {v: replace(each, origin=origin) for v, each in made.versions.items()}
            w.apply(replace(made, versions=versions))
            await w.until(fetcher.started.is_set)
            await w.until(lambda: sample(w, "sluice_fetches_running") == 1)
            w.apply(gone=("m",))
            await w.until(fetcher.stopped.is_set)
            await w.until(lambda: "m" not in w.manager.models)
            assert w.loader.loads == []
            assert sample(w, "sluice_fetches_running") == 0
            assert sample(w, "sluice_fetched_bytes_total") >= 1000

    run(test)


# --- closing


def test_a_model_that_was_loaded_for_nothing_is_not_closed_on_the_loop() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            threads: list[int] = []
            made: list[Any] = []
            load = w.loader.load

            def loading(*args: Any) -> Any:
                loaded: Any = load(*args)
                loaded.model.close = lambda: threads.append(threading.get_ident())
                made.append(loaded)
                return loaded

            w.loader.load = loading  # type: ignore[method-assign]

            def servable(*_: object) -> Any:
                raise RuntimeError("no dispatcher for that")

            w.loader.servable = servable  # type: ignore[method-assign]
            w.apply(aspired("m", on_demand=False))
            await w.until(lambda: threads and not w.manager.memory.held)
            assert threads[0] != threading.get_ident()
            assert "no dispatcher" in w.manager.failed()["m/1"]

    run(test)


def test_a_model_that_is_loaded_too_late_is_closed_and_not_on_the_loop() -> None:
    async def test() -> None:
        threads: list[int] = []
        async with World() as w:
            gate = w.loader.shut("m")
            load = w.loader.load

            def loading(*args: Any) -> Any:
                loaded: Any = load(*args)
                loaded.model.close = lambda: threads.append(threading.get_ident())
                return loaded

            w.loader.load = loading  # type: ignore[method-assign]
            w.apply(aspired("m", on_demand=False))
            await w.until(lambda: w.loader.loads == ["m/1"])
            closing = asyncio.create_task(w.manager.close())
            await asyncio.sleep(0.02)
            gate.set()
            await closing
            assert len(threads) == 1 and threads[0] != threading.get_ident()

    run(test)


def test_a_load_that_hangs_does_not_keep_the_lifecycle_from_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.lifecycle.load_runner.END_SECONDS", 0.05)

    async def test() -> None:
        w = World()
        gate = w.loader.shut("m")
        w.apply(aspired("m", on_demand=False))
        await w.until(lambda: w.loader.loads == ["m/1"])
        await w.manager.close()
        left = [t for t in threading.enumerate() if t.name.startswith("sluice-load")]
        assert left and all(thread.daemon for thread in left)
        gate.set()
        for thread in left:
            await asyncio.to_thread(thread.join, PATIENCE)

    run(test)


def test_the_files_of_a_broken_version_stay_until_it_is_closed() -> None:
    async def test() -> None:
        released: list[int] = []
        lease = SimpleNamespace(path=Path("here"), release=lambda: released.append(1))
        async with World(SimpleNamespace(fetch=lambda origin, told: lease)) as w:
            made = aspired("m", on_demand=False)
            origin: Any = SimpleNamespace(uri="s3://m", folder="1")
            versions = {v: replace(each, origin=origin) for v, each in made.versions.items()}
            w.apply(replace(made, versions=versions))
            await w.until(lambda: w.loaded() == {"m/1"})
            closing, go_on = threading.Event(), threading.Event()

            def close() -> None:
                closing.set()
                assert go_on.wait(PATIENCE)

            servable: Any = w.loader.servables[0]
            servable.close = close
            servable.dispatcher.on_broken("the accelerator is gone")
            assert w.manager.failed() == {"m/1": "the accelerator is gone"}
            await w.until(closing.is_set)
            await asyncio.sleep(0.02)
            assert not released
            go_on.set()
            await w.until(lambda: released)

    run(test)


# --- many models


def test_models_that_go_together_leave_the_table_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    withdrawn: list[int] = []
    withdraw = Router.withdraw

    def counted(self: Router[Any], *models: str) -> None:
        withdrawn.append(len(models))
        withdraw(self, *models)

    monkeypatch.setattr(Router, "withdraw", counted)

    async def test() -> None:
        async with World() as w:
            w.apply(*(aspired(f"m{n}") for n in range(50)), aspired("left"))
            w.apply(gone=tuple(f"m{n}" for n in range(50)))
            assert withdrawn == [50]
            assert w.router.table.keys() == {"left"}
            assert w.manager.models.keys() == {"left"}

    run(test)


def test_several_models_are_withdrawn_at_once() -> None:
    router: Router[str] = Router()
    router.publish_all(Route(name, {"1": name}) for name in "abc")
    router.withdraw("a", "c", "unknown")
    assert router.table.keys() == {"b"}


# --- metrics


def sample(w: World, name: str, **labels: str) -> float | None:
    for family in lifecycle_metrics(w.manager):
        for each in family.samples:
            if each.name == name and each.labels == labels:
                return float(each.value)
    return None


def test_loads_that_wait_and_versions_that_are_held_back_are_told() -> None:
    async def test() -> None:
        async with World(memory_budget_mb=100) as w:
            w.apply(aspired("a", memory_mb=70), aspired("b", memory_mb=70))
            w.ask("a")
            await w.until(lambda: w.loaded() == {"a/1"})
            w.ask("b")
            await w.until(lambda: sample(w, "sluice_loads_waiting_for_memory") == 1)
            w.finish()
            await w.until(lambda: w.loaded() == {"b/1"})
            assert sample(w, "sluice_loads_waiting_for_memory") == 0

            servable = w.loader.servable

            def differing(name: str, version: str, loaded: Any, settings: object) -> Any:
                found = servable(name, version, loaded, settings)
                spec = TensorSpec("x" if version == "1" else "z", DATATYPES["FP32"], (1,))
                found.contract = SimpleNamespace(inputs=(spec,), outputs=())
                return found

            w.loader.servable = differing  # type: ignore[method-assign]
            w.finish()
            w.apply(aspired("s", "1", "2", on_demand=False, weights={"1": 9, "2": 1}, memory_mb=5))
            await w.until(lambda: {"s/1", "s/2"} <= w.loaded())
            assert sample(w, "sluice_version_held_back", model="s", version="2") == 1
            assert sample(w, "sluice_version_held_back", model="s", version="1") is None
            states = {r.state for r in w.manager.models["s"].records}
            assert states == {State.READY}

    run(test)
