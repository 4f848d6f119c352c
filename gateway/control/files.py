"""Files that come with a load request (``file:1/model.onnx``): checked, bounded, kept whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from uuid import uuid4

from gateway.control.documents import FOLDER
from gateway.errors import ConfigError, InvalidRequest, RequestTooLarge, printable
from gateway.state import StateDir, file_name
from gateway.telemetry.logs import log

PREFIX: Final = "file:"
MOST_FILES: Final = 1000
DEEPEST: Final = 8
LONGEST_PATH: Final = 512

_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")


def check_files(files: Mapping[str, bytes], limit: int) -> None:
    """Raises `InvalidRequest` for a name that could lead out of the model's folder, or where
    none of the files is of a version; `RequestTooLarge` for more than `limit` bytes."""
    if len(files) > MOST_FILES:
        raise RequestTooLarge(f"a load may bring {MOST_FILES} files at most, not {len(files)}")
    if sum(map(len, files.values())) > limit:
        raise RequestTooLarge(f"the files are larger than limits.max_message_bytes = {limit}")
    folders: set[str] = set()
    for name in files:
        parts = name.split("/")
        if (
            len(name) > LONGEST_PATH
            or len(parts) > DEEPEST
            or not all(map(_PART.fullmatch, parts))
            or any(part.endswith(".") for part in parts)
        ):
            raise InvalidRequest(
                f"'{PREFIX}{printable(name)}' is no path inside the model's folder; give "
                f"{PREFIX}<version>/<name>, such as {PREFIX}1/model.onnx, of letters, digits, "
                "'.', '_' and '-'"
            )
        folders.update("/".join(parts[:end]) for end in range(1, len(parts)))
    for name in files:
        if name in folders:
            raise InvalidRequest(f"'{PREFIX}{name}' is a file and a folder of others")
    if not any("/" in name and _VERSION.fullmatch(name.partition("/")[0]) for name in files):
        raise InvalidRequest(
            f"none of the files is of a version; name one {PREFIX}1/model.onnx, for version 1"
        )


class Uploads:
    """The files in ``state/control/files/<model>/<load>/<version>/``. Blocking."""

    def __init__(self, state: StateDir) -> None:
        self._state = state

    def folder(self, model: str) -> Path:
        return self._state.path / FOLDER / "files" / file_name(model)

    def write(self, model: str, files: Mapping[str, bytes]) -> str:
        """Stores checked files in a new folder, whole or not at all, and returns its name.

        Raises `ConfigError` where the state directory cannot be written.
        """
        name = uuid4().hex
        parent = self._state.folder(FOLDER, "files", file_name(model))
        half = parent / f".{name}"
        try:
            half.mkdir()
            for path, content in files.items():
                target = half / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            half.rename(parent / name)
        except OSError as error:
            shutil.rmtree(half, ignore_errors=True)
            raise ConfigError(
                f"state_dir cannot keep the files of a load: {error.strerror}"
            ) from None
        return name

    def versions(self, model: str, name: str) -> dict[str, Path]:
        """The version folders of a load's files, the oldest first; empty if they are gone."""
        try:
            with os.scandir(self.folder(model) / name) as entries:
                found = [e.name for e in entries if e.is_dir() and _VERSION.fullmatch(e.name)]
        except OSError as error:
            log.error("%s: the files that it was loaded with are gone: %s", model, error.strerror)
            return {}
        return {v: self.folder(model) / name / v for v in sorted(found, key=int)}

    def keep(self, model: str, names: Iterable[str]) -> None:
        """Deletes the files of all other loads of a model."""
        folder = self.folder(model)
        kept = set(names)
        try:
            found = [path for path in folder.iterdir() if path.name not in kept]
        except OSError:
            return
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)

    def keep_all(self, named: Mapping[str, str]) -> None:
        """Deletes what no document names: `named` are models and their loads. For the start."""
        folder = self._state.path / FOLDER / "files"
        kept = {file_name(model) for model in named}
        try:
            found = [path for path in folder.iterdir() if path.name not in kept]
        except OSError:
            return
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        for model, name in named.items():
            self.keep(model, [name])
