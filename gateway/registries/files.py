"""Looking at files: what is in a folder, whether it has changed, whether it still does."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from gateway.registries.base import AspiredVersion

SETTLE_SECONDS: Final = 0.3
"""What appears or changes while serving must look the same for this long to be believed."""
GONE_SECONDS: Final = 1.0
"""What is missing must be missing for this long: it may be just about to be replaced."""
MOST_MARKED: Final = 10_000
TICK_NS: Final = 2_000_000_000
"""A file this young may change once more without its times showing it."""

T = TypeVar("T")

_VERSION = re.compile(r"[1-9][0-9]{0,17}")

Mark = tuple[int, int, int, int | str]
"""Size, times of writing and of change (ns), and what tells files apart: inode or ETag."""


@dataclass(frozen=True)
class Folder:
    """What a model's folder holds. Versions are oldest first, with their paths.

    (Paths are plain text here: all of this is done again and again for every model.)
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, Mark] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    """Folders that are no versions: their names are no whole numbers, or begin with 0."""
    withheld: Mapping[str, str] = field(default_factory=dict)
    """Versions that are there and must not be loaded as they are, with why."""


def look_into(folder: str, documents: Collection[str]) -> Folder:
    """Raises `OSError` when the folder cannot be read."""
    versions: dict[str, str] = {}
    marks: dict[str, Mark] = {}
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in documents:
                if entry.is_file():
                    marks[entry.name] = mark_of(entry.stat())
            elif entry.name.startswith(".") or not is_folder(entry):
                continue
            elif _VERSION.fullmatch(entry.name):
                versions[entry.name] = entry.path
            else:
                others.append(entry.name)
    return Folder(in_order(versions), marks, tuple(others))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or may be: a link to where we may not look is found out by looking."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def in_order(versions: Mapping[str, str]) -> Mapping[str, str]:
    """Oldest first."""
    if len(versions) < 2:
        return versions
    return dict(sorted(versions.items(), key=lambda item: int(item[0])))


def mark_of(stat: os.stat_result) -> Mark:
    """Differs when a file was written or replaced."""
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def file_mark(path: str) -> Mark | None:
    """`None` for a file that cannot be looked at."""
    try:
        return mark_of(os.stat(path))
    except OSError:
        return None


def fingerprint(folder: str) -> Hashable:
    """Names and marks of all files below a folder, symbolic links followed."""
    marks: list[Hashable] = []
    visited: set[tuple[int, int]] = set()
    folders = [folder]
    while folders and len(marks) < MOST_MARKED:
        current = folders.pop()
        try:
            stat = os.stat(current)
            if (stat.st_dev, stat.st_ino) in visited:
                continue  # links may lead in circles
            visited.add((stat.st_dev, stat.st_ino))
            with os.scandir(current) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            marks.append((current, error.errno))
            continue
        for entry in found:
            if is_folder(entry):
                if entry.name != "__pycache__":  # written by whoever imports what is there
                    folders.append(entry.path)
            else:
                marks.append((entry.path, file_mark(entry.path)))
    return tuple(marks)


class Settling:
    """One model's versions: believed only when they have looked the same for a while."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.believed: dict[str, AspiredVersion] = {}
        self._now = now
        self._seen: dict[str, tuple[Hashable, float]] = {}
        self._shown: set[str] = set()

    @property
    def waiting(self) -> bool:
        """Whether something has to be looked at again."""
        return bool(self._seen)

    def believe(self, version: AspiredVersion) -> AspiredVersion:
        """Takes it as it is."""
        self.believed[version.version] = version
        self._seen.pop(version.version, None)
        return version

    def show(self, name: str, version: AspiredVersion | None) -> AspiredVersion | None:
        """What to go by for now: `version` once it has settled, until then what it was before.

        `None` is a version that is not there.
        """
        self._shown.add(name)
        before = self.believed.get(name)
        mark = None if version is None else version.fingerprint
        if mark == (None if before is None else before.fingerprint):
            self._seen.pop(name, None)
            return before
        seen, since = self._seen.get(name, (None, 0.0))
        if name not in self._seen or seen != mark:
            since = self._now()
            self._seen[name] = (mark, since)
        if self._now() - since < (GONE_SECONDS if version is None else SETTLE_SECONDS):
            return before
        del self._seen[name]
        if version is not None:
            return self.believe(version)
        del self.believed[name]
        return None

    def keep(self, names: Collection[str]) -> None:
        """Forgets all other versions that are believed."""
        for name in self.believed.keys() - set(names):
            del self.believed[name]

    def looked(self) -> None:
        """Ends one look at the model: what was not shown in it is not waited for any more."""
        for name in self._seen.keys() - self._shown:
            del self._seen[name]
        self._shown.clear()


class Cached(Generic[T]):
    """What was read from files, until they change."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Hashable, T]] = {}

    def get(self, name: str, marks: Mapping[str, Mark], read: Callable[[], T]) -> T:
        """As `read` would return or raise."""
        key = tuple(sorted(marks.items()))
        kept = self._values.get(name)
        if kept is not None and kept[0] == key:
            return kept[1]
        value = read()
        newest = max((mark[1] for mark in marks.values()), default=0)
        if newest < time.time_ns() - TICK_NS:
            self._values[name] = (key, value)
        return value

    def keep(self, names: Collection[str]) -> None:
        """Forgets all others."""
        for name in self._values.keys() - set(names):
            del self._values[name]
