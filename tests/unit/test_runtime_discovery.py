"""Which runtimes are found, and which one is chosen."""

from __future__ import annotations

import json
import logging
import tomllib
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli.runtimes import runtimes as command
from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes import discovery
from runtimes.discovery import (
    BUILT_IN,
    GROUP,
    BrokenRuntime,
    choose,
    installed_runtimes,
    load_runtimes,
)
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
    name = "bad"

    def __init__(self) -> None:
        raise OSError("no\nlicence")


class Exits(Toy):
    name = "bad"

    def __init__(self) -> None:
        raise SystemExit("no licence")


class Nameless(Runtime):
    report, probe, estimate, load = Toy.report, Toy.probe, Toy.estimate, Toy.load


class A(Toy):
    name = "a"


class Fake(Toy):
    name = "onnx"


class Dumb(Toy):
    name = "dumb"

    def report(self) -> RuntimeReport:
        raise RuntimeError("what\nam I")


class Package(Distribution):
    """An installed package."""

    def __init__(self, name: str, version: str = "1.2") -> None:
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return path


def point(name: str, target: str, package: str | None = None) -> EntryPoint:
    made = EntryPoint(name, target if ":" in target else f"{__name__}:{target}", GROUP)
    if package is not None:
        vars(made).update(dist=Package(package))
    return made


def install(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(discovery, "entry_points", lambda group: list(points))


def plugins(monkeypatch: pytest.MonkeyPatch, **targets: str) -> dict[str, Runtime]:
    install(monkeypatch, *(point(name, target) for name, target in targets.items()))
    return load_runtimes()


def artifact(folder: Path, **settings: Any) -> Artifact:
    return Artifact("m", "1", folder, ModelSettings(**settings))


def test_a_checkout_has_the_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = plugins(monkeypatch)
    assert list(runtimes) == list(BUILT_IN)
    assert isinstance(runtimes["onnx"], OnnxRuntime)


def test_the_package_registers_them_too() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][GROUP] == BUILT_IN


def test_plugins_come_after_the_built_in_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(plugins(monkeypatch, toy="Toy", a="A")) == [*BUILT_IN, "a", "toy"]


def test_our_own_entries_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = point("gone", "runtimes.gone:GoneRuntime", "sluicegate")
    install(monkeypatch, point("onnx", BUILT_IN["onnx"], "sluicegate"), stale)
    assert [each.runtime.name for each in installed_runtimes()] == list(BUILT_IN)


def test_a_package_that_is_found_twice_counts_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, point("toy", "Toy", "acme"), point("toy", "Toy", "acme"))
    assert [each.package for each in installed_runtimes() if not each.built_in] == ["acme"]
    assert not caplog.records


def test_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, point("toy", "Toy", "acme-toys"))
    reports = {each.runtime.name: each.report() for each in installed_runtimes()}
    toy, onnx = reports["toy"], reports["onnx"]
    assert (toy.package, toy.package_version, toy.built_in) == ("acme-toys", "1.2", False)
    assert onnx.built_in and onnx.package == "sluicegate"


def test_no_plugin_replaces_a_built_in_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, point("onnx", "Fake", "acme"), point("toy", "Toy", "acme"))
    runtimes = load_runtimes()
    assert list(runtimes) == [*BUILT_IN, "toy"]
    assert isinstance(runtimes["onnx"], OnnxRuntime)
    reason = (
        "runtime 'onnx' of package 'acme' has the name of a built-in runtime and is left out; "
        "give its entry point in 'sluicegate.runtimes' another name"
    )
    assert reason in caplog.text
    [fake] = [each for each in installed_runtimes() if each.runtime.name == "onnx"][1:]
    assert fake.report().reason == reason and not fake.report().available
    assert fake.report().package == "acme"


def test_the_first_of_two_plugins_has_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, point("toy", "A", "zoo"), point("toy", "Toy", "acme"))
    assert isinstance(load_runtimes()["toy"], Toy)
    reasons = [each.report().reason for each in installed_runtimes() if not each.built_in]
    assert reasons[0] == "" and "the runtime of package 'acme'" in reasons[1]


def test_one_that_cannot_say_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, point("dumb", "Dumb", "acme"))
    report = installed_runtimes()[-1].report()
    assert not report.available
    assert report.reason == "runtime 'dumb' cannot say what it is: what am I"
    with pytest.raises(ModelLoadError, match="what am I"):
        choose(artifact(tmp_path), {"dumb": Dumb()})


def test_the_command_shows_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        point("toy", "Toy", "acme"),
        point("onnx", "Fake", "acme"),
        point("bad", "FailsToStart", "worse"),
        point("dumb", "Dumb", "acme"),
    ]
    install(monkeypatch, *points)
    done = CliRunner().invoke(command, ["--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)["runtimes"]
    assert [each["name"] for each in found] == [*BUILT_IN, "bad", "dumb", "onnx", "toy"]
    assert all(each["reason"] for each in found[-4:-1])
    done = CliRunner().invoke(command)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[: len(BUILT_IN) + 1]}
    assert "built in" in lines["onnx"]
    [toy] = [line for line in done.stdout.splitlines() if line.startswith("toy ")]
    assert toy.split() == ["toy", "yes", "toy", "acme", "1.2"]
    assert "mend or uninstall package 'worse'" in done.stdout


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("Missing", "has no attribute"),
        ("FailsToStart", "no licence"),
        ("Exits", "no licence"),
        ("artifact", "cannot be used"),
        ("no_such_module:Runtime", "No module named 'no_such_module'"),
        ("Path", "not a subclass of Runtime"),
        ("Toy", "has the name 'toy'; it must be that of its entry point"),
        ("Nameless", "has the name None"),
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
    assert list(runtimes) == [*BUILT_IN, "bad"]
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
