"""The cache among processes: killed, twice at once, full, damaged, looked after."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.artifacts import blobs as blobs_module
from gateway.artifacts import cache as cache_module
from gateway.artifacts.cache import Cache
from gateway.artifacts.eviction import Eviction, trees
from gateway.artifacts.http import HttpOrigin
from gateway.artifacts.layout import Layout
from gateway.artifacts.progress import Lines, Transfer
from gateway.cli.commands import run
from gateway.config import CacheConfig
from gateway.errors import FetchError
from gateway.state import StateDir
from gateway.telemetry.logs import log
from tests.support.fake_origin import FakeOrigin, FakeStore
from tests.support.file_server import FileServer
from tests.support.gateway import ROOT, wait_until

CONTENT = os.urandom(60_000)
FETCH = """
import sys
from pathlib import Path
from gateway.artifacts.cache import Cache
from gateway.artifacts.http import HttpOrigin
from gateway.config import CacheConfig
from gateway.state import StateDir
lease = Cache(StateDir(Path(sys.argv[1])), CacheConfig()).fetch(HttpOrigin(sys.argv[2]), print)
print("fetched", len((lease.path / "model.onnx").read_bytes()), flush=True)
sys.stdin.read()
"""


def silent(here: int, total: int) -> None:
    pass


def cache(folder: Path, **settings: int) -> Cache:
    return Cache(StateDir(folder), CacheConfig(**settings), pause=0.0)


def fetching(folder: Path, url: str) -> subprocess.Popen[bytes]:
    """Another process that fetches, and holds what it has until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(folder), url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/model.onnx": CONTENT}) as running:
        yield running


def partial_bytes(folder: Path) -> int:
    return sum(
        part.stat().st_size
        for part in (folder / "cache/partial").glob("*")
        if part.suffix != ".json"
    )


def test_killed_again_and_again_it_goes_on_where_it_was(server: FileServer, tmp_path: Path) -> None:
    for held_at in (20_000, 15_000):
        server.held_at = held_at
        server.hold.clear()
        before = partial_bytes(tmp_path)
        process = fetching(tmp_path, server.url("/model.onnx"))
        try:
            wait_until(lambda b=before, h=held_at: partial_bytes(tmp_path) >= b + h, "the bytes")
        finally:
            process.kill()
            process.communicate()
        server.hold.set()
        assert not list((tmp_path / "cache/trees").iterdir())
        assert not list((tmp_path / "cache/blobs/sha256").iterdir())
    server.held_at = -1
    lease = cache(tmp_path).fetch(HttpOrigin(server.url("/model.onnx")), silent)
    assert (lease.path / "model.onnx").read_bytes() == CONTENT
    assert [each.start for each in server.asked if each.method == "GET"] == [0, 20_000, 35_000]
    assert list((tmp_path / "cache/building").iterdir()) == [], "what was left over is gone"
    assert list((tmp_path / "cache/partial").iterdir()) == []
    lease.release()


def test_two_processes_fetch_it_once(server: FileServer, tmp_path: Path) -> None:
    server.held_at = 20_000
    server.hold.clear()
    processes = [fetching(tmp_path, server.url("/model.onnx")) for _ in range(2)]
    wait_until(lambda: partial_bytes(tmp_path) >= 20_000, "the first to be on its way")
    server.hold.set()
    for process in processes:
        out, _ = process.communicate()
        assert out.splitlines()[-1] == f"fetched {len(CONTENT)}".encode()
        assert process.returncode == 0
    assert [each.method for each in server.asked].count("GET") == 1
    assert server.sent == len(CONTENT)


def test_what_another_process_holds_is_not_taken_away(server: FileServer, tmp_path: Path) -> None:
    process = fetching(tmp_path, server.url("/model.onnx"))
    assert process.stdin is not None and process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(b"fetched"):
                break
        assert run(["cache", "clean", "--all", "--state-dir", str(tmp_path)]) == 0
        assert len(list((tmp_path / "cache/trees").iterdir())) == 1
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert run(["cache", "clean", "--all", "--state-dir", str(tmp_path)]) == 0
    assert not list((tmp_path / "cache/trees").iterdir())
    assert not list((tmp_path / "cache/blobs").rglob("*/*/*"))


def test_two_threads_fetch_it_once(tmp_path: Path) -> None:
    store = FakeStore({"1/model.onnx": CONTENT[:1000]})
    shared = cache(tmp_path)
    got: list[bytes] = []

    def fetch() -> None:
        lease = shared.fetch(FakeOrigin(store), silent)
        got.append((lease.path / "model.onnx").read_bytes())
        lease.release()

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [CONTENT[:1000]] * 4
    assert store.reads == [("1/model.onnx", 0)]


def test_files_come_at_the_same_time_within_the_bound(tmp_path: Path) -> None:
    going, most = 0, 0
    both = threading.Barrier(2, timeout=20)
    lock = threading.Lock()

    class Counting(FakeOrigin):
        def read(self, file, start):  # type: ignore[no-untyped-def]
            nonlocal going, most
            with lock:
                going += 1
                most = max(most, going)
            both.wait()
            yield self.store.contents[file.name]
            with lock:
                going -= 1

    store = FakeStore({f"1/{number}": bytes([number]) for number in range(8)})
    cache(tmp_path, fetch_threads=2).fetch(Counting(store), silent).release()
    assert most == 2


def test_one_changed_file_of_many_is_all_that_is_fetched(tmp_path: Path) -> None:
    store = FakeStore({"1/model.onnx": b"model", "1/weights": b"weights"})
    cache(tmp_path).fetch(FakeOrigin(store), silent).release()
    store.reads.clear()
    store.contents["1/model.onnx"] = b"newer"
    lease = cache(tmp_path).fetch(FakeOrigin(store), silent)
    assert (lease.path / "model.onnx").read_bytes() == b"newer"
    assert [name for name, _ in store.reads] == ["1/model.onnx"]
    lease.release()


def test_unreachable_it_is_served_from_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore({"1/model.onnx": b"model"})
    cache(tmp_path).fetch(FakeOrigin(store), silent).release()
    store.unreachable = True
    with caplog.at_level(logging.WARNING):
        lease = cache(tmp_path).fetch(FakeOrigin(store), silent)
    assert (lease.path / "model.onnx").read_bytes() == b"model"
    assert [record.message for record in caplog.records] == [
        "fake://store/m/1 cannot be reached; using its files as they were fetched before"
    ]
    lease.release()
    with pytest.raises(FetchError, match="cannot be reached"):
        cache(tmp_path).fetch(FakeOrigin(store, "fake://another"), silent)


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    store = FakeStore({"1/model.onnx": b"model", "1/weights": b"weights"})
    lease = cache(tmp_path).fetch(FakeOrigin(store), silent)
    file = lease.path / "model.onnx"
    lease.release()
    file.chmod(0o644)
    file.write_bytes(b"mod")
    lease = cache(tmp_path).fetch(FakeOrigin(store), silent)
    assert (lease.path / "model.onnx").read_bytes() == b"model"
    assert [name for name, _ in store.reads[2:]] == ["1/model.onnx"]
    # Damaged while somebody holds it, nobody else may take it away.
    file.chmod(0o644)
    file.write_bytes(b"mod")
    with pytest.raises(FetchError, match="damaged, and in use; see 'sluice cache verify'"):
        cache(tmp_path).fetch(FakeOrigin(store), silent)
    lease.release()


def test_without_hard_links_it_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(blobs_module.os, "link", no_links)
    store = FakeStore({"1/model.onnx": b"model"})
    shared = cache(tmp_path)
    lease = shared.fetch(FakeOrigin(store), silent)
    assert (lease.path / "model.onnx").read_bytes() == b"model"
    assert run(["cache", "clean", "--state-dir", str(tmp_path)]) == 0
    assert len(list(Layout(tmp_path / "cache").blobs.all())) == 1
    lease.release()
    assert run(["cache", "clean", "--all", "--state-dir", str(tmp_path)]) == 0
    assert not list(Layout(tmp_path / "cache").blobs.all())


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore({"1/model.onnx": b"model"})
    shared = cache(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FetchError, match=r"no room left .*/cache'; free some .*--state-dir"):
            shared.fetch(FakeOrigin(store), silent)
    layout = Layout(tmp_path / "cache")
    assert not list(layout.trees.iterdir()) and not list(layout.building.iterdir())
    usage = cache_module.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.shutil, "disk_usage", lambda _: usage._replace(free=2))
        with pytest.raises(FetchError, match=r"needs 1 MiB more than .*/cache' has room for"):
            shared.fetch(FakeOrigin(store), silent)
    shared.fetch(FakeOrigin(store), silent).release()


def test_what_can_never_fit_is_refused(tmp_path: Path) -> None:
    store = FakeStore({"1/model.onnx": bytes(1024 * 1024 + 1)})
    with pytest.raises(FetchError, match=r"has 2 MiB of files, more than cache.max_mb \(1\)"):
        cache(tmp_path, max_mb=1).fetch(FakeOrigin(store), silent)
    assert store.reads == []


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["../x"], "leads out of its folder"),
        (["1/../../x"], "leads out of its folder"),
        (["/etc/passwd"], "leads out of its folder"),
        (["1//x"], "has an empty part"),
        (["1/x\0"], "has control characters"),
        (["1/" + "x" * 300], "is too long"),
        (["1\\x"], "has a backslash"),
        (["1/x", "1/x/y"], "is a file and a folder"),
        (["2/x"], "has no files of the version"),
        ([], "has no files"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, names: list[str], said: str) -> None:
    store = FakeStore(dict.fromkeys(names, b"x"))
    with pytest.raises(FetchError, match=said):
        cache(tmp_path).fetch(FakeOrigin(store), silent)
    assert not list((tmp_path / "cache/trees").iterdir())


def test_closing_ends_a_download(tmp_path: Path) -> None:
    store = FakeStore({"1/model.onnx": bytes(100)})
    shared = cache(tmp_path)
    store.on_piece = lambda: shared.close() if store.given > 20 else None
    with pytest.raises(FetchError, match="the gateway stops"):
        shared.fetch(FakeOrigin(store), silent)
    store.on_piece = lambda: None
    cache(tmp_path).fetch(FakeOrigin(store), silent).release()
    assert store.reads[-1][1] > 0, "it went on"


def test_closing_waits_for_no_read(tmp_path: Path) -> None:
    shared = cache(tmp_path)
    reading, never = threading.Event(), threading.Event()

    def hang() -> None:
        reading.set()
        never.wait()

    store = FakeStore({"1/model.onnx": bytes(100)})
    store.on_piece = hang
    failed: list[Exception] = []

    def fetch() -> None:
        try:
            shared.fetch(FakeOrigin(store), silent)
        except FetchError as error:
            failed.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    try:
        assert reading.wait(30)
        shared.close()
        thread.join(30)
        assert [str(error) for error in failed] == ["the gateway stops"]
    finally:
        never.set()
        thread.join()


def test_who_is_told_can_end_it(tmp_path: Path) -> None:
    class NotWantedError(Exception):
        pass

    def told(here: int, total: int) -> None:
        if here:
            raise NotWantedError

    with pytest.raises(NotWantedError):
        cache(tmp_path).fetch(FakeOrigin(FakeStore({"1/m": b"model"})), told)


def test_log_lines_come_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    told: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO):
        transfer = Transfer(
            "fake://m", 2, 40_000_000, lambda *both: told.append(both), lambda: now[0]
        )
        lines = Lines("fake://m", lambda: now[0])
        for second in range(21):
            now[0] = float(second)
            lines.update(second * 1_000_000, 40_000_000)
        transfer.hear(40_000_000)
        transfer.done()
    assert [record.message for record in caplog.records] == [
        "fetching fake://m: 2 files, 40.0 MB",
        "fetching fake://m: 25% of 40.0 MB",
        "fetching fake://m: 50% of 40.0 MB",
        "fetched fake://m: 40.0 MB in 20.00 s, 2.0 MB/s",
    ]
    assert told == [(40_000_000, 40_000_000)]


def test_a_terminal_has_a_bar_with_log_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    now = [0.0]
    try:
        transfer = Transfer("fake://m[/b]", 1, 40_000_000, silent, lambda: now[0])
        transfer.tell()
        assert terminal.getvalue() == "", "short downloads need none"
        now[0] = 1.0
        transfer.hear(20_000_000)
        transfer.tell()
        log.warning("a line between")
        wait_until(lambda: "20.0/40.0 MB" in terminal.getvalue(), "the bar to move")
        transfer.close()
        assert handler.stream is terminal
    finally:
        logging.getLogger().removeHandler(handler)
    shown = terminal.getvalue()
    assert "fake://m[/b]" in shown and "a line between" in shown


# --- the command line


def test_list_verify_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--state-dir", str(tmp_path)]
    assert run(["cache", "list", *place]) == 0
    assert capsys.readouterr().out == "nothing is cached\n"
    shared = cache(tmp_path)
    held = shared.fetch(FakeOrigin(FakeStore({"1/m": b"held"}), "fake://held"), silent)
    shared.fetch(FakeOrigin(FakeStore({"1/m": b"free"}), "fake://free"), silent).release()
    assert run(["cache", "list", "--json", *place]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {tree["uri"]: tree["in_use"] for tree in listed["trees"]} == {
        "fake://held": True, "fake://free": False,
    }  # fmt: skip
    assert run(["cache", "list", *place]) == 0
    assert "fake://held" in capsys.readouterr().out
    assert run(["cache", "verify", *place]) == 0
    assert capsys.readouterr().out == "2 files are checked, 0 damaged\n"
    for file in (tmp_path / "cache/trees").rglob("m"):
        file.chmod(0o644)
        file.write_bytes(file.read_bytes().upper())  # of the same size
    assert run(["cache", "verify", *place]) == 1
    out = capsys.readouterr().out
    assert "damaged, removed: fake://free\n" in out
    assert "damaged, in use: fake://held; unload its models, and verify again\n" in out
    assert len(list((tmp_path / "cache/trees").iterdir())) == 1
    held.release()
    assert run(["cache", "verify", *place]) == 1
    assert run(["cache", "verify", *place]) == 0
    assert not list((tmp_path / "cache/trees").iterdir())


# --- found later


def test_killed_while_a_file_is_taken_over_it_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Layout(tmp_path).blobs
    part = tmp_path / "part"
    part.write_bytes(b"content")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("digest_of", "os.replace"):
        if name == "digest_of":
            found.path("ab").parent.mkdir(parents=True)
            found.path("ab").write_bytes(b"old")
        with monkeypatch.context() as patch:
            patch.setattr(f"gateway.artifacts.blobs.{name}", killed)
            with pytest.raises(KeyboardInterrupt):
                found.add(part, "ab", 7, tmp_path / name)
        assert part.stat().st_mode & 0o200
    found.add(part, "ab", 7, tmp_path / "tree")
    assert (tmp_path / "tree").read_bytes() == b"content"
    assert found.path("ab").read_bytes() == b"content"
    assert found.path("ab").stat().st_mode & 0o777 == blobs_module.MODE


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("here", [True, False])
def test_room_made_while_a_file_is_taken_over_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, here: bool
) -> None:
    layout = Layout(tmp_path / "cache")
    store = FakeStore({"1/model.onnx": b"model"})
    if here:
        cache(tmp_path).fetch(FakeOrigin(store, "fake://before"), silent).release()
    place = os.replace

    def after(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def then(*arguments: object) -> object:
            result = real(*arguments)
            if name == "digest_of" or "blobs" in str(arguments[1]):
                made.append(name)
                Eviction(layout, 0).clean(everything=True)
            return result

        return then

    def no_links(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no")

    made: list[str] = []
    if not links:
        monkeypatch.setattr(blobs_module.os, "link", no_links)
    monkeypatch.setattr(blobs_module.os, "replace", after("replace", place))
    monkeypatch.setattr(blobs_module, "digest_of", after("digest_of", blobs_module.digest_of))
    lease = cache(tmp_path).fetch(FakeOrigin(store), silent)
    assert (lease.path / "model.onnx").read_bytes() == b"model"
    assert made == (["digest_of", "replace"] if here else ["replace"])
    lease.release()


def test_a_partial_file_that_may_not_be_written_is_started_over(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.held_at = 20_000
    server.hold.clear()
    process = fetching(tmp_path, server.url("/model.onnx"))
    try:
        wait_until(lambda: partial_bytes(tmp_path) >= 20_000, "the bytes")
    finally:
        process.kill()
        process.communicate()
    server.hold.set()
    server.held_at = -1
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr("gateway.artifacts.downloads.os.access", lambda *_: False)
    lease = cache(tmp_path).fetch(HttpOrigin(server.url("/model.onnx")), silent)
    assert (lease.path / "model.onnx").read_bytes() == CONTENT
    assert [each.start for each in server.asked if each.method == "GET"] == [0, 0]


def test_a_wrong_size_costs_nobody_a_file(tmp_path: Path) -> None:
    found = Layout(tmp_path).blobs
    part = tmp_path / "part"
    part.write_bytes(b"content")
    found.add(part, "ab", 7, tmp_path / "tree")
    assert not found.place("ab", 3, tmp_path / "target")
    assert found.path("ab").read_bytes() == b"content" and not (tmp_path / "target").exists()


def test_a_damaged_file_is_replaced_by_what_was_unpacked(tmp_path: Path) -> None:
    found = Layout(tmp_path).blobs
    found.path("ab").parent.mkdir(parents=True)
    found.path("ab").write_bytes(b"dam")
    own = tmp_path / "own"
    own.write_bytes(b"content")
    found.adopt(own, "ab", 7)
    assert found.path("ab").read_bytes() == own.read_bytes() == b"content"
    assert not [each for each in tmp_path.iterdir() if each.is_file() and each != own]


def test_letting_many_go_reads_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 30
    shared = b"shared" * 100
    for number in range(many):
        files = {"1/own": str(number).encode() * 100, "1/shared": shared}
        origin = FakeOrigin(FakeStore(files), f"fake://{number}")
        cache(tmp_path).fetch(origin, silent).release()
    kept = FakeOrigin(FakeStore({"1/kept": b"kept", "1/shared": shared}), "fake://kept")
    lease = cache(tmp_path).fetch(kept, silent)
    layout = Layout(tmp_path / "cache")
    read: list[str] = []
    all_blobs: list[int] = []
    tree_list, every = Layout.tree_list, blobs_module.Blobs.all
    monkeypatch.setattr(
        Layout, "tree_list", lambda self, digest: read.append(digest) or tree_list(self, digest)
    )
    monkeypatch.setattr(blobs_module.Blobs, "all", lambda self: all_blobs.append(1) or every(self))
    assert Eviction(layout, 0).clean(everything=True) > 0
    assert len(read) <= 4 * (many + 1) and len(all_blobs) <= 3
    assert [tree.uri for tree in trees(layout)] == ["fake://kept"]
    assert sorted(each.read_bytes() for each in every(layout.blobs)) == sorted([b"kept", shared])
    assert (lease.path / "shared").read_bytes() == shared
