"""Splits of sources that cannot be written, and what is remembered of sources."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.config import Config, RegistryConfig
from gateway.errors import RegistryError
from gateway.registries.directory import DirectoryRegistry
from gateway.registries.overlay import Overlays
from gateway.registries.remembered import FOLDER, Remembered
from gateway.registries.sources import open_registry
from gateway.registries.traffic import Traffic, read_traffic, write_traffic
from gateway.state import StateDir, file_name

DECLARED = Traffic(weights={"1": 90, "2": 10}, stable="1")
OWN = Traffic(weights={"1": 50, "2": 50.5}, labels={"blue": "2"})


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


def test_it_holds_until_what_is_declared_changes(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    overlays = Overlays(state, "s3://b/m")
    assert overlays.over("m", DECLARED) == DECLARED
    overlays.put("m", DECLARED, OWN)
    for each in (overlays, Overlays(state, "s3://b/m")):  # the second: after a restart
        assert each.over("m", DECLARED) == OWN
        assert each.over("other", DECLARED) == DECLARED
    assert Overlays(state, "s3://b/other").over("m", DECLARED) == DECLARED
    with caplog.at_level(logging.WARNING):
        assert overlays.over("m", Traffic()) == Traffic()
    assert "the split declared in s3://b/m has changed" in caplog.text
    # What was dropped does not come back, not even when the old declaration does.
    for each in (overlays, Overlays(state, "s3://b/m")):
        assert each.over("m", DECLARED) == DECLARED


def test_it_is_said_once_that_a_split_is_kept_here(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    overlays = Overlays(state, "hf://o/r")
    with caplog.at_level(logging.WARNING):
        overlays.put("m", Traffic(), DECLARED)
        overlays.put("m", Traffic(), OWN)
    assert caplog.text.count("cannot be written") == 1
    assert overlays.over("m", Traffic()) == OWN


def test_without_a_state_directory_there_is_none() -> None:
    overlays = Overlays(None, "s3://b/m")
    assert not overlays.possible and overlays.over("m", DECLARED) == DECLARED
    overlays.drop("m")
    with pytest.raises(RegistryError, match="no state_dir"):
        overlays.put("m", DECLARED, OWN)


@pytest.mark.parametrize("text", ["", "[", "traffic: {}", "over: x\ntraffic: {wieghts: {}}", "\0"])
def test_one_that_cannot_be_read_does_not_hold(
    text: str, state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    state.write(text.encode(), "overlays", file_name("s"), f"{file_name('m')}.yaml")
    with caplog.at_level(logging.ERROR):
        assert Overlays(state, "s").over("m", DECLARED) == DECLARED
    assert "cannot be read" in caplog.text


def test_a_state_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    overlays = Overlays(StateDir(tmp_path / "state"), "hf://o/r")
    with pytest.raises(RegistryError, match="neither can the state directory") as error:
        overlays.put("m", DECLARED, OWN)
    assert str(tmp_path) not in str(error.value)
    assert overlays.over("m", DECLARED) == DECLARED


# --- directories


def two_versions(root: Path) -> Path:
    """One model of two versions, with a split."""
    for version in "12":
        (root / "m" / version).mkdir(parents=True)
        (root / "m" / version / "model.onnx").write_bytes(b"x")
    write_traffic(root / "m", DECLARED)
    return root


def refuse_writing(patch: pytest.MonkeyPatch, number: int) -> None:
    """Every write of a split fails; root may write what nobody else may."""

    def refuse(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr("gateway.registries.traffic.tempfile.mkstemp", refuse)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_directory_that_may_not_be_written(number: int, tmp_path: Path, state: StateDir) -> None:
    root = two_versions(tmp_path / "models")
    without = DirectoryRegistry(root, RegistryConfig())
    registry = open_registry(str(root), Config(), state)
    Overlays(state, str(root)).put("m", Traffic(), OWN)  # over something that is not declared
    for each in (without, registry):
        assert each.scan()["m"].traffic == DECLARED
    with pytest.MonkeyPatch.context() as patch:
        make = tempfile.mkstemp
        refuse_writing(patch, number)
        with pytest.raises(RegistryError, match="make the directory writable"):
            without.write_traffic("m", OWN)
        patch.setattr("gateway.state.tempfile", SimpleNamespace(mkstemp=make))
        registry.write_traffic("m", OWN)
    assert registry.scan()["m"].traffic == OWN
    again = open_registry(str(root), Config(), state)
    assert again.scan()["m"].traffic == OWN
    assert read_traffic(root / "m") == DECLARED
    # Writable again: the document is written, and nothing lies over it.
    again.write_traffic("m", Traffic(weights={"2": 1}))
    assert read_traffic(root / "m") == Traffic(weights={"2": 1})
    third = open_registry(str(root), Config(), state)
    assert third.scan()["m"].traffic == Traffic(weights={"2": 1})


def test_a_full_disk_is_no_reason_for_an_overlay(
    tmp_path: Path, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = two_versions(tmp_path / "models")
    refuse_writing(monkeypatch, errno.ENOSPC)
    registry = DirectoryRegistry(root, RegistryConfig(), state=state)
    registry.scan()
    with pytest.raises(RegistryError, match="No space left"):
        registry.write_traffic("m", OWN)
    assert registry.scan()["m"].traffic == DECLARED


def test_a_declared_split_that_cannot_be_read_drops_nothing(
    tmp_path: Path, state: StateDir
) -> None:
    root = two_versions(tmp_path / "models")
    Overlays(state, str(root)).put("m", DECLARED, OWN)
    again = DirectoryRegistry(root, RegistryConfig(), state=state)
    assert again.scan()["m"].traffic == OWN
    (root / "m" / "traffic.yaml").write_text("weights: [")
    assert again.scan()["m"].traffic == OWN
    write_traffic(root / "m", DECLARED)
    assert again.scan()["m"].traffic == OWN


# --- remembered


def test_what_is_remembered(state: StateDir, tmp_path: Path) -> None:
    one, other = Remembered(state, "s3://b"), Remembered(state, "s3://b/c")
    assert one.load() is None
    one.save(b"first")
    one.save(b"second")
    found = Remembered(state, "s3://b").load()
    assert found is not None and found[0] == b"second"
    path = state.path / FOLDER / file_name("s3://b")
    assert found[1] == path.stat().st_mtime
    assert other.load() is None
    assert Remembered(None, "s3://b").load() is None
    Remembered(None, "s3://b").save(b"x")


def test_what_still_holds_gets_a_new_time_now_and_then(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Remembered(state, "s3://b")
    one.save(b"first")
    path = state.path / FOLDER / file_name("s3://b")
    os.utime(path, (1, 1))
    one.save(b"first")
    assert path.stat().st_mtime == 1  # too soon
    monkeypatch.setattr("gateway.registries.remembered.CONFIRM_SECONDS", 0.0)
    one.confirm()
    assert path.stat().st_mtime > 1
    path.unlink()
    one.confirm()
    one.save(b"first")
    assert path.read_bytes() == b"first"


def test_a_state_directory_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file")
    one = Remembered(StateDir(tmp_path / "state"), "s3://b")
    with caplog.at_level(logging.WARNING):
        one.save(b"x")
        one.save(b"y")
    assert caplog.text.count("a restart needs the source") == 1
    assert one.load() is None
