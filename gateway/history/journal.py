"""Entries on their way to the database, in files that a crash leaves behind.

Every run of a gateway has one file, ``<run>.jsonl``, and holds a lock on it for as long as it
lives: a file that nobody has locked belongs to a run that crashed, and its time of change is the
last sign of life. Its lines are entries that may not be in the database yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from gateway.history.documents import Row
from gateway.telemetry.logs import log

SUFFIX: Final = ".jsonl"


class Journal:
    """One run's file. For one thread at a time. Raises `OSError` from everything."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    @property
    def run(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def empty(self) -> bool:
        return os.fstat(self._handle).st_size == 0

    @property
    def alive_at(self) -> float:
        """Unix seconds of the last sign of life."""
        return os.fstat(self._handle).st_mtime

    def live(self) -> None:
        """Gives a sign of life."""
        os.utime(self._handle)

    def append(self, rows: Iterable[Row]) -> None:
        """Adds entries and sees them onto the disk; all of them or none."""
        size = os.fstat(self._handle).st_size
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            os.lseek(self._handle, 0, os.SEEK_END)
            view = memoryview(text)
            while view:
                view = view[os.write(self._handle, view) :]
            os.fsync(self._handle)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._handle, size)
            raise

    def rows(self) -> list[Row]:
        """What was added; a line that a crash cut off was never promised to anybody."""
        rows: list[Row] = []
        with open(self.path, "rb") as file:
            for line in file:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    log.warning("history: left out half a line of %s", self.path.name)
        return rows

    def clear(self) -> None:
        """Forgets what was added: it is in the database."""
        if not self.empty:
            os.ftruncate(self._handle, 0)

    def close(self, *, delete: bool) -> None:
        """Gives up the lock; the file stays for the next run unless it may be deleted."""
        if delete:
            with suppress(OSError):
                self.path.unlink()
        with suppress(OSError):
            os.close(self._handle)


def new_journal(folder: Path) -> Journal:
    """The file of a run that begins, which names the run. Raises `OSError`."""
    while True:
        path = folder / (uuid4().hex + SUFFIX)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # A gateway that starts at the same time may have taken it for one that crashed.
        if lock(handle) and os.fstat(handle).st_nlink:
            return Journal(path, handle)
        os.close(handle)


def adopt(folder: Path) -> tuple[list[Journal], set[str]]:
    """The files of runs that crashed, locked now by us; and the names of the runs that live.

    Raises `OSError`.
    """
    crashed: list[Journal] = []
    alive: set[str] = set()
    for path in sorted(folder.glob("*" + SUFFIX)):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not lock(handle):
            alive.add(path.name.removesuffix(SUFFIX))
            os.close(handle)
        elif not os.fstat(handle).st_nlink:  # ended while we looked
            os.close(handle)
        else:
            crashed.append(Journal(path, handle))
    return crashed, alive


def lock(handle: int) -> bool:
    """Whether the lock could be had; it goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: nobody is told apart there from one that crashed
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
