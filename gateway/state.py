"""The state directory: what the gateway keeps for itself and can do without."""

from __future__ import annotations

import os
import re
import tempfile
from hashlib import sha256
from pathlib import Path

from gateway.errors import ConfigError


class StateDir:
    """Files below ``state_dir``, each replaced as a whole. For any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, *parts: str) -> Path:
        """A folder below, made if need be. Raises `ConfigError`."""
        path = self.path.joinpath(*parts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"state_dir '{self.path}' cannot be written: {error.strerror}; give another one "
                "with --state-dir"
            ) from None
        return path

    def read(self, *parts: str) -> bytes | None:
        """The content of a file; `None` where there is none, or it cannot be read."""
        try:
            return self.path.joinpath(*parts).read_bytes()
        except OSError:
            return None

    def write(self, content: bytes, *parts: str) -> None:
        """Replaces a file in one step, safe against a crash. Raises `ConfigError`."""
        target = self.folder(*parts[:-1]) / parts[-1]
        try:
            handle, name = tempfile.mkstemp(prefix=f".{parts[-1]}.", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, target)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise ConfigError(f"cannot write '{target}': {error.strerror}") from None

    def delete(self, *parts: str) -> None:
        """Forgets a file; one that is not there is forgotten already."""
        self.path.joinpath(*parts).unlink(missing_ok=True)


def state_path(configured: str) -> Path:
    """Where ``state_dir`` is: as configured, else ``sluicegate`` where the system keeps state."""
    if configured:
        return Path(configured).expanduser().absolute()
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "sluicegate"


def file_name(source: str) -> str:
    """A file name for any text, readable and unique: ``s3-models-3f2a91c07d4e``."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", source).strip("-")[:60]
    return f"{readable}-{sha256(source.encode()).hexdigest()[:12]}"
