"""Which runtimes are found, and which one is chosen."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes import discovery
from runtimes.discovery import GROUP, BrokenRuntime, choose, load_runtimes
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.onnx import OnnxRuntime


class Toy(Runtime):
    """Takes folders that hold ``model.toy``."""

    name = "toy"

    def report(self) -> RuntimeReport:
        return RuntimeReport(name=self.name, available=True, formats=("toy",))

    def probe(self, artifact: Artifact) -> bool:
        return (artifact.path / "model.toy").exists()

    def estimate(self, artifact: Artifact) -> int:
        return 1

    def load(self, artifact: Artifact) -> Model:
        raise ModelLoadError("only a toy")


class Hysterical(Toy):
    def probe(self, artifact: Artifact) -> bool:
        raise RuntimeError("oh no")


class FailsToStart(Toy):
    def __init__(self) -> None:
        raise OSError("no\nlicence")


def plugins(monkeypatch: pytest.MonkeyPatch, **targets: str) -> dict[str, Runtime]:
    points = [EntryPoint(name, f"{__name__}:{t}", GROUP) for name, t in targets.items()]
    monkeypatch.setattr(discovery, "entry_points", lambda group: points)
    return load_runtimes()


def artifact(folder: Path, **settings: Any) -> Artifact:
    return Artifact("m", "1", folder, ModelSettings(**settings))


def test_a_checkout_has_the_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = plugins(monkeypatch)
    assert list(runtimes) == ["onnx"]
    assert isinstance(runtimes["onnx"], OnnxRuntime)


def test_plugins_come_after_the_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(plugins(monkeypatch, toy="Toy", a="Toy")) == ["onnx", "a", "toy"]


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("Missing", "has no attribute"),
        ("FailsToStart", "no licence"),
        ("artifact", "cannot be used"),
        ("Path", "not a subclass of Runtime"),
    ],
)
def test_a_broken_plugin_is_told_of_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    target: str,
    cause: str,
) -> None:
    with caplog.at_level(logging.WARNING):
        runtimes = plugins(monkeypatch, bad=target)
    assert list(runtimes) == ["onnx", "bad"]
    bad = runtimes["bad"]
    assert isinstance(bad, BrokenRuntime)
    assert not bad.report().available and cause in bad.report().reason
    assert "\n" not in bad.report().reason and "'bad'" in bad.report().reason
    assert cause in caplog.text
    assert not bad.probe(artifact(tmp_path)) and bad.estimate(artifact(tmp_path)) == 0
    with pytest.raises(ModelLoadError, match=cause):
        choose(artifact(tmp_path, runtime="bad"), runtimes).load(artifact(tmp_path))


def test_the_settings_name_the_runtime(tmp_path: Path) -> None:
    toy = Toy()
    (tmp_path / "model.onnx").touch()
    runtimes: dict[str, Runtime] = {"onnx": OnnxRuntime(), "toy": toy}
    assert choose(artifact(tmp_path, runtime="toy"), runtimes) is toy
    with pytest.raises(ModelLoadError) as caught:
        choose(artifact(tmp_path, runtime="onx"), runtimes)
    assert str(caught.value) == (
        "runtime 'onx' is not installed; did you mean 'onnx'? (installed: onnx, toy)"
    )


def test_else_the_first_that_takes_it(tmp_path: Path) -> None:
    onnx, toy = OnnxRuntime(), Toy()
    runtimes: dict[str, Runtime] = {"onnx": onnx, "toy": toy}
    (tmp_path / "model.toy").touch()
    assert choose(artifact(tmp_path), runtimes) is toy
    (tmp_path / "model.onnx").touch()
    assert choose(artifact(tmp_path), runtimes) is onnx


def test_none_takes_it(tmp_path: Path) -> None:
    runtimes: dict[str, Runtime] = {"toy": Toy(), "bad": BrokenRuntime("bad", "no licence")}
    with pytest.raises(ModelLoadError, match="version 1: it holds no files, but"):
        choose(artifact(tmp_path), runtimes)
    with pytest.raises(ModelLoadError, match="it holds no folder"):
        choose(artifact(tmp_path / "gone"), runtimes)
    for number in range(12):
        (tmp_path / f"{number:02}.bin").touch()
    with pytest.raises(ModelLoadError) as caught:
        choose(artifact(tmp_path), runtimes)
    text = str(caught.value)
    assert "07.bin and 4 more" in text and "08.bin" not in text
    assert "runtime 'toy' loads toy files" in text
    assert "runtime 'bad' is not available (no licence)" in text
    with pytest.raises(ModelLoadError, match="no runtime is installed"):
        choose(artifact(tmp_path), {})


def test_a_probe_that_fails_is_not_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = Toy()
    (tmp_path / "model.toy").touch()
    assert choose(artifact(tmp_path), {"bad": Hysterical(), "toy": toy}) is toy
    assert "failed to probe" in caplog.text
