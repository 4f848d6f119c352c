"""One change at a time, those that go ahead of one that waits, and what comes of loads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.control.outcome import load_now
from gateway.control.starts import Starts
from gateway.control.turns import DOCUMENT, EVERYTHING, TRAFFIC, Turns
from gateway.errors import Conflict, Draining, ModelNotReady
from gateway.lifecycle.model import DEFAULT, ManagedModel
from gateway.lifecycle.states import Record, State
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredModel, AspiredVersion


class Load:
    """A change that waits for `loaded` beside others."""

    def __init__(self, turns: Turns, touches: frozenset[str] = frozenset({DOCUMENT})) -> None:
        self.turns = turns
        self.touches = touches
        self.loaded = asyncio.Event()
        self.waits = asyncio.Event()
        self.fails = False
        self.undone = 0
        self.stored = False
        self.task = asyncio.create_task(turns.one("m", self.work, patient=True))

    async def work(self) -> None:
        await self.turns.beside("m", "load", self.load(), self.undo, touches=self.touches)
        self.stored = True

    async def load(self) -> None:
        self.waits.set()
        await self.loaded.wait()
        if self.fails:
            raise ValueError("it is broken")

    def undo(self) -> None:
        self.undone += 1


def run(test: Callable[[Turns], Awaitable[None]]) -> None:
    async def main() -> None:
        turns = Turns()
        await test(turns)
        await turns.close()
        assert turns._lines == {}

    asyncio.run(asyncio.wait_for(main(), 60))


def change(turns: Turns, name: str, touches: frozenset[str]) -> Callable[[], Awaitable[str]]:
    async def work() -> str:
        turns.go_ahead("m", name, touches)
        return name

    return work


def test_a_change_that_touches_the_same_ends_a_load_that_waits() -> None:
    async def test(turns: Turns) -> None:
        load = Load(turns)
        await load.waits.wait()
        assert await turns.one("m", change(turns, "pause", EVERYTHING)) == "pause"
        assert load.undone == 1
        with pytest.raises(Conflict, match="the load of 'm' is given up: 'pause' came before"):
            await load.task
        assert (load.undone, load.stored) == (1, False)

    run(test)


def test_a_split_goes_beside_a_load_that_waits() -> None:
    async def test(turns: Turns) -> None:
        load = Load(turns)
        await load.waits.wait()
        await turns.one("m", change(turns, "promote", frozenset({TRAFFIC})))
        load.loaded.set()
        await load.task
        assert (load.undone, load.stored) == (0, True)

    run(test)


def test_loads_wait_for_each_other_and_one_that_fails_is_undone() -> None:
    async def test(turns: Turns) -> None:
        first = Load(turns)
        await first.waits.wait()
        second = Load(turns)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not second.waits.is_set()
        first.fails = True
        first.loaded.set()
        with pytest.raises(ValueError, match="broken"):
            await first.task
        await second.waits.wait()
        second.loaded.set()
        await second.task
        assert (first.undone, first.stored, second.undone, second.stored) == (1, False, 0, True)

    run(test)


def test_a_change_goes_on_without_its_caller() -> None:
    async def test(turns: Turns) -> None:
        load = Load(turns)
        await load.waits.wait()
        load.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load.task
        load.loaded.set()
        await turns.one("m", change(turns, "labels", frozenset({TRAFFIC})), patient=True)
        assert load.stored

    run(test)


def test_whoever_waits_at_the_end_hears_that_the_gateway_goes() -> None:
    async def test(turns: Turns) -> None:
        load = Load(turns)
        await load.waits.wait()
        patient = asyncio.create_task(
            turns.one("m", change(turns, "load", EVERYTHING), patient=True)
        )
        await asyncio.sleep(0)
        await turns.close()
        for task in (load.task, patient):
            with pytest.raises(Draining):
                await task
        assert (load.undone, load.stored) == (1, False)
        with pytest.raises(Draining):
            await turns.one("m", change(turns, "pause", EVERYTHING))

    run(test)


# --- what comes of loads


class Models:
    """A manager of one model that is told what happens."""

    def __init__(self, *versions: str, on_demand: bool = False) -> None:
        self.on_change: list[Callable[[str], object]] = []
        made = {v: AspiredVersion(v, Path(v), v) for v in versions}
        settings = ModelSettings(on_demand=on_demand)
        self.model = ManagedModel(AspiredModel("m", made, settings, on_disk=versions))
        self.models = {"m": self.model}
        self.asked: list[Any] = []

    def load_now(self, name: str, versions: Any = None) -> None:
        self.asked.append(versions)
        if self.model.on_demand:
            self.model.demanded.update((DEFAULT,) if versions is None else versions)

    def record(self, version: str, state: State, cause: str = "") -> Record:
        record = Record(self.model.aspired.versions[version])
        record.attempts = int(state == State.FAILED)
        record.move(state, cause)
        self.model.records.append(record)
        return record

    def tell(self) -> None:
        for listener in list(self.on_change):
            listener("m")


def outcome(models: Models, versions: Any, then: Callable[[], object], seconds: float = 60) -> str:
    async def main() -> str:
        manager: Any = models
        waiting = asyncio.create_task(load_now(manager, "m", versions, seconds))
        while not models.on_change and not waiting.done():
            await asyncio.sleep(0)
        then()
        why = await waiting
        assert models.on_change == []
        return why

    return asyncio.run(main())


@pytest.mark.parametrize("versions", [None, ("2",)])
def test_a_load_on_demand_that_fails_is_seen_at_once(versions: Any) -> None:
    models = Models("1", "2", on_demand=True)

    def then() -> None:
        models.record("2", State.FAILED, "it is broken")
        models.tell()
        models.model.demanded.clear()  # until somebody asks again

    assert outcome(models, versions, then) == "version 2: it is broken"


def test_what_is_put_away_again_at_once_was_ready() -> None:
    models = Models("1", "2", on_demand=True)

    def then() -> None:
        record = models.record("2", State.READY)
        models.tell()
        record.move(State.DRAINING)
        models.model.demanded.clear()

    assert outcome(models, None, then) == ""


def test_a_failure_of_before_is_not_one_of_this_load() -> None:
    models = Models("1", "2")
    models.record("1", State.READY)
    old = models.record("2", State.FAILED, "then")

    def then() -> None:
        models.model.records.remove(old)
        models.record("2", State.READY)

    assert outcome(models, None, then) == ""


def test_nothing_to_load_is_no_success_and_slow_loads_are_given_up() -> None:
    assert outcome(Models(), None, lambda: None) == "there is no version to load"
    with pytest.raises(ModelNotReady, match=r"after 0\.01 s \(control\.load_seconds\)"):
        outcome(Models("1"), None, lambda: None, 0.01)


# --- starts


def test_a_model_that_comes_back_starts_anew() -> None:
    async def main() -> None:
        models: Any = Models("1")
        starts = Starts(models)
        models.record("1", State.READY)
        models.tell()
        await asyncio.sleep(0)
        settled = starts.of("m").settled
        assert starts._settled == {"m": settled}
        models.model.records.clear()
        del models.models["m"]
        models.tell()
        await asyncio.sleep(0)
        assert starts._settled == {}
        models.models["m"] = SimpleNamespace(settled=False, records=[])
        models.tell()
        assert starts.of("m").settled > settled  # what answers now is its start

    asyncio.run(main())
