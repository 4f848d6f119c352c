"""What others may ask of a directory that is a registry: pins and hints."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.config import RegistryConfig
from gateway.registries.base import Snapshot
from gateway.registries.directory import DirectoryRegistry
from gateway.registries.traffic import Traffic, write_traffic

PATIENCE = 20.0


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "model.onnx").write_bytes(b"x")


def test_pinned_versions_are_wanted_whatever_the_policy_says(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/2", "m/3", "other/1", "other/2")
    now = 100.0
    registry = DirectoryRegistry(tmp_path, RegistryConfig(), lambda: now)
    assert list(registry.scan()["m"].versions) == ["3"]
    registry.pin("m", frozenset(("1", "7")))  # there is no 7
    registry.pin("nobody", frozenset("1"))
    registry.scan()
    now += 10
    snapshot = registry.scan()
    assert list(snapshot["m"].versions) == ["1", "3"] and list(snapshot["other"].versions) == ["2"]
    assert "1" not in snapshot["m"].stand_ins
    registry.pin("m", frozenset("2"))  # replaces what was pinned before
    registry.scan()
    now += 10
    assert list(registry.scan()["m"].versions) == ["2", "3"]
    registry.pin("m", frozenset())
    assert list(registry.scan()["m"].versions) == ["3"]


def test_a_pin_adds_to_what_the_split_names(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/2", "m/3", "m/4")
    write_traffic(tmp_path / "m", Traffic(weights={"2": 1}))
    registry = DirectoryRegistry(tmp_path, RegistryConfig())
    registry.pin("m", frozenset("1"))
    assert list(registry.scan()["m"].versions) == ["1", "2", "4"]


def test_a_hint_is_followed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "m/1")
    registry = DirectoryRegistry(tmp_path, RegistryConfig(poll_seconds=3600))
    registry.scan()
    told: list[Snapshot] = []

    async def changed(snapshot: Snapshot) -> None:
        told.append(snapshot)

    async def no_notices(*args: object, **more: object) -> object:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr("gateway.registries.directory.notices_of", no_notices)

    async def run() -> None:
        task = asyncio.create_task(registry.watch(changed))
        async with asyncio.timeout(PATIENCE):
            while not told:
                await asyncio.sleep(0.005)
            registry.pin("m", frozenset("2"))
            put(tmp_path, "m/2")
            registry.hint()
            while list(told[-1]["m"].versions) != ["2"]:
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
