"""What a store was seen to hold, as a place of models."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec

from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import RemoteFile
from gateway.errors import FetchError, InvalidModelSettings, printable
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredVersion
from gateway.registries.files import Folder
from gateway.registries.model_documents import CONFIG_PBTXT, MODEL_YAML, parse_settings, parse_tree
from gateway.registries.stores_index import (
    SUMS,
    Declared,
    Kind,
    Shelved,
    digest_of,
    is_name,
    is_sums,
    kind_of,
    model_name,
    parse_sums,
    shelve,
    visible,
)
from gateway.registries.stores_shelves import Shelf
from gateway.registries.traffic import TRAFFIC_YAML, Traffic, parse_traffic
from gateway.threads import Threads

READERS: Final = 8
"""Documents that are read at the same time."""
MOST_DOCUMENT: Final = 4 * 1024 * 1024
"""Largest document that is read, in bytes."""
NOWHERE: Final = Path(os.devnull)
MOST_TOLD: Final = 5
"""Most missing files that are named."""

Models = dict[str, Shelved]


@dataclass(frozen=True)
class Seen:
    """One look at a store."""

    kind: Kind | None = None
    files: tuple[RemoteFile, ...] = ()
    documents: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    """Name → ETag and content, of all that is read here."""


@dataclass(frozen=True)
class Look:
    """What was found, until it is taken over."""

    seen: Seen
    models: Models


class StorePlace:
    """See `gateway.registries.catalogue.Place`."""

    def __init__(self, shelf: Shelf) -> None:
        self.source = shelf.uri
        self._uri = shelf.uri
        self._shelf = shelf
        self._name = model_name(shelf.name)
        self._seen = Seen()
        self._models: Models = {}
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
        self.take(Look(seen, self._shelved(seen.files, seen.kind)))

    # --- looking

    def look(self) -> Look | None:
        """Looks anew, and changes nothing: see `take`; `None` where all is as it was. It may
        take long. Raises `FetchError`."""
        self._looks += 1
        files = self._shelf.files()
        if files == self._seen.files and self._seen.kind is not None:
            return None
        kind = self._seen.kind
        if kind is None and (shown := visible(files)):
            is_file = self._shelf.is_file(files)
            kind = "file" if is_file else kind_of(shown, loose=self._shelf.loose)
        models = self._shelved(files, kind)
        return Look(Seen(kind, files, self._read_all(models)), models)

    def take(self, look: Look) -> None:
        """From now on it is as it was found."""
        with self._lock:
            self._seen, self._models = look.seen, look.models
            # What was written before this look began is in it.
            for name in [n for n, (_, at) in self._written.items() if at < self._looks]:
                del self._written[name]

    def _shelved(self, files: tuple[RemoteFile, ...], kind: Kind | None) -> Models:
        """The models; one that has not changed is the same object as before."""
        if kind is None:
            return {}
        if kind != "models":
            return shelve(visible(files), kind, self._name)
        groups: dict[str, list[RemoteFile]] = {}
        for file in files:
            name, separator, _ = file.name.partition("/")
            if separator:
                groups.setdefault(name, []).append(file)
        models: Models = {}
        for name, group in groups.items():
            before = self._models.get(name)
            if (
                before is not None
                and before.listed == group
                and all(f.identity for f in before.read)
            ):
                models[name] = before
                continue
            for model in shelve(visible(group), kind, self._name).values():
                model.listed = group
                models[name] = model
        return models

    def _read_all(self, models: Mapping[str, Shelved]) -> dict[str, tuple[str, bytes]]:
        """The contents of all documents; those that have not changed are not read again."""
        wanted = {file.locator: file for model in models.values() for file in model.read}
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
            readers = Threads(READERS, "sluice-read")
            contents = [readers.submit(partial(self._shelf.read, file)) for file in missing]
            try:
                for file, content in zip(missing, contents, strict=True):
                    kept[file.locator] = (file.identity, content.result())
            finally:
                readers.close()
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
        return model.folder(path, self._declared(model).withheld)

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
        if version not in model.trees:
            tree = model.tree(version, self._declared(model).sums.get(version, {}))
            model.trees[version] = (tree, digest_of(tree))
        tree, mark = model.trees[version]
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

    def _declared(self, model: Shelved) -> Declared:
        if model.declared is not None:
            return model.declared
        sums: dict[str, dict[str, str]] = {}
        withheld: dict[str, str] = {}
        for file in model.read:
            if not is_sums(file) or file.locator not in self._seen.documents:
                continue
            version = file.name.partition("/")[0]
            try:
                declared = parse_sums(self._seen.documents[file.locator][1])
            except InvalidModelSettings as error:
                withheld[version] = f"{version}/{SUMS}: {error}; the version is not loaded so"
                continue
            there = {each.name.partition("/")[2] for each in model.versions[version]}
            if missing := sorted(declared.keys() - there):
                named = ", ".join(f"'{printable(name, 100)}'" for name in missing[:MOST_TOLD])
                more = ", ..." if len(missing) > MOST_TOLD else ""
                withheld[version] = (
                    f"version {version} waits for {named}{more}, which its {SUMS} names"
                )
            sums[version] = declared
        model.declared = Declared(sums, withheld)
        return model.declared

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
    files = [
        (f.name, f.size, f.identity, f.sha256, f.locator, f.archive) for f in seen.files
    ]  # not `astuple`, which copies
    tree = {"kind": seen.kind, "files": files}
    return msgspec.json.encode({**tree, "documents": documents})


def load(content: bytes) -> Seen:
    """The look that `dump` made bytes of. Raises `ValueError`, `KeyError` or `TypeError`."""
    tree = msgspec.json.decode(content)
    documents = {at: (etag, b64decode(text)) for at, (etag, text) in tree["documents"].items()}
    return Seen(tree["kind"], tuple(RemoteFile(*file) for file in tree["files"]), documents)
