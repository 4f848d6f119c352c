"""Looks that look at nothing twice: they find whatever a full look finds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import RegistryConfig
from gateway.registries import still
from gateway.registries.base import Snapshot
from gateway.registries.directory import DirectoryRegistry
from gateway.registries.traffic import Traffic
from gateway.state import StateDir

FAR = 3.0
"""Seconds after which a look that finds the same makes sure."""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def replace(path: Path, text: str) -> None:
    """By renaming another file to it."""
    path.with_name(".new").write_text(text)
    path.with_name(".new").replace(path)


def relink(path: Path, target: str) -> None:
    path.with_name(".link").symlink_to(target)
    path.with_name(".link").replace(path)


def moment(folder: Path) -> None:
    """Waits until the file system's clock has moved on."""
    probe = folder / "probe"
    probe.write_text("")
    first = probe.stat().st_mtime_ns
    while probe.stat().st_mtime_ns == first:
        probe.write_text("")


def repository(root: Path) -> None:
    """A model of each kind: plain, with documents, with linked versions, from a config map."""
    write(root / "plain/1/model.onnx", "one")
    write(root / "plain/1/data/weights", "w")
    write(root / "said/1/model.onnx", "one")
    write(root / "said/2/model.onnx", "two")
    write(root / "said/model.yaml", "versions: {latest: 2}\n")
    write(root / "said/traffic.yaml", "weights: {1: 1, 2: 2}\n")
    outside = root.parent / "outside"
    write(outside / "v3/model.onnx", "three")
    write(outside / "v4/model.onnx", "four")
    (outside / "current").symlink_to("v3")
    (root / "linked").mkdir()
    (root / "linked/3").symlink_to(outside / "current")
    (root / "linked/4").symlink_to(outside / "later")
    write(root / "mapped/1/model.onnx", "one")
    for day, weight in (("..a", 1), ("..b", 2)):
        write(root / f"mapped/{day}/traffic.yaml", f"weights: {{1: {weight}}}\n")
    (root / "mapped/..data").symlink_to("..a")
    (root / "mapped/traffic.yaml").symlink_to("..data/traffic.yaml")


def hidden(root: Path) -> Path:
    return root.parent / "outside"


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file is written": lambda r: write(r / "plain/1/model.onnx", "two"),
    "a file far below is written": lambda r: write(r / "plain/1/data/weights", "x"),
    "a file is replaced": lambda r: replace(r / "plain/1/model.onnx", "new"),
    "a file is touched": lambda r: os.utime(r / "plain/1/model.onnx", (1, 1)),
    "a file appears": lambda r: write(r / "plain/1/data/more", "m"),
    "a file vanishes": lambda r: (r / "plain/1/data/weights").unlink(),
    "a folder appears": lambda r: write(r / "plain/1/data/deep/er", "m"),
    "a version appears": lambda r: write(r / "plain/7/model.onnx", "seven"),
    "a version vanishes": lambda r: shutil.rmtree(r / "said/2"),
    "a version is renamed": lambda r: (r / "said/2").rename(r / "said/5"),
    "a version is replaced": lambda r: (
        write(r / "said/.n/model.onnx", "n"),
        (r / "said/2").rename(r / "said/.o"),
        (r / "said/.n").rename(r / "said/2"),
    ),
    "a version that is not wanted appears": lambda r: write(r / "said/0001/model.onnx", "x"),
    "settings are written": lambda r: write(r / "said/model.yaml", "versions: {latest: 1}\n"),
    "settings are replaced": lambda r: replace(r / "said/model.yaml", "versions: {latest: 1}\n"),
    "settings are touched": lambda r: os.utime(r / "said/model.yaml"),
    "settings appear": lambda r: write(r / "plain/model.yaml", "max_batch_size: 3\n"),
    "settings vanish": lambda r: (r / "said/model.yaml").unlink(),
    "settings become wrong": lambda r: write(r / "said/model.yaml", "verzions: 1\n"),
    "a split is written": lambda r: write(r / "said/traffic.yaml", "weights: {1: 5, 2: 5}\n"),
    "a split appears": lambda r: write(r / "plain/traffic.yaml", "weights: {1: 1}\n"),
    "a link leads elsewhere": lambda r: relink(r / "linked/3", str(hidden(r) / "v4")),
    "a link behind a link leads elsewhere": lambda r: relink(hidden(r) / "current", "v4"),
    "a link begins to lead somewhere": lambda r: relink(hidden(r) / "later", "v4"),
    "a link leads nowhere": lambda r: (hidden(r) / "current").unlink(),
    "a file behind a link is written": lambda r: write(hidden(r) / "v3/model.onnx", "x"),
    "a config map is swapped": lambda r: relink(r / "mapped/..data", "..b"),
    "a model appears": lambda r: write(r / "new/1/model.onnx", "n"),
    "a model vanishes": lambda r: shutil.rmtree(r / "plain"),
    "a model is replaced": lambda r: (
        write(r / ".new/1/model.onnx", "n"),
        shutil.rmtree(r / "plain"),
        (r / ".new").rename(r / "plain"),
    ),
}


NO_DIFFERENCE = ("settings are touched", "a version that is not wanted appears")


class Twins:
    """A registry as it is, and one that looks at everything every time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = 0.0
        repository(root)
        config = RegistryConfig()
        state = StateDir(root.parent / "state")
        self.quick = DirectoryRegistry(root, config, lambda: self.clock, state)
        self.full = DirectoryRegistry(root, config, lambda: self.clock)
        self.full._catalogue._local = False

    def look(self, after: float) -> Snapshot:
        """What both find; it is the same."""
        self.clock += after
        quick, full = self.quick.scan(), self.full.scan()
        assert quick == full
        assert self.quick.unsettled == self.full.unsettled
        assert self.quick.ignored == self.full.ignored
        return quick

    def rest(self) -> Snapshot:
        """Until nothing is new any more."""
        for _ in range(3):
            found = self.look(FAR)
        moment(self.root.parent)
        return found

    @property
    def sure(self) -> set[str]:
        """The models that are not looked into."""
        return {name for name, each in self.quick._catalogue._still.items() if each.sure}


@contextmanager
def devices(folder: Path, *, steady: bool) -> Iterator[None]:
    """Whether the folders on that file system tell by their times what has changed."""
    found = frozenset([folder.stat().st_dev] if steady else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.registries.catalogue.steady_devices", lambda: found)
        yield


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[Twins]:
    (tmp_path / "models").mkdir()
    with devices(tmp_path, steady=True):
        yield Twins(tmp_path / "models")


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found(twins: Twins, change: str) -> None:
    before = twins.rest()
    assert twins.sure == set(before)
    CHANGES[change](twins.root)
    twins.look(0.1)
    twins.look(0.3)
    settled = twins.rest()
    assert (settled == before) == (change in NO_DIFFERENCE)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from([0.1, 1.1, FAR])),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_any_changes_in_any_order(changes: list[tuple[str, float]], steady: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, devices(Path(folder), steady=steady):
        root = Path(folder) / "models"
        root.mkdir()
        twins = Twins(root)
        twins.look(0)
        for change, after in changes:
            moment(root.parent)
            try:
                CHANGES[change](root)
            except OSError:
                continue  # what it would change is gone already
            twins.look(after)
            twins.look(after)
        assert twins.rest() == twins.look(FAR)


@pytest.mark.parametrize("steady", [True, False])
def test_what_is_still_is_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady: bool
) -> None:
    root = tmp_path / "models"
    root.mkdir()
    with devices(root, steady=steady):
        twins = Twins(root)
        before = twins.rest()
    looks: list[str] = []
    folders: list[str] = []
    into, scandir = twins.quick.look_into, os.scandir
    monkeypatch.setattr(twins.quick, "look_into", lambda p: (looks.append(p), into(p))[1])
    monkeypatch.setattr(os, "scandir", lambda p: (folders.append(str(p)), scandir(p))[1])
    again = twins.quick.scan()
    assert looks == []
    assert (folders == [str(root)]) == steady
    assert again == before
    assert all(twins.quick.scan()[name] is model for name, model in again.items())


def test_nothing_is_sure_that_was_not_seen_twice_with_time_between(twins: Twins) -> None:
    twins.look(0)
    for _ in range(4):
        twins.look(0.4)
    assert not twins.sure
    twins.look(0.5)
    assert twins.sure == {"plain", "said", "linked", "mapped"}


def test_pins_and_splits_kept_elsewhere_are_found(twins: Twins) -> None:
    write(twins.root / "plain/7/model.onnx", "seven")
    before = twins.rest()
    assert list(before["plain"].versions) == ["7"]
    for pinned, wanted in (("1", ["1", "7"]), ("", ["7"])):
        for each in (twins.quick, twins.full):
            each.pin("plain", frozenset(pinned))
        twins.look(0.1)
        assert list(twins.rest()["plain"].versions) == wanted
    kept = Traffic(weights={"1": 7})
    twins.quick._overlays.put("plain", twins.quick._catalogue.declared("plain"), kept)
    assert twins.quick.scan()["plain"].traffic == kept
    twins.quick._overlays.drop("plain")
    assert twins.quick.scan()["plain"].traffic == before["plain"].traffic


def test_devices_of_steady_file_systems() -> None:
    text = (
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        "27 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw\n"
        "30 27 0:44 / /mnt/bucket\\040a rw - fuse.bucket bucket rw\n"
        "31 27 0:45 / /data rw - nfs4 host:/data rw\n"
        "broken\n"
    )
    assert still.devices_in(text) == {os.makedev(8, 1)}
