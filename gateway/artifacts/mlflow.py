"""Files of versions in an MLflow registry: behind its server, in a store, or on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from gateway.artifacts.base import Origin, RemoteFile
from gateway.artifacts.origins import LocalOrigin, origin_of
from gateway.errors import FetchError, RegistryError, printable

STORES: Final = ("s3", "s3a", "gs", "az", "abfs", "abfss", "wasb", "wasbs", "hf")
"""Schemes whose servers the operator's environment names, not the URI."""
FOLDER: Final = "1"
MOST_ENTRIES: Final = 100_000
DEEPEST: Final = 64
MOST_HOPS: Final = 4
"""A version may point at a logged model or another version, and that one on."""

_LOGGED: Final = re.compile(r"models:/+(m-[0-9a-f]{32})")
_VERSION: Final = re.compile(r"models:/+([^/@:]+)/([0-9]+)")
_RUN: Final = re.compile(r"runs:/+([0-9A-Za-z_-]+)(?:/(.*))?")


class Entry(Protocol):
    """One entry of a folder behind the server's artifact proxy."""

    @property
    def path(self) -> str: ...
    @property
    def is_dir(self) -> bool: ...
    @property
    def file_size(self) -> int | str: ...


class Server(Protocol):
    """The part of a registry's client that artifacts need; its methods raise `RegistryError`."""

    def artifact_uri(self, name: str, version: str) -> str: ...
    def logged_model_uri(self, model_id: str) -> str: ...
    def run_uri(self, run_id: str) -> str: ...
    def entries(self, path: str) -> Sequence[Entry]: ...
    def content(self, path: str, start: int) -> Iterator[bytes]: ...
    def serves(self, host: str) -> bool: ...


@dataclass(frozen=True)
class Rules:
    """Where a registry's word may send us."""

    local: tuple[Path, ...] = ()
    """Directories of this machine that may hold artifacts, links resolved."""

    def allow(self, path: Path) -> bool:
        """Whether a file of this machine may be read, links resolved."""
        real = path.resolve()
        return any(root == real or root in real.parents for root in self.local)


@dataclass(frozen=True, eq=False)
class MlflowOrigin:
    """The files of one version in MLflow's registry. See `gateway.artifacts.base.Origin`."""

    place: str
    """The registry, as sources have it."""
    source: str
    """What MLflow has as the version's source."""
    created: str
    """When the version was created: another one may have its number later."""
    model: str
    version: str
    server: Server = field(repr=False)
    rules: Rules = field(repr=False)

    @property
    def folder(self) -> str:
        """See `Origin.folder`."""
        return FOLDER

    @property
    def uri(self) -> str:
        """See `Origin.uri`."""
        return f"{self.place}/{self.name}"

    @property
    def key(self) -> str:
        """See `Origin.key`. Versions of one logged model, which has a name for ever, share it."""
        if _LOGGED.fullmatch(self.source):
            return "\0".join((self.place, self.source))
        own = (self.place, self.source, self.created, self.model, self.version)
        return "\0".join(own)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MlflowOrigin) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def files(self) -> Sequence[RemoteFile]:
        """See `Origin.files`."""
        where = self._where()
        if isinstance(where, str):
            return [self._remote(where, *each) for each in self._walk(where)]
        files = where.files()
        if isinstance(where, LocalOrigin):
            for each in files:
                self._check_local(Path(each.locator))
        # Which store it is has to be found again when a file is read.
        return [replace(each, locator=f"{where.uri}\n{each.locator}") for each in files]

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Origin.read`."""
        scheme, _, path = file.locator.partition(":")
        if scheme == "mlflow-artifacts":
            yield from self._content(path, start)
            return
        uri, _, locator = file.locator.partition("\n")
        where = origin_of(uri, folder=FOLDER)
        if isinstance(where, LocalOrigin):
            self._check_local(Path(locator))
        yield from where.read(replace(file, locator=locator), start)

    # --- where

    def _where(self) -> Origin | str:
        """The path behind the server's proxy, or the origin elsewhere. Raises `FetchError`."""
        return self._allowed(self._resolved())

    def _resolved(self) -> str:
        """The URI of the files themselves."""
        try:
            uri = self.server.artifact_uri(self.model, self.version)
            for _ in range(MOST_HOPS):
                if found := _LOGGED.fullmatch(uri):
                    uri = self.server.logged_model_uri(found[1])
                elif found := _VERSION.fullmatch(uri):
                    uri = self.server.artifact_uri(found[1], found[2])
                elif found := _RUN.fullmatch(uri):
                    uri = below(self.server.run_uri(found[1]), found[2] or "")
                else:
                    return uri
        except RegistryError as error:
            raise FetchError(f"{self.name}: {error}") from None
        raise FetchError(f"{self.name}: '{printable(self.source)}' leads from one to the next")

    def _allowed(self, uri: str) -> Origin | str:
        """The files' place, if a registry may name it."""
        scheme, colon, _ = uri.partition(":")
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise FetchError(
                f"{self.name}: '{printable(uri, 200)}' is no URI", final=True
            ) from None
        if scheme == "mlflow-artifacts":
            self._check_host(uri, parts.netloc)
            return safe_path(unquote(parts.path), uri)
        if scheme in ("http", "https"):
            self._check_host(uri, parts.netloc)
            _, found, path = parts.path.partition("/mlflow-artifacts/artifacts/")
            if not found:
                raise FetchError(
                    f"{self.name}: '{printable(uri, 200)}' is no artifact of MLflow's", final=True
                )
            return safe_path(unquote(path), uri)
        if scheme in STORES and "://" in uri:
            return origin_of(uri, folder=FOLDER)
        if not colon or scheme == "file" or "/" in scheme:
            here = Path(unquote(parts.path) if scheme == "file" else uri)
            if parts.netloc not in ("", "localhost") or not here.is_absolute():
                raise FetchError(
                    f"{self.name}: the registry says its files are at '{printable(uri, 200)}', "
                    "which is no absolute path; start MLflow with --serve-artifacts",
                    final=True,
                )
            self._check_local(here)
            return LocalOrigin(here, FOLDER)
        raise FetchError(
            f"{self.name}: the registry says its files are at '{printable(uri, 200)}', and "
            f"'{printable(scheme)}' cannot be read; start MLflow with --serve-artifacts",
            final=True,
        )

    @property
    def name(self) -> str:
        """The version in messages."""
        return f"models:/{self.model}/{self.version}"

    def _check_host(self, uri: str, host: str) -> None:
        if host and not self.server.serves(host):
            raise FetchError(
                f"{self.name}: the registry sends us to another server, '{printable(uri, 200)}'; "
                "only its own is asked for artifacts",
                final=True,
            )

    def _check_local(self, path: Path) -> None:
        """Raises `FetchError` for a file of this machine that the operator has not opened."""
        if not self.rules.allow(path):
            raise FetchError(
                f"{self.name}: the registry says its files are in '{printable(path, 200)}' of this "
                f"machine; if that is meant, set mlflow.local_artifacts: ['{printable(path.parent)}"
                "'], or start MLflow with --serve-artifacts",
                final=True,
            )

    # --- behind the server's proxy

    def _walk(self, root: str) -> Iterator[tuple[str, int]]:
        """Every file below a folder: its path from there, and its size."""
        folders = [("", 0)]
        count = 0
        while folders:
            folder, depth = folders.pop()
            for entry in self._entries("/".join(filter(None, (root, folder)))):
                name = safe_path(entry.path, entry.path)
                path = f"{folder}/{name}" if folder else name
                count += 1
                if count > MOST_ENTRIES or depth > DEEPEST:
                    raise FetchError(f"{self.name} has more than {MOST_ENTRIES} files", final=True)
                if entry.is_dir:
                    folders.append((path, depth + 1))
                else:
                    yield path, size_of(entry)
        if not count:
            raise FetchError(f"{self.name} has no files in MLflow", final=True)

    def _entries(self, path: str) -> Sequence[Entry]:
        try:
            return self.server.entries(path)
        except RegistryError as error:
            raise FetchError(f"{self.name}: {error}") from None

    def _content(self, path: str, start: int) -> Iterator[bytes]:
        try:
            yield from self.server.content(path, start)
        except RegistryError as error:
            raise FetchError(f"{self.name}: {error}") from None

    def _remote(self, root: str, path: str, size: int) -> RemoteFile:
        # MLflow names no digest. A version's files are never written again: what they belong to
        # says which content it is.
        identity = sha256(f"{self.key}\0{size}".encode()).hexdigest()[:32]
        whole = f"{root}/{path}" if root else path
        return RemoteFile(f"{FOLDER}/{path}", size, identity, locator=f"mlflow-artifacts:{whole}")


def below(uri: str, path: str) -> str:
    """The URI of something below another, whose query stays at the end."""
    if not path:
        return uri
    head, mark, query = uri.partition("?")
    return f"{head.rstrip('/')}/{path}{mark}{query}"


def safe_path(path: str, shown: str) -> str:
    """A relative path with neither ``..`` nor anything else odd. Raises `FetchError`."""
    path = path.strip("/")
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or (path and {"", ".", ".."} & set(parts)):
        raise FetchError(
            f"'{printable(shown, 200)}' in MLflow's answer is no path of an artifact", final=True
        )
    return path


def size_of(entry: Entry) -> int:
    """In bytes; -1 where MLflow does not say it."""
    try:
        size = int(entry.file_size)
    except (TypeError, ValueError):
        return -1
    return size if size >= 0 else -1
