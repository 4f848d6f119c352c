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
_WAY_OUT: Final = (
    "set isolation: process in model.yaml, so that each version has modules of its own"
)
_users: Final[dict[Path, int]] = {}


class CodeFolder:
    """One folder with modules, in use until `close`."""

    def __init__(self, folder: Path) -> None:
        """Raises `ModelLoadError` when a module in it is loaded already, from elsewhere, or
        could be: models import some of theirs at their first request."""
        self._folder: Path | None = folder.resolve()
        with _lock:
            names = top_level(self._folder)
            for name in names:
                place = _place(name)
                if place is not None and not place.is_relative_to(self._folder):
                    raise ModelLoadError(
                        f"the model's module '{printable(name)}' is loaded already, from another "
                        f"model or package; {_WAY_OUT}"
                    )
            for other in _users:
                common = sorted(set(names).intersection(top_level(other)))
                if common and other != self._folder:
                    raise ModelLoadError(
                        f"the model's module '{printable(common[0])}' is one of another loaded "
                        f"model as well; {_WAY_OUT}"
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
    names = (_imported_as(path) for path in found)
    return [name for name in dict.fromkeys(names) if name.isidentifier()]


def _imported_as(path: Path) -> str:
    """The name of a module, or of a folder: without ``__init__.py`` it is a package as well.
    Empty for other files."""
    if path.is_dir():
        return "" if path.name == "__pycache__" else path.name
    # ``fast.cpython-311-x86_64-linux-gnu.so`` is imported as ``fast``.
    ours = path.suffix in (".py", ".so", ".pyd", ".pyc")
    return path.name.partition(".")[0] if ours else ""


def _place(name: str) -> Path | None:
    """Where a loaded module lies; `None` for one that is not loaded, or lies nowhere."""
    module = sys.modules.get(name)
    if module is None:
        return None
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return Path(file).resolve()
    # A package without a file lies where its folder does; a built-in module lies elsewhere.
    folders = list(getattr(module, "__path__", ()))
    return Path(folders[0]).resolve() if folders else Path("/")


def _within(entry: str, folder: Path) -> bool:
    return bool(entry) and Path(entry).resolve().is_relative_to(folder)
