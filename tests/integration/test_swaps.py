"""Versions come, go, break and are mended under load, and no request fails."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import time
import urllib.request
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.app import Gateway
from gateway.config import load_config
from tests.support.load import Load
from tests.support.onnx_models import adding, write, write_adding

PATIENCE = 60.0
CORRUPT = adding(99.0, padding=500)[:-300]


class Rig:
    """A gateway in this process, its model ``m``, and what version adds what."""

    def __init__(self, root: Path, server: str) -> None:
        self.root = root
        self.folder = root / "m"
        config, _ = load_config(
            flags={
                "sources": (str(root),),
                "http.address": "127.0.0.1:0",
                "grpc.address": "127.0.0.1:0",
                "grpc.server": server,
                "lifecycle.retry_seconds": 0.2,
            },
            environment={},
        )
        self.gateway = Gateway(config)
        self.may_add: dict[str, set[float]] = {}
        self.swaps = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self.ever = 0
        self.models: list[Any] = []

    def right(self, version: str, difference: float) -> bool:
        return difference in self.may_add.get(version, set())

    def put(self, version: str, value: float, data: bytes | None = None) -> None:
        """The version's folder appears, or its file is replaced, in one step."""
        self.may_add.setdefault(version, set()).add(value)
        write(self.folder / version, adding(value) if data is None else data)

    def look(self) -> None:
        """Takes note of every servable there is (by its batcher), without keeping it."""
        route = self.gateway.router.table.get("m")
        for servable in route.versions.values() if route is not None else ():
            if servable.dispatcher not in self.seen:
                self.seen.add(servable.dispatcher)
                self.ever += 1
                self.models.append(servable.model)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}: {self.states()}"
            self.look()
            await asyncio.sleep(0.01)

    def states(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for record in self.gateway.manager.models["m"].records:
            found.setdefault(record.version, []).append(str(record.state))
        return found

    async def only(self, *versions: str) -> None:
        """Until these versions are ready and there are no others."""
        want = {version: ["ready"] for version in versions}
        await self.until(lambda: self.states() == want, f"{versions} to be ready")
        self.look()

    async def answered_by(self, load: Load, *versions: str) -> None:
        await self.until(lambda: load.last() <= {*versions}, f"answers by {versions}")
        self.swaps += 1

    async def admin(self, method: str, path: str, tree: Any = None) -> Any:
        url = self.gateway.addresses()["http"] + "/admin/v1/models/m" + path
        body = None if tree is None else json.dumps(tree).encode()
        headers = {"content-type": "application/json"}

        def call() -> Any:
            request = urllib.request.Request(url, body, headers, method=method)
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read())

        return await asyncio.to_thread(call)


async def swap_many(rig: Rig, load: Load, times: int) -> None:
    """A new version takes over and the old one is removed, again and again."""
    for _ in range(times):
        (old,) = rig.states()
        new = str(int(old) + 1)
        rig.put(new, float(new))
        await rig.answered_by(load, new)
        shutil.rmtree(rig.folder / old)
        await rig.only(new)


async def swap_in_a_corrupt_version(rig: Rig, load: Load) -> None:
    """It never replaces the good one, its cause can be seen, and mended it is loaded."""
    (old,) = rig.states()
    new = str(int(old) + 1)
    rig.put(new, 99.0, CORRUPT)
    await rig.until(lambda: "failed" in rig.states().get(new, []), "the corrupt version")
    assert load.last() == {old}
    status = await rig.admin("GET", "")
    (failed,) = [v for v in status["versions"] if v["version"] == new]
    assert "model.onnx" in failed["cause"]
    index = rig.gateway.facts.index()
    assert any("model.onnx" in entry.get("reason", "") for entry in index)
    assert rig.gateway.facts.ready
    rig.may_add[new] = {float(new)}
    rig.put(new, float(new))
    await rig.answered_by(load, new)
    await rig.only(new)
    # The same for files of a version in use.
    rig.put(new, 99.0, CORRUPT)
    await rig.until(lambda: rig.states() == {new: ["ready", "failed"]}, "the corrupt files")
    rig.may_add[new].discard(99.0)
    rig.put(new, float(new) + 0.5)
    await rig.only(new)
    rig.swaps += 1


async def split_and_remove_a_version_in_use(rig: Rig, load: Load) -> None:
    (old,) = rig.states()
    new = str(int(old) + 1)
    rig.put(new, float(new))
    await rig.answered_by(load, new)
    await rig.admin("PUT", "/split", {"weights": {old: 50, new: 50}})
    await rig.only(old, new)
    before = {v: sum(t.ok[v] for t in load.tallies.values()) for v in (old, new)}
    await rig.until(
        lambda: all(sum(t.ok[v] for t in load.tallies.values()) > before[v] + 20 for v in before),
        "both parts of the split",
    )
    rig.swaps += 1
    shutil.rmtree(rig.folder / old)
    await rig.only(new)
    await rig.answered_by(load, new)
    (rig.folder / "traffic.yaml").unlink()
    await rig.until(lambda: not rig.gateway.manager.models["m"].traffic.weights, "no split")


async def replace_files_in_place(rig: Rig, load: Load, times: int) -> None:
    """The same version with other files, as training scripts do it."""
    (version,) = rig.states()
    for number in range(times):
        before = rig.gateway.router.table["m"].versions[version]
        rig.put(version, 1000.0 + number)
        await rig.until(
            lambda old=before: rig.gateway.router.table["m"].versions[version] is not old,  # type: ignore[misc]
            "the new files",
        )
        del before
        await rig.only(version)
        rig.swaps += 1


async def run(rig: Rig, plan: Callable[[Rig, Load], Any], swaps: int) -> None:
    gateway = rig.gateway
    await gateway.start()
    try:
        where = gateway.addresses()
        memory = psutil.Process().memory_info().rss
        started = time.monotonic()
        async with Load(where["http"], where["grpc"], "m", rig.right) as load:
            await rig.until(lambda: load.last() == {"1"}, "the first answers")
            await plan(rig, load)
        took = time.monotonic() - started
        load.check()
        assert rig.swaps >= swaps
        rate = load.sent / took
        grown = (psutil.Process().memory_info().rss - memory) / 2**20
        print(f"{rig.swaps} swaps, {load.sent} requests, {rate:.0f} a second, {grown:.1f} MiB more")
        assert load.sent >= 100 * swaps, "too little load to prove anything"
        assert grown < 200
        await check_nothing_is_left(rig)
    finally:
        await gateway.drain(0)
        await gateway.close()


async def check_nothing_is_left(rig: Rig) -> None:
    """Of all servables there ever were, only those in the table are there."""
    current = {id(s.dispatcher) for s in rig.gateway.router.table["m"].versions.values()}
    assert rig.ever > len(current)
    open_models = [model for model in rig.models if model._session is not None]
    assert len(open_models) == len(current)
    rig.models.clear()
    await asyncio.sleep(0.05)
    gc.collect()
    left = {id(batcher) for batcher in rig.seen}
    assert left == current, f"{len(left - current)} of {rig.ever} servables leaked"


def test_twenty_swaps_under_load_fail_no_request(tmp_path: Path) -> None:
    pytest.importorskip("pygrpc_native")
    write_adding(tmp_path, "m", 1.0)

    async def plan(rig: Rig, load: Load) -> None:
        await swap_many(rig, load, 6)
        await swap_in_a_corrupt_version(rig, load)
        await split_and_remove_a_version_in_use(rig, load)
        await replace_files_in_place(rig, load, 3)
        await swap_many(rig, load, 6)

    async def main() -> None:
        rig = Rig(tmp_path, "native")
        rig.may_add["1"] = {1.0}
        await run(rig, plan, 20)

    asyncio.run(main())


def test_swaps_on_grpcio_fail_no_request(tmp_path: Path) -> None:
    write_adding(tmp_path, "m", 1.0)

    async def plan(rig: Rig, load: Load) -> None:
        await swap_many(rig, load, 1)
        await swap_in_a_corrupt_version(rig, load)
        await split_and_remove_a_version_in_use(rig, load)

    async def main() -> None:
        rig = Rig(tmp_path, "grpcio")
        rig.may_add["1"] = {1.0}
        await run(rig, plan, 6)

    asyncio.run(main())
