"""The directory registry: what it takes for a model, what it waits for, what it survives."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, RegistryConfig
from gateway.errors import RegistryError
from gateway.registries.base import AspiredModel, Snapshot
from gateway.registries.directory import DirectoryRegistry
from gateway.registries.files import GONE_SECONDS, SETTLE_SECONDS
from gateway.registries.sources import open_registry
from gateway.registries.traffic import Traffic, read_traffic, write_traffic

PATIENCE = 20.0


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Watched:
    """A registry that has been scanned once, under a clock of its own."""

    def __init__(self, root: Path) -> None:
        self.clock = Clock()
        self.registry = DirectoryRegistry(root, RegistryConfig(poll_seconds=0.2), self.clock)
        self.snapshot = self.registry.scan()

    def look(self, after: float = 0.0) -> Snapshot:
        self.clock.time += after + 0.001
        self.snapshot = self.registry.scan()
        return self.snapshot

    def settle(self) -> Snapshot:
        """Looks until nothing is waited for."""
        self.look()
        for _ in range(5):
            if not self.registry.unsettled:
                return self.snapshot
            self.look(GONE_SECONDS)
        raise AssertionError("it never settles")


def put(root: Path, *names: str, data: bytes = b"model") -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "model.onnx").write_bytes(data)


def say(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)


def versions(model: AspiredModel) -> list[str]:
    return list(model.versions)


def scan(root: Path) -> Snapshot:
    return DirectoryRegistry(root, RegistryConfig()).scan()


# --- what is a model


def test_tritons_layout(tmp_path: Path) -> None:
    put(tmp_path, "a/1", "a/2", "a/10", "b/3")
    snapshot = scan(tmp_path)
    assert list(snapshot) == ["a", "b"]
    assert snapshot["a"].on_disk == ("1", "2", "10")
    assert versions(snapshot["a"]) == ["10"]
    assert snapshot["a"].versions["10"].path == tmp_path / "a" / "10"
    assert snapshot["a"].error == snapshot["b"].error == ""


def test_folders_that_are_no_versions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "m/1", "m/01", "m/0", "m/-1", "m/1.5", "m/v2", "m/latest", "m/.3", "m/warmup")
    say(tmp_path, "m/4", "a file is no version")
    with caplog.at_level(logging.WARNING, "sluice"):
        snapshot = scan(tmp_path)
    assert snapshot["m"].on_disk == ("1",)
    told = {r.getMessage().split("'")[1] for r in caplog.records}
    assert told == {"m/01", "m/0", "m/1.5", "m/v2"}  # what was meant to be a version


def test_folders_that_are_no_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "m/1", ".git/1", "with space/1", "notes/drafts")
    say(tmp_path, "README.md", "hello")
    (tmp_path / "empty").mkdir()
    registry = DirectoryRegistry(tmp_path, RegistryConfig())
    with caplog.at_level(logging.WARNING, "sluice"):
        for _ in range(3):
            assert list(registry.scan()) == ["m"]
    assert registry.ignored.keys() == {"empty", "notes", "with space"}
    assert len(caplog.records) == 3, "each is said once"
    put(tmp_path, "empty/1")
    registry.scan()
    assert "empty" not in registry.ignored


def test_a_model_without_versions_says_so(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    say(tmp_path, "m/model.yaml", "max_batch_size: 4\n")
    assert scan(tmp_path)["m"].error == "it has no version folders such as 1/"


def test_one_models_folder_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "digits/1", "digits/2", "digits/notes")
    assert list(scan(tmp_path / "digits")) == ["digits"]
    monkeypatch.chdir(tmp_path / "digits")
    assert list(scan(Path())) == ["digits"]
    os.symlink(tmp_path / "digits", tmp_path / "other")
    assert list(scan(tmp_path / "other")) == ["other"]


def test_a_number_among_models_is_a_models_name(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "2024/1")
    assert list(scan(tmp_path)) == ["2024", "m"]


def test_what_a_source_is_never_changes(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    watched = Watched(tmp_path)
    put(tmp_path, "1")
    assert list(watched.settle()) == ["m"]


def test_one_file_is_a_source(tmp_path: Path) -> None:
    say(tmp_path, "net.onnx", "model")
    registry = open_registry(str(tmp_path / "net.onnx"), Config())
    (model,) = registry.scan().values()
    assert (model.name, versions(model)) == ("net", ["1"])
    assert model.versions["1"].path / str(model.settings.file) == tmp_path / "net.onnx"
    with pytest.raises(RegistryError, match="single file"):
        registry.write_traffic("net", Traffic())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "does not exist; give a directory"),
        ("notes.txt", "put it into a directory"),
        ("ftp://host/models", "scheme 'ftp' is not known"),
    ],
)
def test_sources_that_cannot_be(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    say(tmp_path, "notes.txt", "")
    with pytest.raises(RegistryError, match=message):
        open_registry(source, Config())


def test_a_file_uri(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    assert list(open_registry(f"file://{tmp_path}", Config()).scan()) == ["m"]


# --- which versions


@pytest.mark.parametrize(
    ("documents", "wanted"),
    [
        ({}, ["4"]),
        ({"model.yaml": "versions: {latest: 2}"}, ["3", "4"]),
        ({"model.yaml": "versions: {all: true}"}, ["1", "2", "3", "4"]),
        ({"model.yaml": "versions: {specific: [1, 3, 9]}"}, ["1", "3"]),
        ({"config.pbtxt": "version_policy { all {} }"}, ["1", "2", "3", "4"]),
        ({"config.pbtxt": "version_policy { specific { versions: [2] } }"}, ["2"]),
        ({"traffic.yaml": "weights: {1: 90, 2: 10}"}, ["1", "2", "4"]),
        ({"traffic.yaml": "weights: {9: 100}"}, ["4"]),
        ({"traffic.yaml": "stable: 3"}, ["3", "4"]),
        ({"traffic.yaml": "labels: {blue: 2}"}, ["2", "4"]),
        ({"model.yaml": "labels: {blue: 2}"}, ["2", "4"]),
        (
            {"model.yaml": "versions: {specific: [1]}", "traffic.yaml": "weights: {2: 1}"},
            ["1", "2"],
        ),
    ],
)
def test_version_policies(documents: dict[str, str], wanted: list[str], tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/2", "m/3", "m/4")
    for name, text in documents.items():
        say(tmp_path, f"m/{name}", text)
    model = scan(tmp_path)["m"]
    assert model.error == ""
    assert versions(model) == wanted


def test_a_policy_that_chooses_nothing_says_so(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/2")
    say(tmp_path, "m/model.yaml", "versions: {specific: [7]}")
    model = scan(tmp_path)["m"]
    assert model.error == "its version policy chooses none of the versions 1, 2"


def test_older_versions_stand_in_only_where_the_latest_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/2", "m/3", "m/4")
    assert list(scan(tmp_path)["m"].stand_ins) == ["3", "2"]
    say(tmp_path, "m/model.yaml", "versions: {specific: [4]}")
    assert not scan(tmp_path)["m"].stand_ins


# --- documents


def test_documents_complete_each_other(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    say(tmp_path, "m/config.pbtxt", "max_batch_size: 8\ndynamic_batching { }")
    say(tmp_path, "m/model.yaml", "labels: {blue: 1}\nlimits: {max_rows: 5}")
    say(tmp_path, "m/traffic.yaml", "weights: {1: 100}")
    model = scan(tmp_path)["m"]
    assert model.settings.max_batch_size == 8
    assert model.settings.limits.max_rows == 5
    assert model.settings.labels == {"blue": "1"}
    assert model.traffic.weights == {"1": 100}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.yaml", "max_batchsize: 3", "did you mean 'max_batch_size'"),
        ("model.yaml", "batching: {max_delay: 3}", "did you mean 'batching.max_delay_us'"),
        ("model.yaml", "inputs: [{name: x, kind: FP32}]", "unknown key 'inputs[0].kind'"),
        ("model.yaml", "declared: nothing", "unknown key 'declared'"),
        ("model.yaml", "max_batch_size: many", "max_batch_size"),
        ("model.yaml", "max_batch_size: 4", "is set in config.pbtxt too"),
        ("model.yaml", "on_demand: sometimes", "on_demand"),
        ("model.yaml", "inputs: [{name: x, datatype: FLOAT, dims: [4]}]", "datatype 'FLOAT'"),
        ("model.yaml", "a: [", "is not YAML"),
        ("traffic.yaml", "weight: {1: 1}", "did you mean 'weights'"),
        ("config.pbtxt", "max_batch_sise: 4", "max_batch_sise"),
    ],
)
def test_wrong_documents(name: str, text: str, message: str, tmp_path: Path) -> None:
    put(tmp_path, "m/1", "good/1")
    say(tmp_path, "m/config.pbtxt", "max_batch_size: 8")
    say(tmp_path, f"m/{name}", text)
    snapshot = scan(tmp_path)
    assert message in snapshot["m"].error
    assert snapshot["good"].error == ""


def test_a_broken_model_yaml_keeps_what_is_served(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    say(tmp_path, "m/model.yaml", "versions: {all: true}")
    watched = Watched(tmp_path)
    before = watched.snapshot["m"]
    say(tmp_path, "m/model.yaml", "versions: {al")
    put(tmp_path, "m/2")
    broken = watched.settle()["m"]
    assert "is not YAML" in broken.error
    assert broken.versions == before.versions
    # A split still takes effect.
    say(tmp_path, "m/traffic.yaml", "weights: {1: 5}")
    assert watched.settle()["m"].traffic.weights == {"1": 5}
    say(tmp_path, "m/model.yaml", "versions: {all: true}")
    assert versions(watched.settle()["m"]) == ["1", "2"]
    assert watched.snapshot["m"].error == ""


def test_a_broken_traffic_yaml_keeps_the_split_but_not_the_versions(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/2")
    say(tmp_path, "m/traffic.yaml", "weights: {1: 5, 2: 5}")
    watched = Watched(tmp_path)
    say(tmp_path, "m/traffic.yaml", "weights: [")
    put(tmp_path, "m/3")
    model = watched.settle()["m"]
    assert "traffic.yaml is not YAML" in model.error
    assert model.traffic.weights == {"1": 5, "2": 5}
    assert versions(model) == ["1", "2", "3"]


def test_documents_are_read_again_only_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "m/1")
    say(tmp_path, "m/model.yaml", "max_batch_size: 3")
    os.utime(tmp_path / "m" / "model.yaml", (1, 1))
    watched = Watched(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("gateway.registries.directory.read_settings", None)
        patch.setattr("gateway.registries.directory.read_traffic", None)
        assert watched.look()["m"].settings.max_batch_size == 3
    say(tmp_path, "m/model.yaml", "max_batch_size: 5")
    assert watched.look()["m"].settings.max_batch_size == 5


# --- while serving: what still changes is not believed


def test_a_version_that_grows_is_left_alone_until_it_stops(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    watched = Watched(tmp_path)
    put(tmp_path, "m/2", data=b"")
    for size in range(1, 6):
        assert versions(watched.look(SETTLE_SECONDS)["m"]) == ["1"], "the newest is the one before"
        assert watched.registry.unsettled
        (tmp_path / "m/2/model.onnx").write_bytes(b"x" * size)
    watched.look()
    assert versions(watched.look(SETTLE_SECONDS)["m"]) == ["2"]
    assert not watched.registry.unsettled


def test_a_version_in_use_stays_as_it_was_while_its_files_change(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    watched = Watched(tmp_path)
    before = watched.snapshot["m"].versions["1"]
    (tmp_path / "m/1/model.onnx").write_bytes(b"half")
    assert watched.look()["m"].versions["1"] == before
    (tmp_path / "m/1/model.onnx").write_bytes(b"the whole of it")
    assert watched.look(SETTLE_SECONDS)["m"].versions["1"] == before
    assert watched.look(SETTLE_SECONDS)["m"].versions["1"] != before


def test_what_is_not_there_any_more_is_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    say(tmp_path, "m/model.yaml", "versions: {all: true}")
    watched = Watched(tmp_path)
    for _ in range(2):
        put(tmp_path, "m/2", "n/1")
        watched.look()
        assert watched.registry.unsettled
        shutil.rmtree(tmp_path / "m/2")
        shutil.rmtree(tmp_path / "n")
        watched.look()
        assert not watched.registry.unsettled
    put(tmp_path, "m/2")
    watched.look()
    say(tmp_path, "m/model.yaml", "versions: [")
    watched.look()
    assert not watched.registry.unsettled


def test_changed_settings_load_a_version_anew_but_labels_do_not(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    watched = Watched(tmp_path)
    before = watched.snapshot["m"].versions
    say(tmp_path, "m/model.yaml", "labels: {blue: 1}\nversions: {all: true}")
    assert watched.settle()["m"].versions == before
    say(tmp_path, "m/model.yaml", "max_batch_size: 2")
    assert watched.settle()["m"].versions != before


@pytest.mark.parametrize("what", ["m/1", "m", "m/1/model.onnx"])
def test_what_is_replaced_is_never_gone(what: str, tmp_path: Path) -> None:
    put(tmp_path, "m/1", "n/1")
    watched = Watched(tmp_path)
    before = watched.snapshot["m"].versions["1"]
    path = tmp_path / what
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert watched.look()["m"].versions["1"] == before
    assert watched.look(SETTLE_SECONDS / 2)["m"].versions["1"] == before
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    put(tmp_path, "m/1", data=b"new")
    assert watched.look()["m"].versions["1"] == before
    assert watched.settle()["m"].versions["1"] != before


def test_a_removed_version_goes_after_a_while(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/2")
    watched = Watched(tmp_path)
    shutil.rmtree(tmp_path / "m/2")
    watched.look()
    assert versions(watched.look(GONE_SECONDS)["m"]) == ["1"]


def test_a_removed_model_goes_after_a_while(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "n/1")
    watched = Watched(tmp_path)
    shutil.rmtree(tmp_path / "m")
    assert list(watched.look()) == ["n", "m"]
    assert list(watched.look(GONE_SECONDS)) == ["n"]
    put(tmp_path, "m/1", data=b"another")
    assert not watched.look()["m"].versions, "it has to settle like any other"
    assert versions(watched.settle()["m"]) == ["1"]


def test_a_folder_that_cannot_be_read_keeps_what_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "m/1", "n/1")
    watched = Watched(tmp_path)
    before = watched.snapshot["m"].versions
    real = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("/m"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr("gateway.registries.files.os.scandir", refusing)
        for _ in range(3):
            model = watched.look(GONE_SECONDS)["m"]
            assert model.versions == before
            assert "cannot be read: Permission denied" in model.error
    assert watched.look()["m"].error == ""


def test_a_source_that_is_gone_is_an_error_and_not_an_empty_directory(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put(root, "m/1")
    watched = Watched(root)
    before = watched.snapshot
    root.rename(tmp_path / "elsewhere")
    for _ in range(3):
        with pytest.raises(RegistryError, match="does not exist"):
            watched.look(GONE_SECONDS)
    (tmp_path / "elsewhere").rename(root)
    assert watched.look() == before


def test_version_folders_that_are_links(tmp_path: Path) -> None:
    """Kubernetes swaps ``..data`` under links that stay the same."""
    root = tmp_path / "models"
    put(tmp_path, "mount/..2024/1", data=b"old")
    put(tmp_path, "mount/..2025/1", data=b"new!")
    os.symlink("..2024", tmp_path / "mount" / "..data")
    root.joinpath("m").mkdir(parents=True)
    os.symlink(tmp_path / "mount" / "..data" / "1", root / "m" / "1")
    watched = Watched(root)
    before = watched.snapshot["m"].versions["1"]
    os.symlink("..2025", tmp_path / "mount" / "new")
    os.replace(tmp_path / "mount" / "new", tmp_path / "mount" / "..data")
    assert watched.settle()["m"].versions["1"].fingerprint != before.fingerprint


def test_a_link_to_where_nobody_may_look_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "m/1", "m/1/data", "n/1")
    real = os.scandir

    class Refusing:
        def __init__(self, entry: Any) -> None:
            self.name, self.path = entry.name, entry.path
            self.is_file, self.stat, self.real = entry.is_file, entry.stat, entry.is_dir
            self.is_symlink = entry.is_symlink

        def is_dir(self) -> bool:
            if self.name in ("m", "data"):
                raise PermissionError(13, "Permission denied")
            return bool(self.real())

    class Listing(list[Any]):
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    def scandir(path: Any) -> Any:
        with real(path) as entries:
            return Listing(map(Refusing, entries))

    monkeypatch.setattr("gateway.registries.files.os.scandir", scandir)
    assert {name: versions(model) for name, model in scan(tmp_path).items()} == {
        "m": ["1"],
        "n": ["1"],
    }


def test_links_that_lead_in_circles(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    for name in "abcdefgh":
        os.symlink(tmp_path / "m", tmp_path / "m/1" / name)
    assert versions(scan(tmp_path)["m"]) == ["1"]


def test_a_split_that_names_a_new_version_waits_for_it(tmp_path: Path) -> None:
    put(tmp_path, "m/1")
    watched = Watched(tmp_path)
    put(tmp_path, "m/2")
    say(tmp_path, "m/traffic.yaml", "weights: {1: 90, 2: 10}")
    model = watched.look()["m"]
    assert (versions(model), model.traffic.weights) == (["1"], {"1": 90, "2": 10})
    assert versions(watched.settle()["m"]) == ["1", "2"]


# --- splits


def test_a_split_is_where_the_next_start_finds_it(tmp_path: Path) -> None:
    put(tmp_path, "m/1", "m/2")
    registry = DirectoryRegistry(tmp_path, RegistryConfig())
    registry.scan()
    split = Traffic(weights={"1": 90, "2": 10}, stable="1")
    registry.write_traffic("m", split)
    assert scan(tmp_path)["m"].traffic == split
    single = DirectoryRegistry(tmp_path / "m", RegistryConfig())
    single.scan()
    single.write_traffic("m", Traffic(weights={"2": 1}))
    assert read_traffic(tmp_path / "m").weights == {"2": 1}


# --- watching


class Follower:
    """Follows a registry's `watch`."""

    def __init__(self, root: Path) -> None:
        self.registry = DirectoryRegistry(root, RegistryConfig(poll_seconds=0.2))
        self.last: Snapshot = self.registry.scan()
        self.count = 0

    async def changed(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        self.count += 1

    async def until(self, condition: Callable[[Snapshot], object]) -> None:
        for _ in range(int(PATIENCE / 0.01)):
            if condition(self.last):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"waited in vain; last: {self.last}")


def follow(root: Path, test: Callable[[Follower], Any]) -> None:
    async def main() -> None:
        follower = Follower(root)
        watching = asyncio.create_task(follower.registry.watch(follower.changed))
        try:
            await test(follower)
            assert not watching.done()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())


def test_changes_are_told(tmp_path: Path) -> None:
    put(tmp_path, "m/1")

    async def test(follower: Follower) -> None:
        put(tmp_path, "m/2")
        await follower.until(lambda s: versions(s["m"]) == ["2"])
        say(tmp_path, "m/traffic.yaml", "weights: {1: 1}")
        await follower.until(lambda s: s["m"].traffic.weights == {"1": 1})
        put(tmp_path, "n/1")
        await follower.until(lambda s: "n" in s and s["n"].versions)
        shutil.rmtree(tmp_path / "n")
        await follower.until(lambda s: "n" not in s)
        count = follower.count
        await asyncio.sleep(0.5)
        assert follower.count == count, "nothing new, nothing told"

    follow(tmp_path, test)


def test_a_source_may_go_and_come_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "models"
    put(root, "m/1")

    async def test(follower: Follower) -> None:
        await follower.until(lambda s: follower.count)
        root.rename(tmp_path / "elsewhere")
        await asyncio.sleep(1.0)
        assert versions(follower.last["m"]) == ["1"]
        put(tmp_path / "elsewhere", "m/2")
        (tmp_path / "elsewhere").rename(root)
        await follower.until(lambda s: versions(s["m"]) == ["2"])
        put(root, "m/3")
        await follower.until(lambda s: versions(s["m"]) == ["3"])

    with caplog.at_level(logging.INFO, "sluice"):
        follow(root, test)
    assert caplog.text.count("serving goes on with what is loaded") == 1
    assert caplog.text.count("can be read again") == 1


def test_a_single_file_is_followed(tmp_path: Path) -> None:
    say(tmp_path, "net.onnx", "one")

    async def test(follower: Follower) -> None:
        await follower.until(lambda s: follower.count)
        before = follower.last["net"].versions["1"]
        say(tmp_path, "new", "another")
        os.replace(tmp_path / "new", tmp_path / "net.onnx")
        await follower.until(lambda s: s["net"].versions["1"] != before)

    follow(tmp_path / "net.onnx", test)


def test_without_notices_it_looks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "m/1")

    def none_left(*args: Any, **kwargs: Any) -> Any:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr("watchfiles.awatch", none_left)

    async def test(follower: Follower) -> None:
        put(tmp_path, "m/2")
        await follower.until(lambda s: versions(s["m"]) == ["2"])

    follow(tmp_path, test)
    assert caplog.text.count("OS file watch limit reached") == 1


def test_a_split_that_was_just_written_is_not_undone_by_an_older_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "m/1")
    write_traffic(tmp_path / "m", Traffic(weights={"1": 1}))

    async def test() -> None:
        registry = DirectoryRegistry(tmp_path, RegistryConfig())
        registry.scan()
        real = registry.scan

        def slow() -> Snapshot:
            snapshot = real()
            if not registry._writes:
                registry.write_traffic("m", Traffic(weights={"1": 2}))
            return snapshot

        monkeypatch.setattr(registry, "scan", slow)
        snapshot = await registry._look()
        assert snapshot is not None
        assert snapshot["m"].traffic.weights == {"1": 2}

    asyncio.run(test())
