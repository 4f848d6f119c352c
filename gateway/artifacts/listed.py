"""Origins whose files whoever made them may have listed already."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.artifacts.base import RemoteFile
from gateway.artifacts.origins import key_of


@dataclass(frozen=True)
class ListedOrigin(ABC):
    """What a URI names. See `gateway.artifacts.base.Origin`.

    With a `listing`, nobody looks again: it holds the files, pinned to what they were.
    """

    uri: str
    folder: str = "1"
    listing: tuple[RemoteFile, ...] = ()

    @property
    def key(self) -> str:
        """See `Origin.key`."""
        return key_of(self.uri, self.folder, self.listing)

    def files(self) -> Sequence[RemoteFile]:
        """See `Origin.files`."""
        return self.listing or self._look()

    @abstractmethod
    def _look(self) -> Sequence[RemoteFile]:
        """The files, listed now. Raises `FetchError`."""

    @abstractmethod
    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Origin.read`."""
