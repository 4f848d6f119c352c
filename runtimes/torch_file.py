"""Which file of a version is PyTorch's, and what is in it: read without unpickling anything.

Everything that PyTorch saves is a zip archive, whatever its name: what lies in it tells a
TorchScript module from an exported program, compiled code, weights or a pickled object.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from gateway.errors import ModelLoadError, printable
from runtimes.interface import Artifact

DEFAULT_FILES: Final = ("model.pt2", "model.pt", "model.pth", "model.safetensors")
SUFFIXES: Final = (".pt", ".pt2", ".pth", ".ts", ".torchscript", ".safetensors")

SLACK: Final = 64 * 2**20
"""What an archive may unpack to beyond four times its size: code and tables are compressed."""
_PLAIN_GLOBALS: Final = ("torch ", "torch._utils ", "torch.storage ", "collections OrderedDict")
"""What the pickle of a state dict refers to."""


class Kind(Enum):
    """What a file holds."""

    SCRIPT = "a TorchScript module"
    PROGRAM = "an exported program"
    PACKAGE = "an AOTInductor package"
    WEIGHTS = "a state dict"


@dataclass(frozen=True)
class Archive:
    """A file and what it holds; `names` are its entries without the folder around them all."""

    path: Path
    kind: Kind
    root: str = ""
    sizes: Mapping[str, int] | None = None
    """Entry → its size in bytes; `None` for a file that is no archive (safetensors)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Entries, without the folder around them all."""
        return tuple(self.sizes or ())

    def read(self, name: str) -> bytes:
        """One entry. Raises `ModelLoadError` when the archive is damaged."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(self.root + name)
        except (KeyError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise ModelLoadError(damaged(self.path, printable(error))) from None
        except Exception as error:  # zlib.error, and what else a damaged archive brings up
            raise ModelLoadError(damaged(self.path, printable(error))) from None


def damaged(path: Path, why: str) -> str:
    """The message for a file that is not what it should be."""
    return f"'{path.name}' is damaged ({why}); save or copy it again"


def candidates(artifact: Artifact) -> list[Path]:
    """The artifact's files that could be ours: the one that the settings name, or by name."""
    settings = artifact.settings
    named = settings.version_files.get(artifact.version) or settings.file
    if named:
        path = artifact.path / named
        return [path] if path.suffix in SUFFIXES and path.is_file() else []
    names = DEFAULT_FILES if "factory" in settings.options else DEFAULT_FILES[:3]
    return [path for path in (artifact.path / name for name in names) if path.is_file()]


def model_file(artifact: Artifact) -> Path:
    """The artifact's file. Raises `ModelLoadError` when there is none, or more than one."""
    settings = artifact.settings
    named = settings.version_files.get(artifact.version) or settings.file
    if named:
        if Path(named).is_absolute() or ".." in Path(named).parts:
            raise ModelLoadError(f"file '{printable(named)}' is outside the version's folder")
        path = artifact.path / named
        if not path.is_file():
            raise ModelLoadError(
                f"file '{printable(named)}' does not exist in the version's folder"
            )
        return path
    found = candidates(artifact)
    if not found:
        names = ", ".join(DEFAULT_FILES)
        raise ModelLoadError(
            f"the version's folder has none of {names}; name the file with 'file' in model.yaml"
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ModelLoadError(
            f"the version's folder has {names}; say which to load with 'file' in model.yaml"
        )
    return found[0]


def open_archive(path: Path) -> Archive:
    """What is in `path`. Raises `ModelLoadError` for what PyTorch did not write or what would
    have to be unpickled."""
    if path.suffix == ".safetensors":
        return Archive(path, Kind.WEIGHTS)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            comment = archive.comment
    except zipfile.BadZipFile:
        raise ModelLoadError(
            f"'{path.name}' is not a PyTorch file (those are zip archives), or it is cut short; "
            "save it with torch.jit.save or torch.export.save, or copy it again"
        ) from None
    except OSError as error:
        raise ModelLoadError(f"'{path.name}' cannot be read: {error.strerror}") from None
    except Exception as error:
        raise ModelLoadError(damaged(path, printable(error))) from None
    first, slash, _ = infos[0].filename.partition("/") if infos else ("", "", "")
    root = first + slash if slash else ""
    sizes = {info.filename.removeprefix(root): info.file_size for info in infos}
    _check(path, infos, root, unique=len(sizes) == len(infos) and not comment)
    archive_of = Archive(path, Kind.WEIGHTS, root, sizes)
    kind = _kind(archive_of)
    if kind is Kind.WEIGHTS:
        _refuse_objects(archive_of)
    return Archive(path, kind, root, sizes)


def _check(path: Path, infos: list[zipfile.ZipInfo], root: str, *, unique: bool) -> None:
    """Whatever two readers could understand differently is refused, and so are bombs."""
    size = path.stat().st_size
    stored = sum(info.compress_size for info in infos)
    whole = sum(info.file_size for info in infos)
    if stored > size or not unique or not all(i.filename.startswith(root) for i in infos):
        raise ModelLoadError(damaged(path, "its entries overlap, repeat or share no folder"))
    if whole > 4 * size + SLACK:
        raise ModelLoadError(
            f"'{path.name}' has {size} bytes and would unpack to {whole}; PyTorch writes no such "
            "files"
        )


def _kind(archive: Archive) -> Kind:
    names = archive.names
    if any(name.startswith("data/aotinductor/") for name in names):
        return Kind.PACKAGE
    if any(name.startswith("models/") for name in names):
        return Kind.PROGRAM
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return Kind.SCRIPT
    if "data.pkl" in names:
        return Kind.WEIGHTS
    where = archive.path.name
    if "serialized_exported_program.json" in names:
        raise ModelLoadError(
            f"'{where}' is an exported program in the format before PyTorch 2.8; export it again "
            "with torch.export.save"
        )
    raise ModelLoadError(
        f"'{where}' is a zip archive, but neither a TorchScript module (torch.jit.save), nor an "
        "exported program (torch.export.save), nor an AOTInductor package"
    )


def _refuse_objects(archive: Archive) -> None:
    other = [name for name in pickled_globals(archive) if not name.startswith(_PLAIN_GLOBALS)]
    if other:
        raise ModelLoadError(
            f"'{archive.path.name}' is a pickled object ({printable(other[0].replace(' ', '.'))}), "
            "and unpickling executes whatever code it names; save the model with "
            "torch.jit.save(torch.jit.script(model), 'model.pt') or "
            "torch.export.save(torch.export.export(model, inputs), 'model.pt2'), or save "
            "model.state_dict() and name a factory: options: {factory: 'package.module:function'}"
        )


def pickled_globals(archive: Archive) -> Iterator[str]:
    """What the archive's pickle would import, as ``module name``; nothing is executed."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(archive.read("data.pkl")):
            if opcode.name == "GLOBAL":
                yield str(argument)
            elif opcode.name == "STACK_GLOBAL":
                yield " ".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError as error:
        raise ModelLoadError(damaged(archive.path, printable(error))) from None
