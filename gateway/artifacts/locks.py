"""Locks between processes: one file each, let go by the system when their holder ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from gateway.errors import FetchError

FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.25


def nothing() -> None:
    """Never stops anybody."""


class FileLock:
    """One hold on the lock of a name. Two objects exclude each other, also in one process.

    `stop` is called while waiting; what it raises ends the waiting.
    """

    def __init__(self, path: Path, stop: Callable[[], object] = nothing) -> None:
        self.path = path
        self._stop = stop
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        return self._handle is not None

    def acquire(self, *, shared: bool = False, wait: bool = True) -> bool:
        """Whether it is held now. Raises `FetchError` where files cannot be locked."""
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        pause = FIRST_PAUSE
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise FetchError(
                    f"cannot write '{self.path.parent}': {error.strerror}; give another place "
                    "with --state-dir",
                    final=True,
                ) from None
            try:
                fcntl.flock(handle, how)
            except OSError as error:
                os.close(handle)
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                    raise FetchError(
                        f"files in '{self.path.parent}' cannot be locked ({error.strerror}); give "
                        "a directory on a local disk with --state-dir",
                        final=True,
                    ) from None
                if not wait:
                    return False
                self._stop()
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if is_at(handle, self.path):
                self._handle = handle
                return True
            os.close(handle)  # its file was forgotten in between; who comes now makes a new one

    def release(self) -> None:
        """Lets go; may be called more than once."""
        handle, self._handle = self._handle, None
        if handle is not None:
            # By name, since a child may have got a copy of the handle.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def forget(self) -> None:
        """Lets go and removes the file. Only for the one who holds it alone."""
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
        self.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one with that name."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
