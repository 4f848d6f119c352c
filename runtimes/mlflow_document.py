"""The ``MLmodel`` file: where it is, what it says, and which files of the folder it means.

It is YAML that strangers write: it is read with bounds, makes no objects, and every file that
it names must lie in the version's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from gateway.errors import ModelLoadError, printable
from runtimes.interface import Artifact

MLMODEL: Final = "MLmodel"
MOST_BYTES: Final = 1 << 20
"""Of the file; MLflow writes a few thousand."""


@dataclass(frozen=True)
class Document:
    """What one ``MLmodel`` says. `root` is the folder it lies in, `limit` the version's."""

    root: Path
    limit: Path
    flavors: Mapping[str, Mapping[str, Any]]
    signature: Mapping[str, Any]
    example: Mapping[str, Any]

    def inside(self, name: object, what: str) -> Path:
        """The file or folder called `name`, relative to `root`; `what` is the key that says so.

        Raises `ModelLoadError` unless it is there, and in the version's folder.
        """
        shown = f"{MLMODEL}: {what} '{printable(name)}'"
        if not isinstance(name, str) or not name:
            raise ModelLoadError(f"{shown} must be the name of a file in the model's folder")
        path = self.root / name
        try:
            real = path.resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise ModelLoadError(f"{shown} is not in the model's folder; copy it there") from None
        if ".." in Path(name).parts or not real.is_relative_to(self.limit.resolve()):
            raise ModelLoadError(
                f"{shown} is outside the version's folder; only what is in it is read"
            )
        return path


def find_root(artifact: Artifact) -> Path | None:
    """The folder that holds ``MLmodel``: the version's, the one in it that does, or the one that
    ``file`` names. `None` where there is none; the first by name where there are several."""
    roots = find_roots(artifact)
    return roots[0] if roots else None


def find_roots(artifact: Artifact) -> list[Path]:
    """As `find_root`, all of them."""
    settings, folder = artifact.settings, artifact.path
    if settings.version_files.get(artifact.version) or settings.file:
        named = artifact.file(MLMODEL)
        root = named.parent if named.name == MLMODEL else named
        return [root] if (root / MLMODEL).is_file() else []
    if (folder / MLMODEL).is_file():
        return [folder]
    try:
        return sorted(path.parent for path in folder.glob(f"*/{MLMODEL}") if path.is_file())
    except OSError:
        return []


def read_document(artifact: Artifact) -> Document:
    """The artifact's ``MLmodel``. Raises `ModelLoadError`."""
    roots = find_roots(artifact)
    if not roots:
        raise ModelLoadError(
            f"there is no {MLMODEL} file in the version's folder, nor in a folder in it"
        )
    if len(roots) > 1:
        names = ", ".join(root.name for root in roots)
        raise ModelLoadError(
            f"several folders hold an {MLMODEL} file ({printable(names, 200)}); name one with "
            "'file' in model.yaml"
        )
    root = roots[0]
    limit = artifact.path.resolve()
    file = root / MLMODEL
    if ".." in root.parts or not file.resolve().is_relative_to(limit):
        raise ModelLoadError(f"{MLMODEL} is outside the version's folder; copy the model there")
    content = parse(read_bounded(file))
    flavors = {
        str(name): flavor
        for name, flavor in mapping(content, "flavors").items()
        if isinstance(flavor, dict)
    }
    return Document(
        root,
        limit,
        flavors,
        mapping(content, "signature"),
        mapping(content, "saved_input_example_info"),
    )


def read_bounded(file: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file. Raises `ModelLoadError` for one that is too large."""
    try:
        with file.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise ModelLoadError(f"{file.name} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise ModelLoadError(f"{file.name} is larger than {most >> 20} MiB, which none should be")
    return data


def parse(data: bytes) -> dict[str, Any]:
    """The document of ``MLmodel``. Raises `ModelLoadError`."""
    try:
        content = yaml.safe_load(data)
    except RecursionError:
        raise ModelLoadError(f"{MLMODEL} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, odd dates
        cause = printable(" ".join(str(error).split()), 200)
        raise ModelLoadError(f"{MLMODEL} is not YAML: {cause}") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{MLMODEL} must hold keys and values, such as 'flavors'")
    return content


def mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The mapping at `key`, empty where there is none. Raises `ModelLoadError`."""
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ModelLoadError(
            f"{MLMODEL}: '{key}' must hold keys and values, not a {type(value).__name__}"
        )
    return value
