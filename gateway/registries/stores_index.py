"""From a list of files to models and versions, by the layout that directories have: pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final, Literal

from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import RemoteFile
from gateway.registries.catalogue import DOCUMENTS, LIKE_A_VERSION, NAME
from gateway.registries.files import Folder, Mark, in_order

Kind = Literal["file", "bare", "model", "models"]
"""One file; the files of one version; one model's folder; a folder of models."""

SUMS: Final = "SHA256SUMS"
VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_SUM = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")


@dataclass
class Shelved:
    """One model's files, by their names in its folder."""

    versions: dict[str, list[RemoteFile]] = field(default_factory=dict)
    documents: dict[str, RemoteFile] = field(default_factory=dict)
    side: list[RemoteFile] = field(default_factory=list)
    """Its own files besides: labels, warm-up data."""
    others: set[str] = field(default_factory=set)

    def folder(self, path: str, incomplete: Iterable[str] = ()) -> Folder:
        """As `gateway.registries.files.look_into` tells it."""
        versions = {v: f"{path}/{v}" for v in self.versions if v not in incomplete}
        marks: dict[str, Mark] = {
            name: (file.size, 0, 0, file.identity) for name, file in self.documents.items()
        }
        return Folder(in_order(versions), marks, tuple(sorted(self.others)))

    def tree(self, version: str, sums: Mapping[str, str]) -> tuple[RemoteFile, ...]:
        """What is fetched for a version: its folder (an archive that is all there is in it is
        unpacked), with the digests declared for it, and the model's own files beside it."""
        files = self.versions.get(version, [])
        if len(files) == 1 and is_archive(files[0].name):
            files = [replace(files[0], archive=True)]
        return (*summed(files, sums), *self.side)


def visible(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Those that are not hidden, nor left behind by Python."""
    return [
        file
        for file in files
        if not any(p.startswith(".") or p in ("", "__pycache__") for p in file.name.split("/"))
    ]


def kind_of(files: Iterable[RemoteFile], *, loose: bool) -> Kind | None:
    """What a place is; `None` while it is empty. `loose`: folders without versions make no
    directory of models."""
    paths = [tuple(file.name.split("/")) for file in files]
    if not paths:
        return None
    documented = any(len(p) == 1 and p[0] in DOCUMENTS for p in paths)
    versioned = any(len(p) > 1 and VERSION.fullmatch(p[0]) for p in paths)
    inner = any(
        (len(p) > 2 and VERSION.fullmatch(p[1])) or (len(p) == 2 and p[1] in DOCUMENTS)
        for p in paths
        if not VERSION.fullmatch(p[0])
    )
    if versioned:
        return "models" if inner and not documented else "model"
    if inner and not documented:
        return "models"
    loose_files = any(len(p) == 1 and p[0] not in DOCUMENTS for p in paths)
    return "bare" if loose or documented or loose_files else "models"


def shelve(files: Iterable[RemoteFile], kind: Kind, name: str) -> dict[str, Shelved]:
    """Name → files of everything that may be a model."""
    if kind == "file":
        listed = [replace(file, name=f"1/{file.name}") for file in files]
        return {name: Shelved({"1": listed})} if listed else {}
    found: dict[str, Shelved] = {}
    if kind == "models":
        for file in files:
            model, separator, rest = file.name.partition("/")
            if separator:
                _put(found.setdefault(model, Shelved()), replace(file, name=rest))
        return found
    shelved = Shelved()
    for file in files:
        if kind == "model" or file.name in DOCUMENTS:
            _put(shelved, file)
        else:
            shelved.versions.setdefault("1", []).append(replace(file, name=f"1/{file.name}"))
    return {name: shelved} if shelved.versions or shelved.documents or shelved.side else {}


def _put(shelved: Shelved, file: RemoteFile) -> None:
    first, separator, _ = file.name.partition("/")
    if not separator:
        if first in DOCUMENTS:
            shelved.documents[first] = file
        else:
            shelved.side.append(file)
    elif VERSION.fullmatch(first):
        shelved.versions.setdefault(first, []).append(file)
    else:
        shelved.others.add(first)
        if not LIKE_A_VERSION.fullmatch(first):
            shelved.side.append(file)


def model_name(name: str) -> str:
    """What a model is called after a file or folder, without the ending."""
    for ending in (".tar.gz", ".onnx", ".pt2", ".py", ".tgz", ".tar", ".zip"):
        if name.endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


def is_name(name: str) -> bool:
    """Whether a model may be called so."""
    return bool(NAME.fullmatch(name))


def digest_of(files: Iterable[RemoteFile]) -> str:
    """Differs when names, sizes or contents do."""
    digest = blake2b(digest_size=16)
    for file in sorted(files, key=lambda each: each.name):
        digest.update(f"{file.name}\0{file.size}\0{file.identity}\0".encode())
    return digest.hexdigest()


def parse_sums(content: bytes) -> dict[str, str]:
    """File → SHA-256, from what ``sha256sum`` writes. Raises `ValueError` for anything else."""
    sums: dict[str, str] = {}
    for line in content.decode().splitlines():
        if line.strip():
            match = _SUM.fullmatch(line.rstrip())
            if match is None:
                raise ValueError
            sums[match[2].removeprefix("./")] = match[1].lower()
    return sums


def summed(files: Iterable[RemoteFile], sums: Mapping[str, str]) -> list[RemoteFile]:
    """A version's files with the digests that are declared for them."""
    return [
        replace(file, sha256=file.sha256 or sums.get(file.name.partition("/")[2], ""))
        for file in files
    ]
