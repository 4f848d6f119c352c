"""The modules that a python_function model brings along (``code_paths`` of MLflow).

MLflow puts their folder on ``sys.path`` and leaves it there. In a process that serves several
versions, the second one would then get the first one's modules, without a word.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Final

from gateway.errors import ModelLoadError, printable

_lock: Final = threading.Lock()
_users: Final[dict[Path, int]] = {}


class CodeFolder:
    """One folder with modules, in use until `close`."""

    def __init__(self, folder: Path) -> None:
        """Raises `ModelLoadError` when a module in it is loaded already, from elsewhere."""
        self._folder: Path | None = folder.resolve()
        with _lock:
            for name in top_level(self._folder):
                place = _place(name)
                if place is not None and not place.is_relative_to(self._folder):
                    raise ModelLoadError(
                        f"the model's module '{printable(name)}' is loaded already, from another "
                        "model or package; set isolation: process in model.yaml, so that each "
                        "version has modules of its own"
                    )
            _users[self._folder] = _users.get(self._folder, 0) + 1

    def close(self) -> None:
        """The last user takes the modules and the folder away again."""
        folder, self._folder = self._folder, None
        if folder is None:
            return
        with _lock:
            _users[folder] -= 1
            if _users[folder]:
                return
            del _users[folder]
            for name in list(sys.modules):
                place = _place(name)
                if place is not None and place.is_relative_to(folder):
                    del sys.modules[name]
            sys.path[:] = [entry for entry in sys.path if not _within(entry, folder)]


def top_level(folder: Path) -> list[str]:
    """The modules and packages in a folder, by the names they are imported by."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    return [
        path.stem
        for path in found
        if path.stem.isidentifier()
        and (path.suffix in (".py", ".so", ".pyc") or (path / "__init__.py").is_file())
    ]


def _place(name: str) -> Path | None:
    """Where a loaded module lies; `None` for one that is not loaded, or lies nowhere."""
    module = sys.modules.get(name)
    if module is None:
        return None
    file = getattr(module, "__file__", None)
    # A built-in module, or a package without a file: it lies elsewhere.
    return Path(file).resolve() if isinstance(file, str) else Path("/")


def _within(entry: str, folder: Path) -> bool:
    return bool(entry) and Path(entry).resolve().is_relative_to(folder)
