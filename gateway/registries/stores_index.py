"""From a list of files to models and versions, by the layout that directories have: pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Final, Literal

from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import RemoteFile
from gateway.errors import InvalidModelSettings
from gateway.registries.catalogue import DOCUMENTS, LIKE_A_VERSION, NAME
from gateway.registries.files import Folder, Mark, in_order

Kind = Literal["file", "bare", "model", "models"]
"""One file; the files of one version; one model's folder; a folder of models."""

SUMS: Final = "SHA256SUMS"
VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_SUM = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")


@dataclass(frozen=True)
class Declared:
    """What a model's ``SHA256SUMS`` say."""

    sums: Mapping[str, Mapping[str, str]]
    """Version → file → digest."""
    withheld: Mapping[str, str]
    """Versions that must not be loaded, as they are not whole or their digests cannot be read,
    with why."""


@dataclass
class Shelved:
    """One model's files, by their names in its folder."""

    versions: dict[str, list[RemoteFile]] = field(default_factory=dict)
    documents: dict[str, RemoteFile] = field(default_factory=dict)
    side: list[RemoteFile] = field(default_factory=list)
    """Its own files besides: labels, warm-up data."""
    others: set[str] = field(default_factory=set)
    listed: list[RemoteFile] = field(default_factory=list)
    """The files as they were listed, of which it was made."""
    trees: dict[str, tuple[tuple[RemoteFile, ...], str]] = field(default_factory=dict)
    """Version → what is fetched for it, and the digest of that; made when it is asked for."""
    declared: Declared | None = None
    """Made when it is asked for."""

    @cached_property
    def read(self) -> list[RemoteFile]:
        """Its files that are read by the gateway itself."""
        sums = (f for version in self.versions.values() for f in version if is_sums(f))
        return [*self.documents.values(), *sums]

    def folder(self, path: str, withheld: Mapping[str, str]) -> Folder:
        """As `gateway.registries.files.look_into` tells it."""
        versions = {v: f"{path}/{v}" for v in self.versions if v not in withheld}
        marks: dict[str, Mark] = {
            name: (file.size, 0, 0, file.identity) for name, file in self.documents.items()
        }
        return Folder(in_order(versions), marks, tuple(sorted(self.others)), withheld)

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


def is_sums(file: RemoteFile) -> bool:
    """Whether it declares the digests of a version."""
    return file.name.partition("/")[2] == SUMS


def digest_of(files: Iterable[RemoteFile]) -> str:
    """Differs when names, sizes or contents do."""
    digest = blake2b(digest_size=16)
    for file in sorted(files, key=lambda each: each.name):
        digest.update(f"{file.name}\0{file.size}\0{file.identity}\0".encode())
    return digest.hexdigest()


def parse_sums(content: bytes) -> dict[str, str]:
    """File → SHA-256, from what ``sha256sum`` writes. Raises `InvalidModelSettings` for anything
    else: who declares digests must not be left without."""
    sums: dict[str, str] = {}
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise InvalidModelSettings("it is no text") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            match = _SUM.fullmatch(line.rstrip())
            if match is None:
                raise InvalidModelSettings(
                    f"line {number} is not '<64 hexadecimal digits>  <file>' (as sha256sum "
                    "writes it)"
                )
            sums[match[2].removeprefix("./")] = match[1].lower()
    sums.pop(SUMS, None)  # written while it was there: its own digest cannot be in it
    if not sums:
        raise InvalidModelSettings("it names no file")
    return sums


def summed(files: Iterable[RemoteFile], sums: Mapping[str, str]) -> list[RemoteFile]:
    """A version's files with the digests that are declared for them."""
    return [
        replace(file, sha256=file.sha256 or sums.get(file.name.partition("/")[2], ""))
        for file in files
    ]
