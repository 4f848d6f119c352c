"""One file from afar to the blobs: resumed, tried again, checked."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final

from gateway.artifacts.base import Origin, RemoteFile
from gateway.artifacts.blobs import PIECE, disk_error
from gateway.artifacts.layout import Layout, read_json, short, write_json
from gateway.errors import FetchError, printable, text_of

MOST_IN_VAIN: Final = 4
"""Tries one after the other that bring nothing new before it is given up."""
MOST_TRIES: Final = 100
LONGEST_PAUSE: Final = 15.0

Heard = Callable[[int], object]
"""Hears how many bytes more are here; less than 0 when some have to be fetched again."""


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    digest: str
    size: int


class Downloads:
    """Fetches single files. For any thread and process.

    `pause` is the seconds before the first new try; `stopped` ends all of it.
    """

    def __init__(self, layout: Layout, pause: float, stopped: threading.Event) -> None:
        self._layout = layout
        self._pause = pause
        self._stopped = stopped

    def left(self, origin: Origin, file: RemoteFile) -> int:
        """Bytes that are still to come; -1 = not known."""
        if file.size < 0:
            return -1
        here = self._layout.partial / partial_id(origin, file)
        return file.size - (resumable(here, file) if here.exists() else 0)

    def get(self, origin: Origin, file: RemoteFile, heard: Heard, target: Path) -> Content:
        """Fetches a file to the blobs and to `target`, one process at a time. Raises
        `FetchError`, with `changed` where the origin has to be asked for its files again."""
        layout, name = self._layout, partial_id(origin, file)
        with layout.lock("partial", name) as lock:
            try:
                if file.sha256 and (found := self.known(file.sha256, file.size, target)):
                    heard(found.size)  # by somebody else, while this one waited
                    return found
                content = self._get(origin, file, heard, layout.partial / name)
                layout.blobs.add(layout.partial / name, content.digest, content.size, target)
                beside(layout.partial / name).unlink(missing_ok=True)
            except OSError as error:
                raise disk_error(error, layout.root) from None
            lock.forget()
            return content

    def known(self, digest: str, size: int, target: Path) -> Content | None:
        """Puts a content that is here already at `target`. Raises `OSError`."""
        if size < 0:
            try:
                size = self._layout.blobs.path(digest).stat().st_size
            except FileNotFoundError:
                return None
        return Content(digest, size) if self._layout.blobs.place(digest, size, target) else None

    def _get(self, origin: Origin, file: RemoteFile, heard: Heard, part: Path) -> Content:
        in_vain = tries = 0
        doubted = False
        while True:
            self.check()
            start = resumable(part, file) if part.exists() else 0
            if part.exists() and not os.access(part, os.R_OK | os.W_OK):
                drop(part)  # left behind so by somebody who was killed, or who is somebody else
                start = 0
            if start == 0:
                write_json(beside(part), marks(file), self._layout)
                part.write_bytes(b"")
            counted = Counted(heard)
            try:
                counted(start)
                return self._once(origin, file, counted, part, start)
            except Damaged as error:
                drop(part)
                if doubted:
                    raise FetchError(str(error), final=True) from None
                doubted = True  # once more, all of it: it may be the way here that damaged it
            except FetchError as error:
                if error.changed or error.final:
                    raise
                gained = counted.total > start
                in_vain = 0 if gained else in_vain + 1
                tries += 1
                if in_vain >= MOST_IN_VAIN or tries >= MOST_TRIES:
                    raise
                pause = min(self._pause * 2**in_vain, LONGEST_PAUSE)
                self._stopped.wait(pause * random.uniform(0.5, 1.0))
            counted.undo()

    def _once(
        self, origin: Origin, file: RemoteFile, heard: Counted, part: Path, start: int
    ) -> Content:
        """One try, from byte `start` on. Raises `FetchError`, `Damaged`, `OSError`."""
        with part.open("r+b") as out:
            digest = sha256()
            while piece := out.read(PIECE):
                digest.update(piece)
            here = out.tell()
            if here != start:
                raise Damaged(f"{shown(origin, file)}: what was fetched before cannot be read")
            if here != file.size:
                here = self._append(origin, file, heard, out, digest, start)
            out.flush()
            os.fsync(out.fileno())
        if 0 <= here < file.size:
            raise FetchError(
                f"{shown(origin, file)} ended after {here} of {file.size} bytes; it was cut off"
            )
        if file.sha256 and digest.hexdigest() != file.sha256.lower():
            raise Damaged(
                f"{shown(origin, file)} has the sha256 {digest.hexdigest()}, but "
                f"{printable(file.sha256)} is declared; it was not kept"
            )
        return Content(digest.hexdigest(), here)

    def _append(
        self,
        origin: Origin,
        file: RemoteFile,
        heard: Counted,
        out: BinaryIO,
        digest: Any,
        start: int,
    ) -> int:
        """Writes what comes, and returns the length that it has then."""
        here = start
        try:
            with closing(Pieces(origin, file, start)) as pieces:
                while (piece := pieces.next()) is not None:
                    self.check()
                    if 0 <= file.size < here + len(piece):
                        raise FetchError(
                            f"{shown(origin, file)} is longer than the {file.size} bytes that "
                            "it had when it was listed",
                            changed=True,
                        )
                    out.write(piece)
                    out.flush()  # so that it is there if this process is killed
                    digest.update(piece)
                    here += len(piece)
                    heard(len(piece))
        except FetchError as error:
            if error.changed:
                drop(Path(out.name))
            raise
        return here

    def check(self) -> None:
        """Raises `FetchError` when the gateway stops."""
        if self._stopped.is_set():
            raise FetchError("the gateway stops", final=True)


class Damaged(Exception):
    """The content is not what it should be."""


class Counted:
    """Counts what is heard, so that it can be taken back."""

    def __init__(self, heard: Heard) -> None:
        self.total = 0
        self._heard = heard

    def __call__(self, more: int) -> None:
        self.total += more
        self._heard(more)

    def undo(self) -> None:
        """It starts over."""
        self(-self.total)


class Pieces:
    """The pieces that an origin gives; whatever else goes wrong there is a `FetchError` too."""

    def __init__(self, origin: Origin, file: RemoteFile, start: int) -> None:
        self._what = shown(origin, file)
        self._pieces = self._try(lambda: iter(origin.read(file, start)))

    def next(self) -> bytes | None:
        """The next piece; `None` at the end."""
        found: bytes | None = self._try(lambda: next(self._pieces, None))
        return found

    def close(self) -> None:
        """Lets go of the connection."""
        if close := getattr(self._pieces, "close", None):
            close()

    def _try(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except FetchError:
            raise
        except Exception as error:
            text = text_of(error)
            raise FetchError(f"{self._what}: {type(error).__name__}: {text}") from error


# --- partial files


def partial_id(origin: Origin, file: RemoteFile) -> str:
    """What a file is called while it is fetched: by its content, where that is declared."""
    if file.sha256:
        return f"sha256-{short(file.sha256.lower())}"
    return short("\0".join((origin.uri, file.name, file.locator)))


def beside(part: Path) -> Path:
    """What is known of a partial file."""
    return part.with_name(f"{part.name}.json")


def marks(file: RemoteFile) -> dict[str, object]:
    return {"identity": file.identity, "sha256": file.sha256.lower(), "size": file.size}


def resumable(part: Path, file: RemoteFile) -> int:
    """How many bytes of it can be kept; 0 where they may be another file's. Raises `OSError`."""
    known = read_json(beside(part))
    if not isinstance(known, dict) or not (file.identity or file.sha256):
        return 0
    same_content = file.sha256 and known.get("sha256") == file.sha256.lower()
    same_file = known == marks(file)
    length = part.stat().st_size
    fits = file.size < 0 or length <= file.size
    return length if (same_content or same_file) and fits else 0


def drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    beside(part).unlink(missing_ok=True)


def shown(origin: Origin, file: RemoteFile) -> str:
    """A file as people know it."""
    return f"{origin.uri}: '{printable(file.name)}'"
