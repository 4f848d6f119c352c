"""Files by their content, each once: ``blobs/sha256/ab/<hex>``, read only."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from gateway.errors import FetchError

PIECE: Final = 1024 * 1024
MODE: Final = 0o444
_NO_LINKS: Final = (
    errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP,
    errno.ENOSYS,
)  # fmt: skip
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Blobs:
    """The contents that are here. For any thread and process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def add(self, file: Path, digest: str, size: int, tree: Path) -> None:
        """Takes a file over, whose content is on the disk already, and puts it at `tree` too,
        where nothing is. Raises `OSError`."""
        target = self.path(digest)
        with suppress(FileNotFoundError):  # not here, or gone in between
            if digest_of(target) == digest and self.place(digest, size, tree):
                file.unlink()  # the trees that have it already share that one
                return
        # The tree has it first: a blob that nobody has may go whenever room is made.
        tree.parent.mkdir(parents=True, exist_ok=True)
        link(file, tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
        # Not before: who is killed in between could not go on with its own file.
        os.chmod(tree, MODE)
        with suppress(FileNotFoundError):  # gone already, where the tree has a copy
            os.chmod(target, MODE)
        sync_folder(target.parent)

    def adopt(self, file: Path, digest: str, size: int) -> None:
        """Makes `file`, whose content is on the disk already, another name of the blob. Raises
        `OSError`."""
        os.chmod(file, MODE)
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{file.name[:200]}.{os.urandom(6).hex()}")
        if self.place(digest, size, aside):
            os.replace(aside, file)
            aside.unlink(missing_ok=True)  # two names of one file are left as they are
            return
        link(file, aside)
        os.replace(aside, target)  # one of another size was damaged
        aside.unlink(missing_ok=True)

    def place(self, digest: str, size: int, target: Path) -> bool:
        """Puts the content at `target`, where nothing is; False if it is not here (any more).

        One of another size is not what is meant, and stays: whoever says the size may be wrong.
        Raises `OSError`.
        """
        source = self.path(digest)
        try:
            if source.stat().st_size != size:
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            link(source, target)
        except FileNotFoundError:
            return False
        return True

    def all(self) -> Iterator[Path]:
        """Every blob's file."""
        for folder in children(self.folder):
            yield from children(folder)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there are none. Raises `OSError`."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
        os.chmod(target, MODE)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def digest_of(file: Path) -> str:
    """SHA-256 in hexadecimal. Raises `OSError`."""
    found = sha256()
    with file.open("rb", buffering=0) as content:
        while piece := content.read(PIECE):
            found.update(piece)
    return found.hexdigest()


def sync_folder(folder: Path) -> None:
    """What was renamed into it stays there when the power goes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def children(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def disk_error(error: OSError, folder: Path) -> FetchError:
    """What an error of writing the cache means."""
    if error.errno in _FULL:
        return FetchError(
            f"no room left for files in '{folder}'; free some ('sluice cache clean --all'), lower "
            "cache.max_mb, or give another disk with --state-dir",
            final=True,
        )
    return FetchError(f"cannot write '{folder}': {error.strerror or error}", final=True)
