"""Keeps the cache within its bound, and takes away what nobody will use any more."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.artifacts.blobs import children
from gateway.artifacts.layout import Layout, read_json
from gateway.artifacts.trees import take_away
from gateway.telemetry.logs import log

MIB: Final = 1024 * 1024
PARTIAL_DAYS: Final = 7.0
"""A download that nobody went on with for so long is given up."""
SPARE: Final = 64 * MIB
"""Bytes of the disk that are left to others."""


@dataclass(frozen=True)
class Tree:
    """A tree in the cache, as it is shown."""

    digest: str
    uri: str
    size: int
    """Bytes, each content counted once; other trees may share them."""
    used: float
    """Unix seconds of the last use."""
    in_use: bool


class Eviction:
    """Makes room. For any thread and process; one at a time."""

    def __init__(self, layout: Layout, most: int) -> None:
        self._layout = layout
        self._most = most
        self.over = False
        """The bound could not be kept the last time."""

    def make_room(self, needed: int = 0) -> None:
        """Lets the least recently used trees go until `needed` bytes fit: into the bound, and
        onto the disk. Raises `OSError`."""
        with self._layout.lock("eviction", "all"):
            above = size_of(self._layout.root) + needed - self._most
            space = shutil.disk_usage(self._layout.root).free
            excess = max(above, needed + SPARE - space if needed else 0)
            if excess > 0:
                self._sweep()
                above -= self._evict(excess)
            if above > 0 and not self.over:
                log.warning(
                    "the cache keeps %d MiB more than cache.max_mb (%d): what is in use stays",
                    max(above // MIB, 1), self._most // MIB,
                )  # fmt: skip
            self.over = above > 0

    def clean(self, *, everything: bool) -> int:
        """Takes away what is left over, and trees above the bound, or all that are not in use;
        returns the bytes that came free. Raises `OSError`."""
        with self._layout.lock("eviction", "all"):
            before = size_of(self._layout.root)
            self._sweep(all_partials=everything)
            self._evict(before if everything else before - self._most)
            self._drop_blobs()
            return before - size_of(self._layout.root)

    def sweep(self) -> None:
        """Takes away what is left over of crashes and old downloads. Raises `OSError`."""
        with self._layout.lock("eviction", "all"):
            self._sweep()

    def _evict(self, excess: int) -> int:
        """Removes trees, oldest first, until `excess` bytes came free; returns how many did."""
        if excess <= 0:
            return 0
        # Everything is read once: with many trees, once a tree would take for ever.
        blobs = self._blobs_of()
        uses = Counter(digest for each in blobs.values() for digest in each)
        freed = self._drop(self._layout.blobs.all(), uses)
        for tree in sorted(trees(self._layout), key=lambda each: each.used):
            if freed >= excess:
                break
            lock = self._layout.lock("tree", tree.digest)
            if not lock.acquire(wait=False):
                continue
            own = blobs.get(tree.digest)
            freed += free_of(self._layout, tree.digest)
            take_away(self._layout, tree.digest)
            lock.forget()
            if own is None:  # nobody says what was in it
                freed += self._drop(self._layout.blobs.all(), uses)
            else:
                uses.subtract(own)
                freed += self._drop(map(self._layout.blobs.path, own), uses)
            log.info("the cache lets %s go (%.1f MB)", tree.uri, tree.size / 1e6)
        return freed

    def _drop_blobs(self) -> int:
        """Removes blobs that no tree has; returns their bytes."""
        uses = Counter(digest for each in self._blobs_of().values() for digest in each)
        return self._drop(self._layout.blobs.all(), uses)

    def _blobs_of(self) -> dict[str, set[str]]:
        """Tree → the blobs that it is made of."""
        return {
            tree.digest: {digest for digest, _ in tree.files.values()}
            for file in children(self._layout.lists)
            if (tree := self._layout.tree_list(file.stem)) is not None
        }

    def _drop(self, blobs: Iterable[Path], uses: Mapping[str, int]) -> int:
        """Removes those of the blobs that no tree uses; returns their bytes."""
        # What is being put together has links to its blobs; where there are no links it has
        # copies, and the lists say what the trees are copies of.
        freed = 0
        for blob in blobs:
            try:
                stat = blob.stat()
                if stat.st_nlink == 1 and uses.get(blob.name, 0) <= 0:
                    blob.unlink()
                    freed += stat.st_size
            except FileNotFoundError:
                continue
        return freed

    def _sweep(self, *, all_partials: bool = False) -> None:
        layout = self._layout
        young = time.time() - PARTIAL_DAYS * 86400
        for part in children(layout.partial):
            if part.suffix == ".json" and part.with_suffix("").exists():
                continue
            lock = layout.lock("partial", part.name.removesuffix(".json"))
            if lock.acquire(wait=False):
                if all_partials or mtime(part) < young:
                    part.unlink(missing_ok=True)
                    part.with_name(f"{part.name}.json").unlink(missing_ok=True)
                lock.forget()
        for place in children(layout.building):
            if not place.is_dir():
                if mtime(place) < time.time() - 3600:
                    place.unlink(missing_ok=True)
                continue
            lock = layout.lock("building", place.name)
            if lock.acquire(wait=False):
                shutil.rmtree(place, ignore_errors=True)
                lock.forget()
        for file in children(layout.lists):
            lock = layout.lock("tree", file.stem)
            if not (layout.trees / file.stem).is_dir() and lock.acquire(wait=False):
                if not (layout.trees / file.stem).is_dir():
                    file.unlink(missing_ok=True)
                lock.forget()
        for file in children(layout.index):
            document = read_json(file)
            tree = document.get("tree") if isinstance(document, dict) else None
            if not isinstance(tree, str) or not (layout.trees / tree).is_dir():
                file.unlink(missing_ok=True)


def trees(layout: Layout) -> Iterator[Tree]:
    """What is in the cache. Raises `FetchError` where files cannot be locked."""
    for root in children(layout.trees):
        known = layout.tree_list(root.name)
        lock = layout.lock("tree", root.name)
        free = lock.acquire(wait=False)
        lock.release()
        yield Tree(
            root.name,
            known.uri if known is not None else "",
            known.size if known is not None else size_of(root),
            layout.used(root.name),
            not free,
        )


def free_of(layout: Layout, digest: str) -> int:
    """Bytes that come free with a tree alone: those of files that nobody else has."""
    return sum(
        stat.st_size
        for at, _, names in os.walk(layout.trees / digest)
        for name in names
        if (stat := Path(at, name).lstat()).st_nlink == 1
    )


def size_of(folder: Path) -> int:
    """Bytes of all files below, those with several names once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(at, name))
            except FileNotFoundError:
                continue
            if stat.st_nlink > 1:
                if (stat.st_dev, stat.st_ino) in seen:
                    continue
                seen.add((stat.st_dev, stat.st_ino))
            total += stat.st_size
    return total


def mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
