"""Imports a model's file under a name of its own, with the modules beside it.

Nothing of one model can be seen by another: its modules have private names, and ``import
helper`` inside them looks into the model's folder first. That works by an ``__import__`` of the
model's own, which its modules find in their ``__builtins__``; so it holds for imports inside
functions as well, in whatever thread they run. They also get an ``importlib`` of their own.

Libraries that import by name, as unpickling does, see none of this. In a process of the model's
own, its modules have their plain names, too, as far as nothing else has them: there it works.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import itertools
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, Final

from gateway.errors import ModelLoadError, printable, without_folders

_numbers: Final = itertools.count(1)
PREFIX: Final = "_sluice_model_"


class ModelModules:
    """The modules of one loaded model.

    `folders` are searched in order; without any, the file stands alone. `isolated`: no other
    model is in this process. `bound` are modules that the model gets in place of those
    of the same name elsewhere. While it is loaded they stand in ``sys.modules`` as well, for
    installed packages that import them.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        bound: Mapping[str, types.ModuleType],
        *,
        isolated: bool = False,
    ) -> None:
        self.root = f"{PREFIX}{next(_numbers)}"
        self._folders = [str(folder) for folder in folders]
        self._places = list(self._folders)
        self._isolated = isolated
        self._bound = dict(bound)
        self._importlib = _Importlib(self._import_module)
        self._builtins = {**vars(builtins), "__import__": self._import}
        package = types.ModuleType(self.root)
        package.__path__ = self._folders
        sys.modules[self.root] = package
        sys.meta_path.insert(0, self)
        _lend(self._bound)

    def load(self, file: Path) -> types.ModuleType:
        """The module of the model's main file. Raises `ModelLoadError`."""
        name = f"{self.root}.{file.stem}"
        self._places.append(str(file.parent))
        loader = _Loader(name, str(file), self._builtins)
        spec = ModuleSpec(name, loader, origin=str(file))
        spec.has_location = True
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except Exception as error:
            raise ModelLoadError(f"{file.name} cannot be imported: {self.where(error)}") from error
        except SystemExit as error:
            raise ModelLoadError(f"{file.name} ended the process when imported: {error}") from error
        return module

    def where(self, error: BaseException) -> str:
        """An exception in one line, with the file and line of the model that it came from."""
        return describe(error, self._places, alone=not self._folders)

    def close(self) -> None:
        """Forgets all of the model's modules."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _take_back(self._bound)
        plain = [name for name, owner in _plain.items() if owner is self]
        for name in plain:
            del _plain[name]
        tops = {self.root, *plain}
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            del sys.modules[name]

    # --- the import system

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """As a finder on ``sys.meta_path``: for names below our root, and plain ones of ours."""
        top = name.partition(".")[0]
        if top == self.root:
            spec = PathFinder.find_spec(name, path)
        elif self._isolated and self._is_plain(top) and _plain[top] is self:
            spec = PathFinder.find_spec(name, self._folders if path is None else path)
        else:
            return None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path, self._builtins)
        return spec

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        if level == 0:
            if (bound := self._bound.get(name)) is not None:
                return bound
            top = name.partition(".")[0]
            if top == "importlib":
                found = builtins.__import__(name, globals, locals, fromlist or (), level)
                return self._importlib if found is importlib else found
            if self._has(top) and not self._is_plain(top):
                module = importlib.import_module(f"{self.root}.{name}")
                if not fromlist:
                    return sys.modules[f"{self.root}.{top}"]
                self._submodules(module, fromlist)
                return module
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    def _import_module(self, name: str, package: str | None = None) -> types.ModuleType:
        """What models know as ``importlib.import_module``."""
        if name.startswith("."):
            name = importlib.util.resolve_name(name, package)
        if (bound := self._bound.get(name)) is not None:
            return bound
        top = name.partition(".")[0]
        if self._has(top) and not self._is_plain(top):
            name = f"{self.root}.{name}"
        return importlib.import_module(name)

    def _is_plain(self, top: str) -> bool:
        """Whether a module of ours has its plain name in this process, which is ours alone."""
        if not self._isolated:
            return False
        if top in _plain:
            return True
        if top in sys.modules or top in sys.stdlib_module_names:
            return False
        spec = PathFinder.find_spec(top, self._folders)
        if spec is None or spec.origin is None or _is_elsewhere(top):
            return False
        _plain[top] = self
        return True

    def _has(self, top: str) -> bool:
        """Whether the model's folder has a module of that name."""
        private = f"{self.root}.{top}"
        if private in sys.modules:
            return True
        if top in sys.builtin_module_names or self.root not in sys.modules:
            return False
        spec = PathFinder.find_spec(private, self._folders)
        # A folder without __init__.py counts only where nothing else has its name.
        if spec is not None and spec.origin is None:
            return top not in sys.modules and PathFinder.find_spec(top) is None
        return spec is not None

    def _submodules(self, module: types.ModuleType, names: Sequence[str]) -> None:
        if not hasattr(module, "__path__"):
            return
        for name in names:
            if name != "*" and not hasattr(module, name):
                try:
                    importlib.import_module(f"{module.__name__}.{name}")
                except ModuleNotFoundError as error:
                    if error.name != f"{module.__name__}.{name}":
                        raise  # else the statement itself says what is missing


_plain: Final[dict[str, ModelModules]] = {}
"""Top-level modules under their plain names, and whose they are."""


def _is_elsewhere(top: str) -> bool:
    """Whether a module can be imported from where all are."""
    finders = [each for each in sys.meta_path if not isinstance(each, ModelModules)]
    return any(each.find_spec(top, None) is not None for each in finders)


class _Importlib(types.ModuleType):
    """``importlib``, but for `import_module`."""

    def __init__(self, import_module: Callable[..., types.ModuleType]) -> None:
        super().__init__("importlib", importlib.__doc__)
        self.import_module = import_module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib, name)


_lent: Final[dict[str, list[types.ModuleType]]] = {}
_lock: Final = threading.Lock()


def _lend(modules: Mapping[str, types.ModuleType]) -> None:
    """Puts modules into ``sys.modules``, unless somebody else's are there."""
    with _lock:
        for name, module in modules.items():
            ours = _lent.setdefault(name, [])
            if sys.modules.get(name) in (None, *ours):
                ours.append(module)
                sys.modules[name] = module


def _take_back(modules: Mapping[str, types.ModuleType]) -> None:
    """Undoes `_lend`; those of another model that is still loaded take their place."""
    with _lock:
        for name, module in modules.items():
            ours = _lent.get(name, [])
            if module in ours:
                ours.remove(module)
                if sys.modules.get(name) is module:
                    if ours:
                        sys.modules[name] = ours[-1]
                    else:
                        del sys.modules[name]


def import_file(
    file: Path,
    folders: Sequence[Path],
    bound: Mapping[str, types.ModuleType],
    *,
    isolated: bool = False,
) -> tuple[ModelModules, types.ModuleType]:
    """A model's file, imported under a name of its own. Raises `ModelLoadError`."""
    modules = ModelModules(folders, bound, isolated=isolated)
    try:
        return modules, modules.load(file)
    except BaseException:
        modules.close()
        raise


class _Loader(SourceFileLoader):
    """Runs a source file with other builtins, and leaves no compiled files in the folder: they
    would look like a change of the model."""

    def __init__(self, name: str, path: str, names: dict[str, Any]) -> None:
        super().__init__(name, path)
        self._builtins = names

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__builtins__"] = self._builtins
        exec(self.get_code(module.__name__), vars(module))


def describe(
    error: BaseException, folders: Sequence[str], limit: int = 400, *, alone: bool = False
) -> str:
    """An exception in one line: type, message, and the last place in these folders."""
    text = printable(without_folders(" ".join(str(error).split())), limit)
    if isinstance(error, SyntaxError) and error.filename:
        text = printable(without_folders(error.msg or ""), limit)
        return f"{_place(error.filename, error.lineno)}: {type(error).__name__}: {text}"
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if any(file.startswith(f"{folder}/") for folder in folders):
            place = f"{_place(file, trace.tb_lineno)}: "
        trace = trace.tb_next
    if isinstance(error, ModuleNotFoundError) and error.name:
        text = f"{text.replace(f'{PREFIX}', '')}; install it where the gateway runs, or " + (
            "name the folder as a source: modules beside a file that is named alone are not used"
            if alone
            else "put the module beside the model's file"
        )
    return f"{place}{type(error).__name__}: {text}" if text else f"{place}{type(error).__name__}"


def _place(file: str, line: int | None) -> str:
    return f"{Path(file).name}, line {line}"
