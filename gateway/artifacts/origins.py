"""From the URI of a version's folder or file to where its files are."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Final
from urllib.parse import unquote, urlsplit

from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import Origin, RemoteFile
from gateway.errors import FetchError

BUCKETS: Final = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
    "wasb": "az",
    "wasbs": "az",
}
"""Scheme of an object store → the extra that reads it."""
KNOWN: Final = "s3://, gs://, az://, hf://, http(s)://, oci://, file://"
PIECE: Final = 1024 * 1024


def origin_of(uri: str, *, folder: str = "1") -> Origin:
    """Where the files of the version at `uri` are: a folder (all that is below it), or one file.

    `folder` is the version's name in the tree that is fetched. Nothing is asked for yet. Raises
    `FetchError` for a URI that cannot be one, and for an extra that is not installed.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        return LocalOrigin(local_path(uri), folder)
    if scheme in BUCKETS:
        from gateway.artifacts.stores import StoreOrigin, bucket_of

        bucket_of(uri)
        needed("obstore", BUCKETS[scheme], uri)
        return StoreOrigin(uri.rstrip("/"), folder)
    if scheme == "hf":
        from gateway.artifacts.hf import HfOrigin, repo_of

        repo_of(uri)
        needed("huggingface_hub", "hf", uri)
        return HfOrigin(uri.rstrip("/"), folder)
    if scheme in ("http", "https"):
        from gateway.artifacts.http import HttpOrigin

        return HttpOrigin(uri, folder)
    if scheme in ("oci", "oci+http"):
        from gateway.artifacts.oci import OciOrigin, image_of

        image_of(uri)
        needed("oras", "oci", uri)
        return OciOrigin(uri, folder)
    raise FetchError(f"'{uri}': the scheme '{scheme}' is not known; known are {KNOWN}")


def key_of(uri: str, folder: str, files: Sequence[RemoteFile]) -> str:
    """`Origin.key` of a URI, with the files that were listed there, if they were."""
    listed = [(each.name, each.size, each.identity, each.sha256) for each in files]
    digest = sha256(repr(listed).encode()).hexdigest() if files else ""
    return "\0".join((uri, folder, digest))


def needed(module: str, extra: str, uri: str) -> ModuleType:
    """The module that reads `uri`. Raises `FetchError` that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != module:
            raise
        raise FetchError(
            f"{uri} needs '{module}', which is not installed: pip install 'sluicegate[{extra}]'"
        ) from None


def local_path(uri: str) -> Path:
    """The path in a ``file://`` URI, or of a plain path. Raises `FetchError`."""
    if not uri.startswith("file:"):
        return Path(uri).expanduser().absolute()
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise FetchError(f"'{uri}' names the host '{parts.netloc}'; write file:///PATH")
    return Path(unquote(parts.path))


@dataclass(frozen=True)
class LocalOrigin:
    """Files of this machine. See `gateway.artifacts.base.Origin`."""

    path: Path
    folder: str = "1"

    @property
    def uri(self) -> str:
        """See `Origin.uri`."""
        return self.path.as_uri()

    @property
    def key(self) -> str:
        """See `Origin.key`."""
        return key_of(self.uri, self.folder, ())

    def files(self) -> Sequence[RemoteFile]:
        """See `Origin.files`."""
        found: list[Path] = []
        if self.path.is_file():
            found.append(self.path)
        for at, _, names in os.walk(self.path):
            found.extend(Path(at, name) for name in names)
        if not found:
            raise FetchError(f"{self.uri} holds no files")
        base = self.path.parent if self.path.is_file() else self.path
        try:
            return [self._file(each, base) for each in sorted(found)]
        except OSError as error:
            raise FetchError(f"{self.uri} cannot be read: {error.strerror}") from None

    def _file(self, path: Path, base: Path) -> RemoteFile:
        stat = path.stat()
        identity = f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"
        name = f"{self.folder}/{path.relative_to(base).as_posix()}"
        archive = path == self.path and is_archive(path.name)
        return RemoteFile(name, stat.st_size, identity, locator=str(path), archive=archive)

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Origin.read`."""
        try:
            with open(file.locator, "rb") as source:
                source.seek(start)
                while piece := source.read(PIECE):
                    yield piece
                stat = os.fstat(source.fileno())
        except OSError as error:
            raise FetchError(f"{self.uri} cannot be read: {error.strerror}") from None
        if f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}" != file.identity:
            raise FetchError(f"{self.uri}: {file.name} changed while it was read")
