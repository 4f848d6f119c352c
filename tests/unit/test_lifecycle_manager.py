"""The lifecycle's manager over made-up loads: what is published when, and what is told."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.config import LifecycleConfig
from gateway.errors import ModelLoadError, ModelNotReady, UnknownModel
from gateway.lifecycle import manager as manager_module
from gateway.lifecycle.loading import Loaded
from gateway.lifecycle.manager import Manager
from gateway.lifecycle.probe import Findings
from gateway.lifecycle.states import State
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredModel, AspiredVersion
from gateway.registries.traffic import Traffic
from gateway.routing import Router

PATIENCE = 20.0


class FakeModel:
    elsewhere = False

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class FakeServable:
    def __init__(self, label: str, model: FakeModel) -> None:
        self.label = label
        self.model = model
        self.idle = True
        self.dispatcher = SimpleNamespace(on_broken=None)
        self.stats = SimpleNamespace(last_inference=0)
        self.contract = SimpleNamespace(inputs=(), outputs=())

    def close(self) -> None:
        assert self.idle, "closed while a request held it"
        self.model.close()


class FakeLoader:
    """Loads at once, unless the version's gate is shut or it is broken."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.gates: dict[str, threading.Event] = {}
        self.loads: list[str] = []
        self.models: list[FakeModel] = []

    def shut(self, version: str) -> threading.Event:
        gate = self.gates[version] = threading.Event()
        return gate

    def load(self, name: str, aspired: AspiredVersion, settings: object, warming: Any) -> Loaded:
        label = f"{name}/{aspired.version}/{aspired.fingerprint}"
        self.loads.append(label)
        gate = self.gates.get(aspired.version)
        if gate is not None:
            assert gate.wait(PATIENCE)
        warming("fake")
        if aspired.version in self.broken or aspired.fingerprint == "broken":
            raise ModelLoadError(f"{label} is broken")
        model = FakeModel()
        self.models.append(model)
        return Loaded(model, "fake", Findings(0))  # type: ignore[arg-type]

    def servable(self, name: str, version: str, loaded: Loaded, settings: object) -> Any:
        model: Any = loaded.model
        return FakeServable(f"{name}/{version}", model)


class World:
    """A manager, what it loads with, and its routes."""

    def __init__(self, **config: Any) -> None:
        self.loader = FakeLoader()
        self.router: Router[Any] = Router()
        loader: Any = self.loader
        self.manager = Manager(loader, self.router, LifecycleConfig(**config))

    def apply(self, *models: AspiredModel, gone: tuple[str, ...] = ()) -> None:
        self.manager.apply(models, gone)

    async def settled(self) -> None:
        assert await self.manager.wait_settled(PATIENCE)

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(int(PATIENCE / 0.005)):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("waited in vain")

    def states(self, model: str = "m") -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        if model in self.manager.models:
            for record in self.manager.models[model].records:
                found.setdefault(record.version, []).append(str(record.state))
        return found

    def split(self, model: str = "m") -> dict[str, float]:
        return dict(self.router.table[model].effective)

    def answers(self, version: str = "", model: str = "m") -> str:
        route = self.router.route(model)
        found = route.named(version)[0] if version else route.default(None, lambda: 0.0)[0]
        label: str = found.label
        return label


def model(
    *versions: str | tuple[str, str],
    name: str = "m",
    stand_ins: tuple[str, ...] = (),
    weights: dict[str, float] | None = None,
    stable: str | None = None,
    labels: dict[str, str] | None = None,
    error: str = "",
) -> AspiredModel:
    pairs = [v if isinstance(v, tuple) else (v, "a") for v in versions]
    return AspiredModel(
        name,
        {v: AspiredVersion(v, Path(v), files) for v, files in pairs},
        ModelSettings(),
        Traffic(weights=weights or {}, stable=stable, labels=labels or {}),
        tuple(v for v, _ in pairs),
        error,
        {v: AspiredVersion(v, Path(v), "a") for v in stand_ins},
    )


@asynccontextmanager
async def world(**config: Any) -> AsyncIterator[World]:
    made = World(**{"retry_seconds": 0.01, **config})
    try:
        yield made
    finally:
        for gate in made.loader.gates.values():
            gate.set()
        await made.manager.close()


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_nothing_gets_weight_before_it_is_ready() -> None:
    async def test() -> None:
        async with world() as w:
            gate = w.loader.shut("2")
            w.apply(model("1"))
            await w.settled()
            w.apply(model("1", "2", weights={"1": 1, "2": 3}))
            await w.until(lambda: w.states()["2"] == ["loading"])
            assert w.split() == {"1": 4.0}
            gate.set()
            await w.settled()
            assert w.split() == {"1": 1.0, "2": 3.0}

    run(test)


def test_without_a_split_the_newest_takes_over_once_it_is_ready() -> None:
    async def test() -> None:
        async with world() as w:
            gate = w.loader.shut("2")
            w.apply(model("1"))
            await w.settled()
            w.apply(model("2"))
            await asyncio.sleep(0.02)
            assert w.answers() == "m/1"
            gate.set()
            await w.until(lambda: w.states() == {"2": ["ready"]})
            assert w.answers() == "m/2"
            assert [m.closed for m in w.loader.models] == [1, 0]

    run(test)


def test_readiness_comes_once_everything_has_settled_and_stays() -> None:
    async def test() -> None:
        async with world() as w:
            assert not w.manager.ready
            gate = w.loader.shut("2")
            w.loader.broken.add("3")
            w.apply(model("1"), model("2", name="n"), model("3", name="b"))
            await w.until(lambda: w.states("m") == {"1": ["ready"]})
            await w.until(lambda: w.states("b") == {"3": ["failed"]})
            assert not w.manager.ready
            gate.set()
            await w.settled()
            assert w.manager.ready
            # Neither a new version that takes its time, nor one that is tried again.
            slow = w.loader.shut("4")
            w.apply(model("1", "4"))
            for _ in range(20):
                assert w.manager.ready
                await asyncio.sleep(0.005)
            slow.set()
            await w.settled()
            w.apply(gone=("m", "n", "b"))
            await w.until(lambda: not w.manager.models)
            assert not w.manager.ready

    run(test)


def test_changed_files_replace_the_version_only_when_they_are_loaded() -> None:
    async def test() -> None:
        async with world() as w:
            w.apply(model("1"))
            await w.settled()
            first = w.router.table["m"].versions["1"]
            gate = w.loader.shut("1")
            w.apply(model(("1", "b")))
            await w.until(lambda: w.states()["1"] == ["ready", "loading"])
            assert w.router.table["m"].versions["1"] is first
            gate.set()
            await w.until(lambda: w.states()["1"] == ["ready"])
            assert w.router.table["m"].versions["1"] is not first
            w.apply(model(("1", "broken")))
            await w.until(lambda: "failed" in w.states()["1"])
            assert w.answers() == "m/1"
            assert "is broken" in w.manager.failed()["m/1"]

    run(test)


def test_a_version_closes_only_after_its_last_request(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with world() as w:
            w.apply(model("1", "2"))
            await w.settled()
            held = w.router.table["m"].versions["1"]
            held.idle = False
            w.apply(model("2"))
            assert "1" not in w.router.table["m"].versions
            await asyncio.sleep(0.1)
            assert w.states()["1"] == ["draining"]
            assert held.model.closed == 0
            held.idle = True
            await w.until(lambda: w.states() == {"2": ["ready"]})
            assert held.model.closed == 1

    run(test)


def test_failed_loads_are_tried_again_with_growing_pauses() -> None:
    async def test() -> None:
        async with world() as w:
            w.loader.broken.add("1")
            w.apply(model("1"))
            await w.until(lambda: len(w.loader.loads) >= 4)
            record = w.manager.models["m"].records[0]
            assert record.attempts >= 3
            assert "is broken" in record.cause
            with pytest.raises(ModelNotReady, match="is broken"):
                w.answers()
            w.loader.broken.clear()
            await w.until(lambda: w.states() == {"1": ["ready"]})
            assert w.answers() == "m/1"
            assert w.manager.failed() == {}

    run(test)


def test_an_older_version_stands_in_for_a_broken_newest_one() -> None:
    async def test() -> None:
        async with world(retry_seconds=100.0) as w:
            w.loader.broken.add("2")
            w.apply(model("2", stand_ins=("1",)))
            await w.settled()
            assert w.answers() == "m/1"
            assert w.manager.ready
            w.apply(model(("2", "repaired"), stand_ins=("1",)))
            w.loader.broken.clear()
            await w.until(lambda: w.states() == {"2": ["ready"]})
            assert w.answers() == "m/2"

    run(test)


def test_what_was_stable_stays_so_until_the_new_stable_version_is_ready() -> None:
    async def test() -> None:
        async with world(retry_seconds=100.0) as w:
            w.apply(model("6", weights={"6": 100}))
            await w.settled()
            gate = w.loader.shut("7")
            w.apply(model("7", "8", weights={"7": 90, "8": 10}))
            await w.until(lambda: w.states().get("8") == ["ready"])
            # The canary has its share, and not more.
            assert w.split() == {"6": 90.0, "8": 10.0}
            assert w.router.table["m"].labels["stable"] == "6"
            gate.set()
            await w.settled()
            assert w.split() == {"7": 90.0, "8": 10.0}

    run(test)


def test_the_share_of_a_missing_version_goes_to_the_stable_one_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with world(retry_seconds=100.0) as w:
            w.loader.broken.add("2")
            w.apply(model("1", "2", weights={"1": 70, "2": 10, "9": 20}))
            await w.settled()
            assert w.split() == {"1": 100.0}

    with caplog.at_level(logging.WARNING, "sluice"):
        run(test)
    lines = [r.getMessage() for r in caplog.records if "of the split" in r.getMessage()]
    assert lines[-2:] == [
        "m: version 2 of the split has failed to load; its 10 % go to version 1",
        "m: version 9 of the split is not loaded; its 20 % go to version 1",
    ]


def test_with_no_version_of_the_split_the_newest_ready_one_answers() -> None:
    async def test() -> None:
        async with world() as w:
            w.apply(model("1", "2", weights={"9": 100}))
            await w.settled()
            assert w.split() == {"2": 100.0}
            assert w.router.table["m"].default(None)[1] == "fallback"

    run(test)


def test_a_model_that_goes_and_comes_back_is_served_again() -> None:
    async def test() -> None:
        async with world() as w:
            w.apply(model("1"))
            await w.settled()
            held = w.router.table["m"].versions["1"]
            held.idle = False
            w.apply(gone=("m",))
            with pytest.raises(ModelNotReady):
                w.answers()
            w.apply(model("1"))
            await w.settled()
            assert w.answers() == "m/1"
            held.idle = True
            await w.until(lambda: w.states() == {"1": ["ready"]})
            w.apply(gone=("m",))
            await w.until(lambda: "m" not in w.manager.models)
            with pytest.raises(UnknownModel):
                w.answers()

    run(test)


def test_a_load_that_nobody_wants_any_more_is_not_begun() -> None:
    async def test() -> None:
        async with world(load_threads=1) as w:
            gate = w.loader.shut("9")
            w.apply(model("9", name="blocks"))
            await w.until(lambda: w.loader.loads == ["blocks/9/a"])
            w.apply(model("1"))
            await asyncio.sleep(0.01)
            w.apply(gone=("m",))
            gate.set()
            await w.settled()
            await asyncio.sleep(0.05)
            assert w.loader.loads == ["blocks/9/a"]

    run(test)


def test_a_load_that_ends_after_the_gateway_gives_its_model_back() -> None:
    w = World()

    async def test() -> None:
        nonlocal w
        w = World()
        w.loader.shut("1")
        w.apply(model("1"))
        await w.until(lambda: w.loader.loads)
        await w.manager.close()
        w.loader.gates["1"].set()
        await w.until(lambda: w.loader.models and w.loader.models[0].closed)

    run(test)


def test_a_broken_document_keeps_what_is_loaded_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with world() as w:
            w.apply(model("1"))
            await w.settled()
            w.apply(model("1", error="m/model.yaml: unknown key 'x'"))
            w.apply(model("1", error="m/model.yaml: unknown key 'x'"))
            assert w.answers() == "m/1"
            assert w.manager.failed() == {"m": "m/model.yaml: unknown key 'x'"}
            w.apply(model("1"))
            assert w.manager.failed() == {}
            assert w.loader.loads == ["m/1/a"]

    with caplog.at_level(logging.INFO, "sluice"):
        run(test)
    text = caplog.text
    assert text.count("unknown key 'x'; what is loaded stays as it is") == 1
    assert text.count("can be read again") == 1


def test_a_split_set_by_hand_survives_other_changes_and_takes_effect_at_once() -> None:
    async def test() -> None:
        async with world() as w:
            w.apply(model("1", "2", weights={"1": 1}))
            await w.settled()
            w.manager.set_traffic("m", Traffic(weights={"1": 1, "2": 1}))
            assert w.split() == {"1": 1.0, "2": 1.0}
            w.apply(model("1", "2", weights={"1": 1, "2": 1}))
            assert w.split() == {"1": 1.0, "2": 1.0}

    run(test)


def test_labels_follow_the_split() -> None:
    async def test() -> None:
        async with world() as w:
            w.apply(model("1", "2", weights={"1": 90, "2": 10}, labels={"blue": "2"}))
            await w.settled()
            assert w.answers("stable") == "m/1"
            assert w.answers("canary") == "m/2"
            assert w.answers("blue") == "m/2"

    run(test)


def test_a_version_that_breaks_while_it_serves_leaves_the_routes_and_is_loaded_anew() -> None:
    async def test() -> None:
        async with world(retry_seconds=0.05) as w:
            w.apply(model("1", "2", weights={"1": 1, "2": 1}))
            await w.settled()
            (record,) = (r for r in w.manager.models["m"].records if r.version == "2")
            servable: Any = record.servable
            gate = w.loader.shut("2")
            servable.dispatcher.on_broken("the child crashed 6 times: Killed")
            assert w.split() == {"1": 1.0}
            assert record.state == State.FAILED
            assert w.manager.failed() == {"m/2": "the child crashed 6 times: Killed"}
            await w.until(lambda: servable.model.closed == 1)
            await w.until(lambda: w.states()["2"] == ["loading"])
            # Told twice, or too late, it changes nothing.
            servable.dispatcher.on_broken("again")
            gate.set()
            await w.until(lambda: w.states()["2"] == ["ready"])
            assert w.split() == {"1": 1.0, "2": 1.0}

    run(test)


def test_models_close_at_the_same_time_and_off_the_loop() -> None:
    async def test() -> None:
        # Each waits for all others and for the loop, as models do that call others in close().
        barrier = threading.Barrier(3)
        loop = asyncio.get_running_loop()

        class Meeting(FakeModel):
            def close(self) -> None:
                barrier.wait(PATIENCE)
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(PATIENCE)
                super().close()

        made = World()
        for name in "abc":
            made.apply(model("1", name=name))
        await made.settled()
        servables = [made.manager.models[name].records[0].servable for name in "abc"]
        meetings = [Meeting() for _ in servables]
        for servable, meeting in zip(servables, meetings, strict=True):
            servable.model = meeting  # type: ignore[union-attr, assignment]
        await made.manager.close()
        assert [meeting.closed for meeting in meetings] == [1, 1, 1]

    asyncio.run(test())


@pytest.mark.parametrize("unloading", [False, True])
def test_a_model_that_hangs_in_close_does_not_keep_the_gateway(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, unloading: bool
) -> None:
    monkeypatch.setattr(manager_module, "CLOSING_SECONDS", 0.2)
    hanging, free = threading.Event(), threading.Event()

    class Hanging(FakeModel):
        def close(self) -> None:
            self.closed += 1
            hanging.set()
            free.wait(PATIENCE)

    stuck = Hanging()

    async def test() -> None:
        made = World()
        made.apply(model("1"), model("1", name="other"))
        await made.settled()
        made.manager.models["m"].records[0].servable.model = stuck  # type: ignore[union-attr, assignment]
        other = made.manager.models["other"].records[0].servable
        if unloading:
            made.apply(gone=("m",))
            await made.until(hanging.is_set)
        await made.manager.close()
        assert other is not None and other.model.closed == 1  # type: ignore[attr-defined]

    try:
        asyncio.run(test())  # returns, which also needs that no thread of the loop's is stuck
        assert not free.is_set() and stuck.closed == 1
        assert "m/1 did not close in 0.2 s; it is left behind" in caplog.text
    finally:
        free.set()


def test_a_model_that_fails_to_close_is_unloaded(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(FakeModel):
        def close(self) -> None:
            raise OSError("no such device")

    async def test() -> None:
        async with world() as made:
            made.apply(model("1"))
            await made.settled()
            made.manager.models["m"].records[0].servable.model = Failing()  # type: ignore[union-attr, assignment]
            made.apply(gone=("m",))
            await made.until(lambda: "m" not in made.manager.models)

    asyncio.run(test())
    assert "m/1: closing failed: OSError: no such device" in caplog.text
