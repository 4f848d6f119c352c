"""Whether folders are still as they were, told without looking into them again.

A look at a model lists its folders and reads what the documents say; done for thousands of models
every few seconds, that keeps a processor busy while nothing happens. A `Survey` remembers what
there was, and a few `stat` calls tell whether it still is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Final

from gateway.registries.files import MOST_MARKED, is_folder

_STEADY: Final = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs")
)
"""File systems whose folders change their times with every name that comes, goes or is replaced.
Others (object stores, for one, have no folders to speak of) must be listed."""
_MOUNTS: Final = "/proc/self/mountinfo"

Stamp = tuple[int, int, int, int, int] | None
"""Times of writing and of change (ns), size, inode and device; `None` for what is not there."""
Listing = tuple[tuple[str, bool], ...]
"""Names, and whether each is a folder."""


class Survey:
    """What is in a model's folder, and in everything below the folders of some of its versions.

    Links are followed. What was changed within `gateway.registries.files.TICK_NS` of the survey
    may have changed once more without showing.
    """

    __slots__ = ("_listings", "_stamps", "_steady")

    def __init__(self, steady: frozenset[int]) -> None:
        self._steady = steady
        self._stamps: list[tuple[str, Stamp]] = []
        self._listings: list[tuple[str, Listing]] = []

    def holds(self) -> bool:
        """Whether all of it is still the same."""
        for path, was in self._stamps:
            if stamp_of(path) != was:
                return False
        return all(listed(path) == was for path, was in self._listings)

    def add(self, path: str, stamp: Stamp) -> None:
        """A file, a link, or a folder."""
        self._stamps.append((path, stamp))

    def add_folder(self, path: str, stamp: Stamp, entries: Iterable[os.DirEntry[str]]) -> None:
        """A folder whose names matter."""
        self.add(path, stamp)
        if stamp is None or stamp[-1] not in self._steady:
            self._listings.append((path, listing_of(entries)))

    @property
    def large(self) -> bool:
        """Whether it is too much to be remembered."""
        return len(self._stamps) >= MOST_MARKED


def survey(
    folder: str, documents: Collection[str], versions: Iterable[str], steady: frozenset[int]
) -> Survey | None:
    """Surveys a model's folder, its documents, and the folders `versions`; `None` where that
    cannot be done. `steady`: see `steady_devices`."""
    found = Survey(steady)
    try:
        for entry in _folder(found, folder):
            # What a link leads to may appear or vanish, and with it a version.
            if entry.name in documents or entry.is_symlink():
                found.add(entry.path, stamp_of(entry.path))
        for version in versions:
            if not _tree(found, version):
                return None
    except OSError:
        return None
    return found


def _tree(found: Survey, root: str) -> bool:
    """Adds all that is below `root`, but for `__pycache__`; false where it is too much."""
    visited: set[tuple[int, int]] = set()
    folders = [root]
    while folders:
        if found.large:
            return False
        current = folders.pop()
        stamp = stamp_of(current)
        if stamp is None:  # another server's model has no files
            found.add(current, stamp)
            continue
        if stamp[-2:] in visited:
            continue  # links may lead in circles
        visited.add(stamp[-2:])
        for entry in _folder(found, current):
            if not is_folder(entry):
                found.add(entry.path, stamp_of(entry.path))
            elif entry.name != "__pycache__":
                folders.append(entry.path)
            elif entry.is_symlink():
                found.add(entry.path, stamp_of(entry.path))
    return True


def _folder(found: Survey, path: str) -> list[os.DirEntry[str]]:
    """Adds a folder. Raises `OSError`."""
    stamp = stamp_of(path)
    with os.scandir(path) as entries:
        inside = list(entries)
    found.add_folder(path, stamp, inside)
    return inside


def stamp_of(path: str) -> Stamp:
    """Differs when a file was written or replaced, and in most places when a folder was."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_dev)


def listed(path: str) -> Listing | None:
    """What is in a folder now; `None` if that cannot be told."""
    try:
        with os.scandir(path) as entries:
            return listing_of(entries)
    except OSError:
        return None


def listing_of(entries: Iterable[os.DirEntry[str]]) -> Listing:
    """Names in order."""
    return tuple(sorted((entry.name, is_folder(entry)) for entry in entries))


def steady_devices() -> frozenset[int]:
    """Numbers of the devices that hold steady file systems now."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as file:
            return devices_in(file.read())
    except OSError:  # not Linux: every folder is listed
        return frozenset()


def devices_in(mounts: str) -> frozenset[int]:
    """The devices of steady file systems in the text of a ``mountinfo`` file."""
    devices: set[int] = set()
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        fields = mount.split()
        kind = source.split(" ", 1)[0]
        if kind in _STEADY and len(fields) > 2:
            major, _, minor = fields[2].partition(":")
            devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)
