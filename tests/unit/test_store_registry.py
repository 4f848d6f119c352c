"""The registry of object stores: layout, what is read when, what is believed, what is written."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from functools import partial
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import pytest

from gateway.artifacts import stores
from gateway.artifacts.base import Origin, RemoteFile
from gateway.artifacts.stores import Stored, StoreOrigin
from gateway.config import Config, RegistryConfig
from gateway.errors import Conflict, FetchError, RegistryError
from gateway.registries.base import AspiredModel, Snapshot
from gateway.registries.files import GONE_SECONDS, SETTLE_SECONDS
from gateway.registries.first_looks import first_looks
from gateway.registries.polling import pause_after
from gateway.registries.remembered import FOLDER, WRITE_SECONDS
from gateway.registries.stores import StoreRegistry
from gateway.registries.stores_place import Seen, dump, load
from gateway.registries.stores_shelves import BucketShelf, Files
from gateway.registries.traffic import Traffic
from gateway.state import StateDir, file_name
from gateway.threads import Threads
from tests.support.gateway import ROOT

PATIENCE = 20.0


class Shelf:
    """A store in memory that counts what is asked of it."""

    uri = "s3://b/models"
    writable = True

    def __init__(self, *, loose: bool = False, name: str = "models", one: bool = False) -> None:
        self.loose, self.name, self.one = loose, name, one
        self.objects: dict[str, bytes] = {}
        self.lists = 0
        self.reads: list[str] = []
        self.error: FetchError | None = None
        self.read_error: FetchError | None = None
        self.write_error: FetchError | None = None

    def put(self, *names: str, data: bytes | str = b"x") -> None:
        for name in names:
            self.objects[name] = data.encode() if isinstance(data, str) else data

    def files(self) -> Files:
        self.lists += 1
        if self.error is not None:
            raise self.error
        return tuple(
            RemoteFile(name, len(data), md5(data).hexdigest(), locator=f"models/{name}")
            for name, data in sorted(self.objects.items())
        )

    def is_file(self, files: Files) -> bool:
        return self.one

    def read(self, file: RemoteFile) -> bytes:
        self.reads.append(file.name)
        if self.read_error is not None:
            raise self.read_error
        return self.objects[file.locator.removeprefix("models/")]

    def write(self, name: str, content: bytes, etag: str) -> str:
        if self.write_error is not None:
            raise self.write_error
        there = self.objects.get(name)
        if etag != ("" if there is None else md5(there).hexdigest()):
            raise FetchError("it changed", changed=True)
        self.objects[name] = content
        return md5(content).hexdigest()

    def origin(self, uri: str, folder: str, files: Files) -> Origin:
        return StoreOrigin(uri, folder, files)


class Watched:
    """A registry over a store, under a clock of its own."""

    def __init__(self, shelf: Shelf, state: StateDir | None = None) -> None:
        self.shelf = shelf
        self.time = 100.0
        self.registry = StoreRegistry(
            shelf.uri, Config(), state, now=lambda: self.time, shelf=shelf
        )

    def look(self, after: float = 0.0) -> Snapshot:
        self.time += after + 0.001
        return self.registry.scan()

    def settle(self) -> Snapshot:
        self.look()
        self.look(SETTLE_SECONDS)
        return self.look(GONE_SECONDS)


def scan(shelf: Shelf) -> Snapshot:
    return Watched(shelf).look()


def names(model: AspiredModel, version: str) -> list[str]:
    origin = model.versions[version].origin
    assert origin is not None and origin.folder == version
    return [file.name for file in origin.files()]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


# --- layout


def test_the_layout_of_directories(shelf: Shelf) -> None:
    shelf.put("a/1/model.onnx", "a/2/model.onnx", "a/10/deep/er/model.onnx", "b/3/model.py")
    shelf.put("a/model.yaml", data="versions: {all: true}\nmax_batch_size: 3")
    shelf.put("a/config.pbtxt", data='backend: "onnxruntime"')
    shelf.put("a/traffic.yaml", data="weights: {2: 5}")
    shelf.put("a/labels.txt", "a/warmup/x", "a/01/model.onnx", "a/.hidden/y", "README.md")
    shelf.put("b/3/__pycache__/model.pyc", "bad name/1/model.onnx", "empty/notes.txt")
    watched = Watched(shelf)
    snapshot = watched.look()
    assert list(snapshot) == ["a", "b"]
    a, b = snapshot["a"], snapshot["b"]
    assert list(a.versions) == ["1", "2", "10"] == list(a.on_disk)
    assert (a.settings.max_batch_size, a.settings.runtime) == (3, "onnx")
    assert a.traffic == Traffic(weights={"2": 5})
    assert names(a, "10") == ["10/deep/er/model.onnx", "labels.txt", "warmup/x"]
    assert names(b, "3") == ["3/model.py"]
    assert a.versions["2"].source == "s3://b/models/a/2" and not a.error
    ignored = watched.registry._catalogue.ignored
    assert set(ignored) == {"bad name", "a/01", "empty"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["1/model.onnx", "2/model.onnx", "model.yaml"], {"models": ["2"]}),
        (["1/model.onnx"], {"models": ["1"]}),
        (["model.onnx"], {"models": ["1"]}),
        (["model.yaml", "model.onnx"], {"models": ["1"]}),
        (["1/1/model.onnx", "m/2/model.onnx"], {"m": ["2"]}),
        (["m/1/model.onnx", "README.md"], {"m": ["1"]}),
        (["m/model.onnx"], {}),
        ([], {}),
    ],
)
def test_what_a_prefix_is(files: list[str], expected: dict[str, list[str]], shelf: Shelf) -> None:
    shelf.put(*[name for name in files if name != "model.yaml"])
    if "model.yaml" in files:
        shelf.put("model.yaml", data="max_batch_size: 2")
    found = {
        name: list(model.versions) for name, model in scan(shelf).items() if name.isidentifier()
    }
    assert found == expected


def test_what_it_is_stays(shelf: Shelf) -> None:
    watched = Watched(shelf)
    assert watched.look() == {}
    shelf.put("m/1/model.onnx")
    watched.settle()
    shelf.put("1/model.onnx")
    assert list(watched.settle()) == ["m"]


@pytest.mark.parametrize(
    ("name", "model", "file"),
    [
        ("net.onnx", "net", "net.onnx"),
        ("net.tar.gz", "net", None),
        ("net.v2.zip", "net.v2", None),
        ("plus.py", "plus", "plus.py"),
    ],
)
def test_one_file_is_one_model(name: str, model: str, file: str | None) -> None:
    shelf = Shelf(name=name, one=True)
    shelf.put(name)
    (only,) = scan(shelf).values()
    assert (only.name, only.settings.file, list(only.versions)) == (model, file, ["1"])
    assert only.versions["1"].source == shelf.uri
    watched = Watched(shelf)
    watched.look()
    with pytest.raises(RegistryError, match="single file"):
        watched.registry.write_traffic(model, Traffic())


@pytest.mark.parametrize(
    ("files", "file"),
    [
        (["model.onnx", "other.onnx"], None),
        (["onnx/model.onnx", "onnx/model_fp16.onnx", "config.json"], "onnx/model.onnx"),
        (["net.onnx", "config.json"], "net.onnx"),
        (["a.onnx", "b.onnx"], None),
        (["pytorch_model.bin"], None),
        (["MLmodel", "data/net.onnx"], None),
    ],
)
def test_the_file_that_is_meant(files: list[str], file: str | None) -> None:
    shelf = Shelf(loose=True, name="bert")
    shelf.put(*files)
    (only,) = scan(shelf).values()
    assert (only.name, only.settings.file) == ("bert", file)


def test_a_document_says_which_file(shelf: Shelf) -> None:
    shelf.put("a.onnx", "b.onnx")
    shelf.put("model.yaml", data="file: b.onnx")
    assert scan(shelf)["models"].settings.file == "b.onnx"


def test_a_model_on_another_server_needs_no_versions(shelf: Shelf) -> None:
    shelf.put("r/model.yaml", data="runtime: oip\nremote: {url: 'http://127.0.0.1:1'}")
    version = scan(shelf)["r"].versions["1"]
    assert version.origin is None and not version.path.exists()


# --- what is asked for


def test_nothing_is_read_where_nothing_changed(shelf: Shelf) -> None:
    for number in range(20):
        shelf.put(f"m{number}/1/model.onnx", f"m{number}/2/model.onnx")
        shelf.put(f"m{number}/model.yaml", data=f"max_batch_size: {number + 1}")
    watched = Watched(shelf)
    first = watched.look()
    assert len(shelf.reads) == 20 and shelf.lists == 1
    assert watched.look(5) is first and shelf.lists == 2
    shelf.put("m3/model.yaml", data="max_batch_size: 99")
    assert watched.look()["m3"].settings.max_batch_size == 99
    assert len(shelf.reads) == 21 and shelf.lists == 3


def test_a_document_that_cannot_be_read_keeps_everything_as_it_was(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx")
    watched = Watched(shelf)
    before = watched.look()
    shelf.put("m/model.yaml", data="max_batch_size: 9")
    shelf.put("n/1/model.onnx")
    shelf.read_error = FetchError("denied")
    with pytest.raises(RegistryError, match="denied"):
        watched.look()
    assert watched.registry._last is before
    shelf.read_error = None
    assert watched.settle()["m"].settings.max_batch_size == 9


def test_wrong_documents_keep_what_was_good(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx")
    shelf.put("m/model.yaml", data="max_batch_size: 4")
    shelf.put("m/traffic.yaml", data="weights: {1: 3}")
    watched = Watched(shelf)
    good = watched.look()["m"]
    for name, text in (
        ("model.yaml", "max_batch_sise: 4"), ("model.yaml", "["), ("model.yaml", "- a"),
        ("model.yaml", b"\xff"), ("traffic.yaml", "weights: {1: -1}"), ("traffic.yaml", ""),
    ):  # fmt: skip
        shelf.put(f"m/{name}", data=text)
        model = watched.look()["m"]
        assert f"m/{name}" in model.error and "\n" not in model.error
        assert (model.versions, model.settings) == (good.versions, good.settings)
        assert model.traffic == good.traffic
        shelf.put("m/model.yaml", data="max_batch_size: 4")
        shelf.put("m/traffic.yaml", data="weights: {1: 3}")
        assert watched.look()["m"] == good


# --- what is believed


def test_an_upload_in_progress_is_left_alone(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx")
    watched = Watched(shelf)
    watched.look()
    for number in range(4):  # file after file
        shelf.put(f"m/2/part{number}")
        assert list(watched.look(SETTLE_SECONDS)["m"].versions) == ["1"]
        assert watched.registry._catalogue.unsettled
    model = watched.look(SETTLE_SECONDS)["m"]
    assert list(model.versions) == ["2"] and len(names(model, "2")) == 4


def test_declared_digests(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx", "m/1/deep/data")
    digest = sha256(b"x").hexdigest()
    shelf.put("m/1/SHA256SUMS", data=f"{digest}  ./model.onnx\n{digest} *deep/data\n")
    origin = scan(shelf)["m"].versions["1"].origin
    assert origin is not None
    assert {f.name: f.sha256 for f in origin.files()} == {
        "1/model.onnx": digest, "1/deep/data": digest, "1/SHA256SUMS": "",
    }  # fmt: skip


@pytest.mark.parametrize("at_first", [True, False])
def test_a_version_whose_declared_files_are_not_there_yet(at_first: bool, shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx")
    watched = Watched(shelf)
    if not at_first:
        watched.look()
    shelf.put("m/2/SHA256SUMS", data=f"{sha256(b'x').hexdigest()}  model.onnx")
    for _ in range(3):
        assert list(watched.look(GONE_SECONDS)["m"].versions) == ["1"]
    shelf.put("m/2/model.onnx")
    assert list(watched.settle()["m"].versions) == ["2"]
    # While it is put there anew, what was there holds.
    before = watched.look()["m"].versions
    del shelf.objects["m/2/model.onnx"]
    assert watched.settle()["m"].versions == before


def test_what_changes_a_fingerprint(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx", "m/labels.txt")
    watched = Watched(shelf)
    marks = [watched.look()["m"].versions["1"].fingerprint]
    for name in ("m/1/model.onnx", "m/labels.txt", "m/1/more"):
        shelf.put(name, data=f"new {name}")
        marks.append(watched.settle()["m"].versions["1"].fingerprint)
    assert len(set(marks)) == 4
    shelf.put("m/traffic.yaml", data="weights: {1: 1}")
    shelf.put("other/1/model.onnx")
    assert watched.settle()["m"].versions["1"].fingerprint == marks[-1]


def test_pins(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx", "m/2/model.onnx", "m/3/model.onnx")
    watched = Watched(shelf)
    assert list(watched.look()["m"].versions) == ["3"]
    watched.registry.pin("m", frozenset(("1", "7")))
    assert list(watched.settle()["m"].versions) == ["1", "3"]
    watched.registry.pin("m", frozenset())
    assert list(watched.settle()["m"].versions) == ["3"]


# --- splits


def test_a_split_is_written_where_it_stands(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx")
    watched = Watched(shelf)
    watched.look()
    for weight in (1, 2):  # the second stands on the first, which was not read yet
        watched.registry.write_traffic("m", Traffic(weights={"1": weight}))
    assert b"'1': 2" in shelf.objects["m/traffic.yaml"]
    assert watched.look()["m"].traffic == Traffic(weights={"1": 2})
    shelf.put("m/traffic.yaml", data="weights: {1: 5}")
    with pytest.raises(Conflict, match="changed in s3://b/models meanwhile"):
        watched.registry.write_traffic("m", Traffic(weights={"1": 3}))
    assert watched.look()["m"].traffic == Traffic(weights={"1": 5})
    watched.registry.write_traffic("m", Traffic(weights={"1": 3}))
    assert watched.look()["m"].traffic == Traffic(weights={"1": 3})


def test_a_split_written_while_the_last_one_is_read(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx")
    watched = Watched(shelf)
    watched.look()
    watched.registry.write_traffic("m", Traffic(weights={"1": 1}))
    read = shelf.read

    def meanwhile(file: RemoteFile) -> bytes:
        content = read(file)
        shelf.read = read  # type: ignore[method-assign]
        watched.registry.write_traffic("m", Traffic(weights={"1": 2}))
        return content

    shelf.read = meanwhile  # type: ignore[method-assign]
    watched.look()
    watched.registry.write_traffic("m", Traffic(weights={"1": 3}))
    assert watched.look()["m"].traffic == Traffic(weights={"1": 3})


def test_a_split_that_may_not_be_written_is_kept(shelf: Shelf, state: StateDir) -> None:
    shelf.put("m/1/model.onnx")
    shelf.put("m/traffic.yaml", data="weights: {1: 5}")
    watched = Watched(shelf, state)
    watched.look()
    shelf.write_error = FetchError("no", denied=True)
    watched.registry.write_traffic("m", Traffic(weights={"1": 3}))
    for each in (watched, Watched(shelf, state)):
        assert each.look()["m"].traffic == Traffic(weights={"1": 3})
    shelf.write_error = FetchError("it does not answer")
    with pytest.raises(RegistryError, match="cannot be stored: it does not answer"):
        watched.registry.write_traffic("m", Traffic(weights={"1": 4}))
    without = Watched(shelf)
    without.look()
    shelf.write_error = FetchError("no", denied=True)
    with pytest.raises(RegistryError, match="no state_dir"):
        without.registry.write_traffic("m", Traffic(weights={"1": 4}))
    # What is declared anew wins.
    shelf.put("m/traffic.yaml", data="weights: {1: 6}")
    assert watched.look()["m"].traffic == Traffic(weights={"1": 6})


# --- when it is gone


def test_what_is_remembered_serves_a_start(
    shelf: Shelf, state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.put("m/1/model.onnx", "m/2/model.onnx")
    shelf.put("m/model.yaml", data="max_batch_size: 4\nversions: {all: true}")
    shelf.put("m/traffic.yaml", data="weights: {1: 5}")
    before = Watched(shelf, state).look()
    shelf.error = FetchError("the store does not answer")
    watched = Watched(shelf, state)
    with caplog.at_level(logging.ERROR):
        assert watched.look() == before
    assert caplog.text.count("starting with what was there on 20") == 1
    with pytest.raises(RegistryError, match="does not answer"):
        watched.look()
    shelf.error = None
    shelf.put("m/3/model.onnx")
    assert list(watched.settle()["m"].versions) == ["1", "2", "3"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"kind": "models", "files": [[]]}'])
def test_what_is_remembered_may_be_broken(content: bytes, shelf: Shelf, state: StateDir) -> None:
    state.write(content, FOLDER, file_name(shelf.uri))
    shelf.error = FetchError("the store does not answer")
    with pytest.raises(RegistryError, match="does not answer"):
        Watched(shelf, state).look()


def test_a_look_survives_being_written_down() -> None:
    file = RemoteFile("m/é", 3, '"e"', "ab", "k", archive=True)
    seen = Seen("models", (file,), {"k": ('"e"', bytes(range(256)))})
    assert load(dump(seen)) == seen


# --- what it costs


def test_only_what_changed_is_looked_into(shelf: Shelf) -> None:
    for name in "abc":
        shelf.put(f"{name}/1/model.onnx")
        shelf.put(f"{name}/1/SHA256SUMS", data=f"{sha256(b'x').hexdigest()}  model.onnx")
    watched = Watched(shelf)
    before = watched.look()
    place = watched.registry._place
    models = dict(place._models)
    trees = {name: model.trees["1"] for name, model in models.items()}
    shelf.put("b/2/model.onnx")
    after = watched.settle()
    assert list(after["b"].versions) == ["2"] and after["a"] == before["a"]
    assert {n for n, m in place._models.items() if m is not models[n]} == {"b"}
    assert place._models["a"].trees["1"] is trees["a"]
    shelf.put("a/1/SHA256SUMS", data=f"{'0' * 64}  model.onnx")
    assert watched.settle()["a"].versions["1"] != before["a"].versions["1"]


def test_files_of_a_bucket_that_did_not_change_stay_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = [Stored(f"p/m/{n}/model.onnx", n, f"e{n}") for n in range(1, 5)]
    monkeypatch.setattr(stores, "list_objects", lambda *_: list(objects))
    bucket = BucketShelf("s3://b/p")
    before = bucket.files()
    assert (before[0].name, before[0].identity) == ("m/1/model.onnx", "e1")
    assert bucket.files() is before
    objects[1] = Stored("p/m/2/model.onnx", 2, "other")
    objects.append(Stored("p/m/5/model.onnx", 5, "e5"))
    after = bucket.files()
    assert [new is old for new, old in zip(after, before, strict=False)] == [
        True, False, True, True,
    ]  # fmt: skip
    assert after[1].identity == "other" and after[4].name == "m/5/model.onnx"


def test_what_is_remembered_is_written_now_and_then_and_at_the_end(
    shelf: Shelf, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("gateway.registries.remembered.time.monotonic", lambda: now[0])
    shelf.put("m/1/model.onnx")
    watched = Watched(shelf, state)

    def kept() -> int:
        content = state.read(FOLDER, file_name(shelf.uri))
        assert content is not None
        return len(load(content).files)

    watched.look()
    assert kept() == 1
    shelf.put("m/2/model.onnx")
    watched.look()
    assert kept() == 1
    now[0] += WRITE_SECONDS
    watched.look()  # nothing changed, and it is written all the same
    assert kept() == 2
    shelf.put("m/3/model.onnx")
    watched.look()
    assert kept() == 2
    watched.registry.close()
    assert kept() == 3


def test_pauses() -> None:
    for _ in range(50):
        assert 4.5 <= pause_after(5.0, 0, 60.0) <= 5.5
        assert 18 <= pause_after(5.0, 2, 60.0) <= 22
        assert 54 <= pause_after(5.0, 500, 60.0) <= 66
        assert 90 <= pause_after(100.0, 3, 60.0) <= 110
        # A look that keeps a processor busy is not made again and again.
        assert 36 <= pause_after(5.0, 0, 60.0, busy=2.0) <= 44


# --- digests that cannot be read, files that are not there


@pytest.mark.parametrize("at_first", [True, False])
@pytest.mark.parametrize(
    ("sums", "why"),
    [
        ("nonsense", "line 1 is not"),
        (f"{'0' * 64}  model.onnx\n{'0' * 63}  x", "line 2 is not"),
        ("", "it names no file"),
        (b"\xff\xfe", "it is no text"),
    ],
)
def test_malformed_digests_switch_nothing_off(
    sums: str | bytes, why: str, at_first: bool, shelf: Shelf
) -> None:
    shelf.put("m/1/model.onnx", "m/2/model.onnx", "other/1/model.onnx")
    watched = Watched(shelf)
    shelf.put("m/2/SHA256SUMS", data=sums)
    if not at_first:
        del shelf.objects["m/2/SHA256SUMS"], shelf.objects["m/2/model.onnx"]
        watched.look()
        shelf.put("m/2/model.onnx")
        shelf.put("m/2/SHA256SUMS", data=sums)
    for _ in range(3):
        snapshot = watched.look(GONE_SECONDS)
    assert list(snapshot["m"].versions) == ["1"]
    assert f"2/SHA256SUMS: {why}" in snapshot["m"].error and not snapshot["other"].error
    assert not watched.registry._catalogue.unsettled  # no reason to look more often
    shelf.put("m/2/SHA256SUMS", data=f"{sha256(b'x').hexdigest()}  model.onnx")
    mended = watched.settle()["m"]
    assert list(mended.versions) == ["2"] and not mended.error


def test_a_serving_version_stays_when_its_digests_cannot_be_read(shelf: Shelf) -> None:
    shelf.put("m/1/model.onnx")
    watched = Watched(shelf)
    before = watched.look()["m"]
    shelf.put("m/1/SHA256SUMS", data="nonsense")
    after = watched.settle()["m"]
    assert after.versions == before.versions and "1/SHA256SUMS" in after.error


@pytest.mark.parametrize("others", [True, False])
def test_missing_files_are_named(others: bool, shelf: Shelf) -> None:
    digest = sha256(b"x").hexdigest()
    shelf.put("m/2/SHA256SUMS", data="".join(f"{digest}  part{n}\n" for n in range(9)))
    if others:
        shelf.put("m/1/model.onnx")
    model = scan(shelf)["m"]
    assert list(model.versions) == (["1"] if others else [])
    assert model.error == (
        "version 2 waits for 'part0', 'part1', 'part2', 'part3', 'part4', ..., which its "
        "SHA256SUMS names"
    )


# --- the first look


class Hanging(Shelf):
    """Does not answer until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()

    def files(self) -> Files:
        assert self.may.wait(PATIENCE)
        return super().files()


def test_a_source_that_hangs_starts_with_what_is_remembered(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        shelf = Hanging()
        shelf.put("m/1/model.onnx")
        shelf.may.set()
        before = Watched(shelf, state).look()
        shelf.may.clear()
        shelf.put("m/2/model.onnx")
        hung = Watched(shelf, state).registry
        other = polled(Shelf(), 1)
        first = await first_looks([hung, other], watched=False, patience=0.05)
        assert first[0].snapshot == before and first[1].late is None
        assert "does not answer; starting with what was there" in caplog.text
        assert hung.trouble
        shelf.may.set()
        assert list((await first[0].answer() or {})["m"].versions) == ["1"]  # 2 must settle

    asyncio.run(run())


def test_a_source_that_hangs_keeps_no_others_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        hanging, good = Hanging(), Shelf()
        hanging.put("late/1/model.onnx")
        good.put("m/1/model.onnx")
        registries = [polled(hanging, 1), polled(good, 1)]
        late, there = await first_looks(registries, watched=True, patience=0.05)
        assert list(there.snapshot) == ["m"] and there.late is None
        assert late.snapshot == {} and "starting without its models" in caplog.text
        assert registries[0].trouble == "s3://b/models does not answer"
        hanging.may.set()
        assert list(await late.answer() or {}) == ["late"]
        assert await late.answer() is None
        # Who does not watch would never hear of it.
        hanging.may.clear()
        waiting = asyncio.create_task(
            first_looks([polled(hanging, 1), *registries[1:]], watched=False, patience=0.05)
        )
        await asyncio.sleep(0.3)
        assert not waiting.done()
        hanging.may.set()
        assert [list(look.snapshot) for look in await waiting] == [["late"], ["m"]]

    asyncio.run(run())


def test_a_source_that_fails_at_first_ends_the_start() -> None:
    async def run() -> None:
        hanging, bad = Hanging(), Shelf()
        bad.error = FetchError("denied")
        with pytest.raises(RegistryError, match="denied"):
            await first_looks([polled(hanging, 1), polled(bad, 1)], watched=True, patience=PATIENCE)
        hanging.may.set()

    asyncio.run(run())


# --- threads that may hang


def test_a_thread_that_hangs_keeps_no_process() -> None:
    script = """
import asyncio, threading
from gateway.threads import Threads, in_thread
hang = threading.Event().wait
async def run():
    try:
        await asyncio.wait_for(in_thread(hang), 0.05)
    except TimeoutError:
        print("given up")
    assert await in_thread(divmod, 7, 3) == (2, 1)
pool = Threads(1, "x")
pool.submit(hang)
waiting = pool.submit(hang)
pool.close()
assert waiting.cancelled()
asyncio.run(run())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "given up\n", "")


def test_threads_in_turn() -> None:
    pool = Threads(2, "x")
    together: list[int] = []
    running = [0]
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            running[0] += 1
            together.append(running[0])
        with lock:
            running[0] -= 1
        if number == 7:
            raise ValueError(number)
        return number

    futures = [pool.submit(partial(work, number)) for number in range(20)]
    for number, future in enumerate(futures):
        if number == 7:
            with pytest.raises(ValueError, match="7"):
                future.result(PATIENCE)
        else:
            assert future.result(PATIENCE) == number
    assert max(together) <= 2


# --- watching


class Follower:
    """A watch that runs, with what it told."""

    def __init__(self, registry: StoreRegistry) -> None:
        self.told: list[Snapshot] = []
        self.task = asyncio.create_task(registry.watch(self.changed))

    async def changed(self, snapshot: Snapshot) -> None:
        self.told.append(snapshot)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.registries.stores.SETTLE_SECONDS", 0.01)


def polled(shelf: Shelf, seconds: float) -> StoreRegistry:
    config = Config(registry=RegistryConfig(poll_seconds=seconds))
    return StoreRegistry(shelf.uri, config, None, shelf=shelf)


def test_trouble_is_said_once_and_its_end_too(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        shelf.put("m/1/model.onnx")
        registry = polled(shelf, 0.01)
        registry.scan()
        with caplog.at_level(logging.INFO):
            async with Follower(registry) as follower:
                await follower.until(lambda: follower.told)
                shelf.error = FetchError("gone for now")
                lists = shelf.lists
                await follower.until(lambda: shelf.lists >= lists + 4)
                shelf.error = None
                await follower.until(lambda: "can be read again" in caplog.text)
        assert caplog.text.count("serving goes on with what is loaded") == 1
        assert len(follower.told) == 1  # nothing had changed

    asyncio.run(run())


def test_a_hint_is_followed_at_once(shelf: Shelf, quick: None) -> None:
    async def run() -> None:
        shelf.put("m/1/model.onnx")
        registry = polled(shelf, 3600)
        registry.scan()
        async with Follower(registry) as follower:
            await follower.until(lambda: follower.told)
            shelf.put("m/2/model.onnx")
            registry.hint()
            await follower.until(lambda: list(follower.told[-1]["m"].versions) == ["2"])
            # A lost race is a reason to look, too.
            shelf.put("m/traffic.yaml", data="weights: {2: 8}")
            with pytest.raises(Conflict):
                await asyncio.to_thread(registry.write_traffic, "m", Traffic(weights={"2": 1}))
            await follower.until(lambda: follower.told[-1]["m"].traffic.weights == {"2": 8})

    asyncio.run(run())
