"""Requests that wait for on-demand models, fetching, signatures of a split, load logs."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import (
    DeadlineExceeded,
    Draining,
    FetchError,
    NotLoaded,
    Overloaded,
    UnknownModel,
    UnknownVersion,
)
from gateway.lifecycle.logs import KEPT, VERSIONS, LoadLog, LoadLogs
from gateway.lifecycle.signature import signature_differences
from gateway.tensors import DATATYPES, TensorSpec
from tests.support.lifecycle import PATIENCE, World, aspired


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


# --- waiting


def test_waiters_leave_when_cancelled_and_the_others_are_answered() -> None:
    async def test() -> None:
        async with World() as w:
            gate = w.loader.shut("m")
            w.apply(aspired("m"))
            calls = [w.ask("m") for _ in range(3)]
            assert w.manager.demand.waiting == 3
            calls[1].cancel()
            assert w.manager.demand.waiting == 2
            gate.set()
            assert [await w.answer(calls[n]) for n in (0, 2)] == ["1", "1"]
            assert [call.ends for call in calls] == [1, 1, 1]
            assert w.loader.loads == ["m/1"]

    run(test)


def test_waiting_ends_at_the_deadline_and_at_the_configured_time() -> None:
    async def test() -> None:
        async with World(on_demand_wait=0.2) as w:
            gate = w.loader.shut("m")
            w.apply(aspired("m"))
            own, other = w.ask("m", deadline=0.02), w.ask("m")
            await w.until(lambda: own.ends and other.ends)
            assert isinstance(own.error, DeadlineExceeded)
            assert isinstance(other.error, NotLoaded)
            assert "0.2 s (lifecycle.on_demand_wait)" in str(other.error)
            assert other.error.retry_after == 1.0
            gate.set()
            await w.until(lambda: w.loaded() == {"m/1"})  # the load went on for the next one

    run(test)


def test_with_no_time_to_wait_the_load_begins_all_the_same() -> None:
    async def test() -> None:
        async with World(on_demand_wait=0.0) as w:
            w.apply(aspired("m"))
            assert isinstance(w.ask("m").error, NotLoaded)
            await w.until(lambda: w.loaded() == {"m/1"})
            assert await w.answer(w.ask("m")) == "1"

    run(test)


def test_no_more_wait_than_is_allowed() -> None:
    async def test() -> None:
        async with World(on_demand_waiting=2) as w:
            w.loader.shut("m")
            w.apply(aspired("m"))
            calls = [w.ask("m") for _ in range(3)]
            assert isinstance(calls[2].error, Overloaded)
            assert "on_demand_waiting" in str(calls[2].error)
            assert w.pipeline.refused["grpc", "Overloaded"] or w.pipeline.refused.total() == 1

    run(test)


def test_a_failure_reaches_all_waiters_and_is_tried_again_only_after_its_pause() -> None:
    async def test() -> None:
        async with World() as w:
            w.loader.broken.add("m")
            w.apply(aspired("m"))
            calls = [w.ask("m") for _ in range(5)]
            await w.until(lambda: all(call.ends for call in calls))
            assert {str(call.error) for call in calls} == {
                "model 'm' could not be loaded: m/1 is broken"
            }
            again = w.ask("m")
            assert again.error is not None and again.error.retry_after > 50
            assert w.loader.loads == ["m/1"]
            # Nobody asks: nothing is tried.
            (record,) = w.manager.models["m"].records
            record.retry_at = 0.0
            w.manager.apply([replace(aspired("m"), on_disk=("1", "2"))])
            await asyncio.sleep(0.02)
            assert w.loader.loads == ["m/1"]
            w.loader.broken.clear()
            assert await w.answer(w.ask("m")) == "1"

    run(test)


def test_a_stand_in_answers_for_a_broken_newest_version() -> None:
    async def test() -> None:
        async with World() as w:
            w.apply(aspired("m", "2", files="broken", stand_ins=("1",)))
            assert await w.answer(w.ask("m")) == "1"
            assert w.loader.loads == ["m/2", "m/1"]

    run(test)


def test_a_broken_new_version_does_not_replace_the_one_in_use() -> None:
    async def test() -> None:
        async with World() as w:
            w.apply(aspired("m", "1"))
            assert await w.answer(w.ask("m")) == "1"
            w.apply(aspired("m", "2", files="broken"))
            await w.until(lambda: "m/2" in w.manager.failed())
            assert await w.answer(w.ask("m")) == "1"
            assert w.loaded() == {"m/1"}
            w.apply(aspired("m", "3"))
            await w.until(lambda: w.loaded() == {"m/3"})

    run(test)


def test_a_split_is_loaded_whole_and_answers_once_the_stable_version_can() -> None:
    async def test() -> None:
        async with World() as w:
            w.apply(aspired("m", "1", "2", weights={"1": 90, "2": 10}))
            assert await w.answer(w.ask("m")) in ("1", "2")
            await w.until(lambda: w.loaded() == {"m/1", "m/2"})
            assert dict(w.router.table["m"].effective) == {"1": 90.0, "2": 10.0}

    run(test)


def test_who_waits_for_what_goes_away_is_told() -> None:
    async def test() -> None:
        async with World() as w:
            w.loader.shut("m")
            w.apply(aspired("m", "1", "2"))
            model, version = w.ask("m"), w.ask("m", "1")
            w.apply(aspired("m", "2"))
            assert isinstance(version.error, UnknownVersion)
            assert not model.ends
            w.apply(gone=("m",))
            w.loader.gates["m"].set()
            await w.until(lambda: model.ends)
            assert isinstance(model.error, UnknownModel) or "no version" in str(model.error)

    run(test)


def test_closing_ends_those_that_wait() -> None:
    async def test() -> None:
        async with World() as w:
            w.loader.shut("m")
            w.apply(aspired("m"))
            call = w.ask("m")
            w.manager.demand.close()
            assert isinstance(call.error, Draining)

    run(test)


def test_a_model_that_becomes_on_demand_stays_loaded() -> None:
    async def test() -> None:
        async with World() as w:
            w.apply(aspired("m", on_demand=False))
            await w.until(lambda: w.loaded() == {"m/1"})
            w.apply(aspired("m"))
            assert await w.answer(w.ask("m")) == "1"
            assert w.loader.loads == ["m/1"]

    run(test)


def test_idle_models_are_unloaded_and_busy_ones_are_not() -> None:
    async def test() -> None:
        async with World(on_demand_idle=0.1) as w:
            w.apply(aspired("idle"), aspired("busy"), aspired("lasting", on_demand=False))
            await w.answer(w.ask("idle"))
            w.ask("busy")
            await w.until(lambda: w.loaded() == {"busy/1", "lasting/1"})
            assert w.manager.ready and w.manager.settled
            assert "idle" in w.router.table

    run(test)


def test_what_another_model_asks_for_does_not_wait_for_a_loading_thread() -> None:
    async def test() -> None:
        async with World(load_threads=1) as w:
            gate = w.loader.shut("outer")
            w.apply(aspired("outer"), aspired("inner"))
            outer = w.ask("outer")
            await w.until(lambda: w.loader.loads == ["outer/1"])
            # As `outer` does while it loads.
            assert w.manager.on_demand.want("inner", "", urgent=True) is None
            await w.until(lambda: w.loaded() == {"inner/1"})
            gate.set()
            assert await w.answer(outer) == "1"

    run(test)


# --- fetching


@dataclass(frozen=True)
class FakeOrigin:
    uri: str
    folder: str = "1"


class FakeFetcher:
    """Fetches when it is let; names with ``bad`` fail."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.leases: list[Any] = []

    def fetch(self, origin: Any, told: Callable[[int, int], object]) -> Any:
        told(3 * 2**20, 12 * 2**20)
        if "slow" in origin.uri:
            assert self.go_on.wait(PATIENCE)
        if "bad" in origin.uri:
            raise FetchError(f"{origin.uri} cannot be fetched") from OSError("no route to host")
        lease = SimpleNamespace(path=Path("here"), released=0)
        lease.release = lambda: setattr(lease, "released", lease.released + 1)
        self.leases.append(lease)
        return lease


def elsewhere(name: str, uri: str, **more: Any) -> Any:
    made = aspired(name, on_demand=False, **more)
    origin: Any = FakeOrigin(uri)
    versions = {v: replace(each, origin=origin) for v, each in made.versions.items()}
    return replace(made, versions=versions)


def test_a_slow_download_keeps_no_other_model_from_loading() -> None:
    async def test() -> None:
        fetcher = FakeFetcher()
        async with World(fetcher, load_threads=1) as w:
            w.apply(*(elsewhere(f"slow-{n}", f"s3://slow/{n}") for n in range(2)))
            w.apply(aspired("here", on_demand=False))
            await w.until(lambda: w.loaded() == {"here/1"})
            (record,) = w.manager.models["slow-0"].records
            await w.until(lambda: record.state == "fetching")
            assert record.progress == "3.0 MiB of 12 MiB"
            fetcher.go_on.set()
            await w.until(lambda: len(w.loaded()) == 3)
            w.apply(gone=("slow-0",))
            await w.until(lambda: [lease.released for lease in fetcher.leases].count(1) == 1)

    run(test)


def test_a_version_that_cannot_be_fetched_does_not_replace_a_good_one() -> None:
    async def test() -> None:
        fetcher = FakeFetcher()
        async with World(fetcher) as w:
            w.apply(elsewhere("m", "s3://good"))
            await w.until(lambda: w.loaded() == {"m/1"})
            w.apply(elsewhere("m", "s3://bad", files="other"))
            await w.until(lambda: "m/1" in w.manager.failed())
            assert await w.answer(w.ask("m")) == "1"
            log = w.manager.models["m"].logs.get("1")
            assert log is not None
            assert "OSError: no route to host" in log.text()  # the cause of the cause
            assert "s3://bad cannot be fetched" in log.text()

    run(test)


def test_what_is_not_wanted_any_more_is_not_loaded_after_its_fetch() -> None:
    async def test() -> None:
        fetcher = FakeFetcher()
        async with World(fetcher) as w:
            w.apply(elsewhere("m", "s3://slow"))
            await w.until(lambda: w.manager.models["m"].records[0].state == "fetching")
            w.apply(gone=("m",))
            fetcher.go_on.set()
            await w.until(lambda: "m" not in w.manager.models)
            assert w.loader.loads == []
            assert [lease.released for lease in fetcher.leases] == [1]

    run(test)


# --- signatures


def spec(
    name: str, kind: str = "FP32", shape: tuple[int, ...] = (-1, 4), **more: Any
) -> TensorSpec:
    return TensorSpec(name, DATATYPES[kind], shape, **more)


def signature(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...] = ()) -> Any:
    return SimpleNamespace(inputs=inputs, outputs=outputs)


BASE = signature((spec("x"),), (spec("y"),))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (BASE, ""),
        (signature((), ()), ""),  # says nothing
        (signature((spec("x", shape=(-1, -1)),), (spec("y"),)), ""),  # takes more
        (signature((spec("x"), spec("z", optional=True)), (spec("y"),)), ""),
        (signature((spec("x"),), (spec("y", shape=(1, 4)),)), ""),  # promises more
        (signature((spec("z"),), (spec("y"),)), "no input 'x'"),
        (signature((spec("x", "FP64"),), (spec("y"),)), "FP64 [-1, 4] instead of FP32 [-1, 4]"),
        (signature((spec("x", shape=(-1, 5)),), (spec("y"),)), "input 'x' is FP32 [-1, 5]"),
        (signature((spec("x", shape=(1, 4)),), (spec("y"),)), "input 'x' is FP32 [1, 4]"),
        (signature((spec("x", shape=(-1, 4, 1)),), (spec("y"),)), "input 'x'"),
        (signature((spec("x"), spec("z")), (spec("y"),)), "needs an input 'z'"),
        (signature((spec("x"),), (spec("w"),)), "no output 'y'"),
        (signature((spec("x"),), (spec("y", shape=(-1, -1)),)), ""),  # leaves a size open
        (signature((spec("x"),), (spec("y", shape=(-1, 5)),)), "output 'y' is FP32 [-1, 5]"),
        (signature((spec("x"),), (spec("y", shape=(-1, 4, 1)),)), "output 'y'"),
        (signature((spec("x"),), (spec("y"), spec("w"))), "gives an output 'w'"),
    ],
)
def test_differences_of_signatures(other: Any, words: str) -> None:
    found = "; ".join(signature_differences(BASE, other))
    assert words in found
    assert bool(words) == bool(found)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_canary_of_another_signature_gets_no_share_unless_told_otherwise(
    *, allowed: bool
) -> None:
    async def test() -> None:
        async with World() as w:
            made = aspired(
                "m", "1", "2", on_demand=False, weights={"1": 1, "2": 1000},
                signature_change="allow" if allowed else "refuse",
            )  # fmt: skip
            made = replace(made, traffic=replace_stable(made.traffic, "1"))
            servable = w.loader.servable

            def differing(name: str, version: str, loaded: Any, settings: object) -> Any:
                found = servable(name, version, loaded, settings)
                found.contract = signature((spec("x" if version == "1" else "z"),))
                return found

            w.loader.servable = differing  # type: ignore[method-assign]
            w.apply(made)
            await w.until(lambda: w.loaded() == {"m/1", "m/2"})
            route = w.router.table["m"]
            expected = {"1": 1.0, "2": 1000.0} if allowed else {"1": 1001.0}
            assert dict(route.effective) == expected
            assert await w.answer(w.ask("m", "2")) == "2"
            assert await w.answer(w.ask("m", "canary")) == "2"
            if not allowed:
                assert {route.default(str(n))[0].version for n in range(50)} == {"1"}
                assert "signature_change: allow" in w.manager.models["m"].refused["2"]

    run(test)


def replace_stable(traffic: Any, stable: str) -> Any:
    import msgspec

    return msgspec.structs.replace(traffic, stable=stable)


# --- logs


def test_a_log_is_bounded_and_keeps_what_is_newest() -> None:
    log = LoadLog()
    for n in range(3000):
        log.write(f"entry {n} " + "x" * 50)
    text = log.text()
    assert len(text) <= KEPT + 100
    assert "older entries are not kept" in text.splitlines()[0]
    assert "entry 2999" in text and "entry 0 " not in text
    log.write("a" * 100_000 + "the end")
    assert "the end" in log.text() and len(log.text()) <= KEPT + 100
    logs = LoadLogs()
    for n in range(VERSIONS + 5):
        logs.of(str(n))
    assert logs.get("0") is None and logs.get(str(VERSIONS + 4)) is not None


def test_a_log_hears_its_own_thread_alone() -> None:
    log = LoadLog()
    other = threading.Thread(target=logging.getLogger("elsewhere").warning, args=("not mine",))
    with log.hearing():
        logging.getLogger("some.library").warning("cannot use %s", "this")
        other.start()
        other.join()
    logging.getLogger("some.library").warning("later")
    assert "WARNING some.library: cannot use this" in log.text()
    assert "not mine" not in log.text() and "later" not in log.text()
