"""Whatever happens on the way, the cache gives whole files or says that it cannot."""

from __future__ import annotations

import tempfile
import threading
from collections import deque
from hashlib import sha256
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.artifacts.base import Lease
from gateway.artifacts.cache import Cache
from gateway.artifacts.layout import Layout
from gateway.artifacts.pieces import rest_of
from gateway.config import CacheConfig
from gateway.errors import FetchError
from gateway.state import StateDir
from tests.support.fake_origin import FakeOrigin, FakeStore

NAMES = ("1/model.onnx", "1/data/weights", "labels.txt")
FAULTS = ("cut", "raise", "crash", "final", "change", "long", "wrong")
CONTENTS = st.dictionaries(
    st.sampled_from(NAMES), st.binary(max_size=60), min_size=1, max_size=3
).map(lambda found: {NAMES[0]: b"model", **found})


def cache_in(folder: Path, threads: int = 1) -> Cache:
    return Cache(StateDir(folder), CacheConfig(fetch_threads=threads), pause=0.0)


def content_of(lease: Lease) -> dict[str, bytes]:
    root = lease.path.parent
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file()
    }


def check_folder(folder: Path) -> None:
    """Nothing half is where something whole should be."""
    layout = Layout(folder / "cache")
    for blob in layout.blobs.all():
        assert sha256(blob.read_bytes()).hexdigest() == blob.name
        assert blob.stat().st_mode & 0o777 == 0o444
    for tree in layout.trees.iterdir():
        known = layout.tree_list(tree.name)
        assert known is not None
        for name, (digest, size) in known.files.items():
            assert sha256((tree / name).read_bytes()).hexdigest() == digest
            assert (tree / name).stat().st_size == size
    assert list(layout.building.iterdir()) == []


@settings(max_examples=60)
@given(
    contents=CONTENTS,
    faults=st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 60)), max_size=6),
    identities=st.booleans(),
    digests=st.booleans(),
    sizes=st.booleans(),
    threads=st.integers(1, 3),
)
def test_a_fetch_is_whole_or_fails_and_the_next_one_mends_it(
    contents: dict[str, bytes],
    faults: list[tuple[str, int]],
    identities: bool,
    digests: bool,
    sizes: bool,
    threads: int,
) -> None:
    unseen = () if digests else ("wrong",) if sizes else ("wrong", "cut", "long")
    checked = [fault for fault in faults if fault[0] not in unseen]
    store = FakeStore(contents, identities, digests, sizes, faults=deque(checked))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        cache = cache_in(path, threads)
        try:
            lease = cache.fetch(FakeOrigin(store), lambda here, total: None)
        except FetchError:
            pass
        else:
            if identities or digests:  # else nobody can tell that one file is newer
                assert content_of(lease) == store.contents
            lease.release()
        check_folder(path)
        store.faults.clear()
        lease = cache.fetch(FakeOrigin(store), lambda here, total: None)
        assert content_of(lease) == store.contents
        check_folder(path)
        lease.release()
        # And what is known needs no download.
        before = len(store.reads)
        cache.fetch(FakeOrigin(store), lambda here, total: None).release()
        downloads = len(store.reads) - before
        asked = sum(1 for content in contents.values() if content or not sizes)
        assert downloads == (0 if identities or digests else asked)


@settings(max_examples=40)
@given(
    content=st.binary(min_size=1, max_size=200),
    breaks=st.lists(st.integers(1, 200), max_size=4),
    declared=st.sampled_from(["identity", "digest", "both", "neither"]),
)
def test_a_broken_download_goes_on_where_it_was(
    content: bytes, breaks: list[int], declared: str
) -> None:
    store = FakeStore(
        {"1/model.onnx": content},
        identities=declared in ("identity", "both"),
        digests=declared in ("digest", "both"),
        faults=deque(("raise", after) for after in breaks),
    )
    with tempfile.TemporaryDirectory() as folder:
        lease = cache_in(Path(folder)).fetch(FakeOrigin(store), lambda here, total: None)
        assert content_of(lease) == store.contents
        lease.release()
    starts = [start for _, start in store.reads]
    if declared == "neither":
        assert set(starts) == {0}
    else:
        assert starts == sorted(starts)
        assert store.given == len(content), "every byte is asked for once"


@settings(max_examples=40)
@given(
    models=st.lists(
        st.dictionaries(
            st.sampled_from(["1/a", "1/b", "1/c"]), st.sampled_from([b"x" * 50, b"y" * 60, b"z"]),
            min_size=1,
        ),
        min_size=1,
        max_size=5,
    )
)  # fmt: skip
def test_equal_content_is_kept_once(models: list[dict[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_in(Path(folder))
        leases = [
            cache.fetch(FakeOrigin(FakeStore(contents), f"fake://{number}"), lambda a, b: None)
            for number, contents in enumerate(models)
        ]
        for lease, contents in zip(leases, models, strict=True):
            assert content_of(lease) == contents
        inodes = {
            (file.stat().st_ino, file.stat().st_size)
            for file in (Path(folder) / "cache" / "trees").rglob("*")
            if file.is_file()
        }
        distinct = {content for contents in models for content in contents.values()}
        assert sum(size for _, size in inodes) == sum(map(len, distinct))
        for lease in leases:
            lease.release()


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 900), min_size=1, max_size=12),
    held=st.sets(st.integers(0, 11), max_size=4),
)
def test_the_bound_holds_and_leased_trees_stay(sizes: list[int], held: set[int]) -> None:
    kib = 1024
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        cache = Cache(StateDir(path), CacheConfig(max_mb=1), pause=0.0)
        kept: dict[int, tuple[Lease, bytes]] = {}
        for number, size in enumerate(sizes):
            content = (number + 1).to_bytes(2, "big") * (size * kib // 2)
            store = FakeStore({"1/m": content})
            # One piece is enough: it is the bound that matters here.
            lease = cache.fetch(Whole(store, f"fake://{number}"), lambda a, b: None)
            assert content_of(lease) == {"1/m": content}
            if number in held:
                kept[number] = lease, content
            else:
                lease.release()
            blobs = sum(blob.stat().st_size for blob in Layout(path / "cache").blobs.all())
            leased = sum(len(content) for _, content in kept.values())
            assert blobs <= max(kib * kib, leased + size * kib)
            for other, content in kept.values():
                assert content_of(other) == {"1/m": content}
        for lease, _ in kept.values():
            lease.release()
        for thread in threading.enumerate():
            if thread.name == "sluice-cache":  # it keeps the bound now that it can
                thread.join()
        check_folder(path)
        assert sum(blob.stat().st_size for blob in Layout(path / "cache").blobs.all()) <= kib * kib


class Whole(FakeOrigin):
    """Gives a file in one piece."""

    def read(self, file, start):  # type: ignore[no-untyped-def]
        yield self.store.contents[file.name][start:]


@given(
    content=st.binary(max_size=60), start=st.integers(0, 60), earlier=st.integers(0, 60),
    piece=st.integers(1, 20), partial=st.booleans(),
)  # fmt: skip
def test_what_is_wanted_of_an_answer(
    content: bytes, start: int, earlier: int, piece: int, partial: bool
) -> None:
    """The server gives the range, a longer one, or everything; whole pieces or tiny ones."""
    start = min(start, len(content))
    begin = max(start - earlier, 0) if partial else 0
    body = content[begin:]
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    headers = {"content-range": f"bytes {begin}-{len(content)}/{len(content)}"}
    found = rest_of(pieces, 206 if partial else 200, headers if partial else {}, start, "x")
    assert b"".join(found) == content[start:]
