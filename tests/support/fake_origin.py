"""An origin whose store is in memory, and does whatever a test wants in the middle of a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from gateway.artifacts.base import RemoteFile
from gateway.errors import FetchError

PIECE = 7


@dataclass(eq=False)
class FakeStore:
    """Files by name. Each reading uses up one of `faults`: (what, after how many bytes)."""

    contents: dict[str, bytes]
    identities: bool = True
    digests: bool = False
    sizes: bool = True
    archives: frozenset[str] = frozenset()
    faults: deque[tuple[str, int]] = field(default_factory=deque)
    reads: list[tuple[str, int]] = field(default_factory=list)
    """Name and start of every reading."""
    given: int = 0
    """Bytes that were handed out."""
    listed: int = 0
    unreachable: bool = False
    on_piece: Callable[[], object] = lambda: None
    generation: int = 0

    def change(self) -> None:
        """Other contents, as somebody might upload them at any time."""
        self.generation += 1
        self.contents = {
            name: f"{self.generation}:".encode() + content[::-1]
            for name, content in self.contents.items()
        }

    def identity(self, name: str) -> str:
        return sha256(b"etag" + self.contents[name]).hexdigest()[:16] if self.identities else ""


@dataclass(frozen=True)
class FakeOrigin:
    """See `gateway.artifacts.base.Origin`."""

    store: FakeStore
    uri: str = "fake://store/m/1"
    folder: str = "1"

    @property
    def key(self) -> str:
        return f"{self.uri} {self.folder}"

    def files(self) -> Sequence[RemoteFile]:
        store = self.store
        store.listed += 1
        if store.unreachable:
            raise FetchError(f"{self.uri} cannot be reached")
        return [
            RemoteFile(
                name,
                len(content) if store.sizes else -1,
                store.identity(name),
                sha256(content).hexdigest() if store.digests else "",
                archive=name in store.archives,
            )
            for name, content in store.contents.items()
        ]

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        store = self.store
        store.reads.append((file.name, start))
        if store.unreachable:
            raise FetchError(f"{self.uri} cannot be reached")
        fault, after = store.faults.popleft() if store.faults else ("", 0)
        if file.identity != store.identity(file.name):
            raise FetchError(f"{file.name} changed", changed=True)
        content = store.contents[file.name]
        for at in range(start, len(content), PIECE):
            if fault and at - start >= after:
                if fault == "cut":
                    return
                if fault == "raise":
                    raise FetchError("the connection broke")
                if fault == "crash":
                    raise RuntimeError("a bug in the client")
                if fault == "final":
                    raise FetchError("access denied", final=True)
                if fault == "change":
                    store.change()
                    raise FetchError(f"{file.name} changed", changed=True)
                if fault == "long":
                    yield content
            piece = content[at : at + PIECE]
            if fault == "wrong" and at - start + PIECE > after:
                piece = bytes(byte ^ 1 for byte in piece)
                fault = ""
            store.given += len(piece)
            store.on_piece()
            yield piece
