"""What is fetched: the files of one version, wherever they are, and a hold on them here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Told = Callable[[int, int], object]
"""Hears, now and then, how many bytes are here and how many there will be (-1 = not known), in
the thread that fetches. What it raises ends the fetch."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a version. `name` is its path in the tree, with ``/``: ``1/model.onnx``."""

    name: str
    size: int
    """In bytes; -1 = not known before it is read."""
    identity: str = ""
    """What changes when the content does (an ETag, a commit); empty: nothing says it."""
    sha256: str = ""
    """Digest in hexadecimal, where it is declared; fetching checks it."""
    locator: str = ""
    """How the origin finds it again; nobody else looks at it."""
    archive: bool = False
    """Unpacked into the folder in which it lies; its name says what it is: ``1/model.tar.gz``."""


class Origin(Protocol):
    """Where the files of one version are. Hashable and immutable: two that are equal give the
    same files, and may be fetched once for both. Its methods block and are for threads."""

    @property
    def uri(self) -> str:
        """As people know it, without secrets: ``s3://bucket/m/3``, ``models:/m/3``."""

    @property
    def key(self) -> str:
        """Equal for equal origins and for no others, today and in another process. Files that
        were fetched are found by it while the origin cannot be reached; it may hold secrets, for
        it is kept as a digest alone. So: everything that was declared, such as URI and digests."""

    @property
    def folder(self) -> str:
        """The version's folder in the tree, such as ``1``. What lies beside it in the tree are the
        model's own files (labels, warm-up data)."""

    def files(self) -> Sequence[RemoteFile]:
        """All files of the tree. Raises `FetchError`."""

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """The content from byte `start` on, in pieces; only while `identity` still holds.

        Raises `FetchError`: with `changed` where it does not (`files` is asked again), with
        `final` where trying again is useless (denied, gone). Nothing comes from `start` at the
        end.
        """


class Lease(Protocol):
    """Fetched files that stay until it is given back."""

    @property
    def path(self) -> Path:
        """The version's folder; read only."""

    def release(self) -> None:
        """Lets the cache drop the files. May be called more than once, from any thread."""


class Fetcher(Protocol):
    """Gets the files of versions."""

    def fetch(self, origin: Origin, told: Told) -> Lease:
        """The files, from the cache or from afar; blocking, for a thread. Raises `FetchError`."""
