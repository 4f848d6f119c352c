"""Where the cache keeps what.

``blobs/sha256/ab/<hex>``  contents, read only
``trees/<digest>/``        the files of a version, links to blobs
``lists/<digest>.json``    what a tree must hold; its time is when the tree was last used
``index/*.json``           which tree an origin's files are
``partial/<id>``           what is being downloaded, with ``<id>.json`` beside it
``building/<name>/``       what is being put together or taken away
``locks/``                 one file per lock
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gateway.artifacts.blobs import Blobs
from gateway.artifacts.locks import FileLock, nothing


@dataclass(frozen=True)
class TreeList:
    """What a tree holds: name → content's SHA-256 and size in bytes."""

    digest: str
    uri: str
    files: dict[str, tuple[str, int]]

    @property
    def size(self) -> int:
        """Bytes, each content counted once."""
        return sum(dict(self.files.values()).values())


class Layout:
    """Paths below one cache folder, and the small documents in it. For any thread."""

    def __init__(self, root: Path, stop: Callable[[], object] = nothing) -> None:
        self.root = root
        self.blobs = Blobs(root / "blobs" / "sha256")
        self.trees = root / "trees"
        self.lists = root / "lists"
        self.index = root / "index"
        self.partial = root / "partial"
        self.building = root / "building"
        self._locks = root / "locks"
        self._stop = stop

    def make(self) -> None:
        """Makes the folders that are not there. Raises `OSError`."""
        for folder in (
            self.blobs.folder, self.trees, self.lists, self.index, self.partial, self.building,
            self._locks,
        ):  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)

    def lock(self, kind: str, name: str) -> FileLock:
        """The lock of one thing; not held yet."""
        return FileLock(self._locks / f"{kind}-{name}", self._stop)

    # --- documents

    def tree_list(self, digest: str) -> TreeList | None:
        """What a tree must hold; `None` where nobody says it."""
        document = read_json(self.lists / f"{digest}.json")
        try:
            files = {str(n): (str(d), int(s)) for n, (d, s) in document["files"].items()}
            return TreeList(digest, str(document["uri"]), files)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def write_list(self, tree: TreeList) -> None:
        """Raises `OSError`."""
        write_json(self.lists / f"{tree.digest}.json", {"uri": tree.uri, "files": tree.files}, self)

    def used(self, digest: str) -> float:
        """Unix seconds at which a tree was last taken or given back; 0 = not known."""
        try:
            return (self.lists / f"{digest}.json").stat().st_mtime
        except OSError:
            return 0.0

    def touch(self, digest: str) -> None:
        """A tree is used now."""
        with suppress(OSError):  # the order in which trees go is all that suffers
            os.utime(self.lists / f"{digest}.json")


def read_json(file: Path) -> Any:
    """A document; `None` for one that is not there, or is none."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None


def write_json(file: Path, document: object, layout: Layout) -> None:
    """Replaces a document in one step. Raises `OSError`."""
    aside = layout.building / f".{file.name}.{os.urandom(6).hex()}"
    try:
        with aside.open("wb") as content:
            content.write(json.dumps(document).encode())
            content.flush()
            os.fsync(content.fileno())
        os.replace(aside, file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def short(text: str) -> str:
    """A file name for any text, which does not give it away."""
    return sha256(text.encode()).hexdigest()[:32]
