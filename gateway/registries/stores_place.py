"""What a store was seen to hold, as a place of models."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec

from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import RemoteFile
from gateway.errors import FetchError, InvalidModelSettings
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredVersion
from gateway.registries.files import Folder
from gateway.registries.model_documents import CONFIG_PBTXT, MODEL_YAML, parse_settings, parse_tree
from gateway.registries.stores_index import (
    SUMS,
    Kind,
    Shelved,
    digest_of,
    is_name,
    kind_of,
    model_name,
    parse_sums,
    shelve,
    visible,
)
from gateway.registries.stores_shelves import Shelf
from gateway.registries.traffic import TRAFFIC_YAML, Traffic, parse_traffic

READERS: Final = 8
"""Documents that are read at the same time."""
MOST_DOCUMENT: Final = 4 * 1024 * 1024
"""Largest document that is read, in bytes."""
NOWHERE: Final = Path(os.devnull)


@dataclass(frozen=True)
class Seen:
    """One look at a store."""

    kind: Kind | None = None
    files: tuple[RemoteFile, ...] = ()
    documents: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    """Name → ETag and content, of all that is read here."""


class StorePlace:
    """See `gateway.registries.catalogue.Place`."""

    def __init__(self, shelf: Shelf) -> None:
        self.source = shelf.uri
        self._uri = shelf.uri
        self._shelf = shelf
        self._name = model_name(shelf.name)
        self._seen = Seen()
        self._models: dict[str, Shelved] = {}
        self._looks = 0
        self._lock = Lock()
        self._written: dict[str, tuple[str, int]] = {}
        """Model → ETag of the split that was written, and the look that was the last before."""

    @property
    def seen(self) -> Seen:
        """What it was at the last look."""
        return self._seen

    @seen.setter
    def seen(self, seen: Seen) -> None:
        self._seen = seen
        kind = seen.kind
        self._models = {} if kind is None else shelve(visible(seen.files), kind, self._name)

    # --- looking

    def look(self) -> bool:
        """Looks anew; False where nothing has changed. Raises `FetchError`, and then all is as it
        was before."""
        self._looks += 1
        files = self._shelf.files()
        if files == self._seen.files and self._seen.kind is not None:
            return False
        shown = visible(files)
        kind = self._seen.kind
        if kind is None and shown:
            is_file = self._shelf.is_file(files)
            kind = "file" if is_file else kind_of(shown, loose=self._shelf.loose)
        models = {} if kind is None else shelve(shown, kind, self._name)
        seen = Seen(kind, files, self._read_all(models))
        with self._lock:
            self.seen = seen
            # What was written before this look began is in it.
            for name in [n for n, (_, look) in self._written.items() if look < self._looks]:
                del self._written[name]
        return True

    def _read_all(self, models: Mapping[str, Shelved]) -> dict[str, tuple[str, bytes]]:
        """The contents of all documents; those that have not changed are not read again."""
        wanted: dict[str, RemoteFile] = {}
        for model in models.values():
            for file in model.documents.values():
                wanted[file.locator] = file
            for version in model.versions.values():
                for file in version:
                    if file.name.partition("/")[2] == SUMS:
                        wanted[file.locator] = file
        known = self._seen.documents
        kept = {
            at: known[at]
            for at, file in wanted.items()
            if at in known and file.identity and known[at][0] == file.identity
        }
        missing = [file for at, file in wanted.items() if at not in kept]
        for file in missing:
            if file.size > MOST_DOCUMENT:
                raise FetchError(
                    f"{self.source}: {file.name} has {file.size} bytes, more than a document may"
                )
        if missing:
            with ThreadPoolExecutor(min(READERS, len(missing)), "sluice-read") as pool:
                for file, content in zip(missing, pool.map(self._shelf.read, missing), strict=True):
                    kept[file.locator] = (file.identity, content)
        return kept

    def folders(self, ignore: Callable[[str, str], object]) -> dict[str, str]:
        """Name → path of everything that may be a model."""
        if self._seen.kind != "models":
            return dict.fromkeys(self._models, self._uri)
        folders: dict[str, str] = {}
        for name in sorted(self._models):
            if is_name(name):
                folders[name] = f"{self._uri}/{name}"
            else:
                ignore(name, "a model's name has letters, digits, '.', '_' and '-'")
        return folders

    # --- see `Place`

    def look_into(self, path: str) -> Folder:
        """See `Place.look_into`."""
        model = self._model(path)
        # Nobody believes in it yet, at the first look.
        incomplete = {v for v in model.versions if self._looks <= 1 and self._missing(model, v)}
        return model.folder(path, incomplete)

    def read_settings(self, path: str, name: str) -> ModelSettings:
        """See `Place.read_settings`."""
        model = self._model(path)
        settings = parse_settings(self._contents(model, MODEL_YAML, CONFIG_PBTXT), name)
        if settings.file is None and (file := self._only_file(model)):
            settings = msgspec.structs.replace(settings, file=file)
        return settings

    def read_traffic(self, path: str, name: str) -> Traffic:
        """See `Place.read_traffic`."""
        where = f"{name}/{TRAFFIC_YAML}"
        contents = self._contents(self._model(path), TRAFFIC_YAML)
        if TRAFFIC_YAML not in contents:
            return Traffic()
        tree = parse_tree(contents[TRAFFIC_YAML], where)
        if not contents[TRAFFIC_YAML]:
            raise InvalidModelSettings(f"{where} is empty; delete it for no split at all")
        return parse_traffic(tree, where)

    def version(self, version: str, path: str, key: object) -> AspiredVersion:
        """See `Place.version`."""
        model = self._model(path.rpartition("/")[0])
        files = model.versions.get(version, [])
        tree = model.tree(version, self._sums(files))
        mark: object = digest_of(tree)
        if self._missing(model, version):
            mark = self._looks  # it is being put there: never the same twice
        uri = path if self._seen.kind in ("model", "models") else self._uri
        origin = self._shelf.origin(uri, version, tree) if tree else None
        return AspiredVersion(version, NOWHERE / version, (key, mark), uri, origin)

    # --- parts

    def _model(self, path: str) -> Shelved:
        if self._seen.kind != "models":
            return next(iter(self._models.values()), Shelved())
        return self._models.get(path.rpartition("/")[2], Shelved())

    def _contents(self, model: Shelved, *names: str) -> dict[str, bytes]:
        return {
            name: self._seen.documents[model.documents[name].locator][1]
            for name in names
            if name in model.documents
        }

    def _sums(self, files: list[RemoteFile]) -> dict[str, str]:
        """The digests declared for a version's files."""
        for file in files:
            if file.name.partition("/")[2] == SUMS and file.locator in self._seen.documents:
                try:
                    return parse_sums(self._seen.documents[file.locator][1])
                except ValueError:
                    return {}
        return {}

    def _missing(self, model: Shelved, version: str) -> bool:
        """Whether files that are declared for a version are not there yet."""
        files = model.versions.get(version, [])
        sums = self._sums(files)
        return bool(sums) and not sums.keys() <= {f.name.partition("/")[2] for f in files}

    def _only_file(self, model: Shelved) -> str | None:
        """The file that is meant where nobody says which; `None` is the runtime's default."""
        if self._seen.kind not in ("file", "bare") or "1" not in model.versions:
            return None
        names = [file.name.partition("/")[2] for file in model.versions["1"]]
        if self._seen.kind == "file":
            own = self._shelf.name
            return None if is_archive(own) else own
        onnx = [name for name in names if name.endswith(".onnx")]
        if "model.onnx" in names or not onnx or "MLmodel" in names:
            return None
        return (
            onnx[0] if len(onnx) == 1 else "onnx/model.onnx" if "onnx/model.onnx" in onnx else None
        )

    # --- writing

    def write(self, name: str, content: bytes) -> None:
        """Puts a model's ``traffic.yaml`` where it is still as it was seen, or written last.

        Raises `FetchError`.
        """
        with self._lock:
            known = self._models.get(name, Shelved()).documents.get(TRAFFIC_YAML)
            etag = known.identity if known is not None else ""
            if name in self._written:
                etag, _ = self._written[name]
        at = f"{name}/{TRAFFIC_YAML}" if self._seen.kind == "models" else TRAFFIC_YAML
        written = self._shelf.write(at, content, etag)
        with self._lock:
            self._written[name] = (written, self._looks)


def dump(seen: Seen) -> bytes:
    """A look at a store as bytes."""
    documents = {
        at: (etag, b64encode(text).decode()) for at, (etag, text) in seen.documents.items()
    }
    tree = {"kind": seen.kind, "files": [astuple(file) for file in seen.files]}
    return msgspec.json.encode({**tree, "documents": documents})


def load(content: bytes) -> Seen:
    """The look that `dump` made bytes of. Raises `ValueError`, `KeyError` or `TypeError`."""
    tree = msgspec.json.decode(content)
    documents = {at: (etag, b64decode(text)) for at, (etag, text) in tree["documents"].items()}
    return Seen(tree["kind"], tuple(RemoteFile(*file) for file in tree["files"]), documents)
