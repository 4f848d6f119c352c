"""The runtime for ``model.py`` files: our own small classes, transformers, and Triton's."""

from __future__ import annotations

import platform
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Final

from gateway.errors import ModelLoadError, printable
from gateway.model_settings import ModelSettings
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.onnx_options import gpu_visible
from runtimes.python.classes import METHODS, TRITON, Shape, find_class, shape_of
from runtimes.python.context import Context
from runtimes.python.loops import LoopThread
from runtimes.python.models import AsyncClassModel, ClassModel, Instances
from runtimes.python.modules import ModelModules, import_file
from runtimes.python.pb.backend import load_triton
from runtimes.python.pb.utils import utils_for
from runtimes.python.signature import Signature, agreed, complete, from_class, from_settings
from runtimes.python.transformer import load_transformer

DEFAULT_FILE: Final = "model.py"
MOST_FILES: Final = 10_000


class PythonRuntime(Runtime):
    """Loads ``model.py``. Whatever it does, it does with the gateway's rights."""

    name = "python"

    def report(self) -> RuntimeReport:
        """Always there."""
        return RuntimeReport(
            name=self.name,
            available=True,
            version=platform.python_version(),
            devices=("cpu", "gpu") if gpu_visible() else ("cpu",),
            formats=("py",),
        )

    def probe(self, artifact: Artifact) -> bool:
        """As the interface says."""
        file = artifact.file(DEFAULT_FILE)
        return file.suffix == ".py" and file.is_file()

    def executes_code(self, artifact: Artifact) -> str:
        """The file itself."""
        return artifact.file(DEFAULT_FILE).name

    def code_file(self, artifact: Artifact) -> Path | None:
        """The file itself."""
        return artifact.file(DEFAULT_FILE)

    def code_folders(self, artifact: Artifact) -> tuple[Path, ...]:
        """For Triton's files the model's folder, which Triton has in ``sys.path`` as well."""
        if artifact.path.name != artifact.version:
            return ()  # a single file, or a folder that is not one of several versions
        try:
            triton = TRITON.encode() in artifact.file(DEFAULT_FILE).read_bytes()
        except OSError:
            return ()
        return (artifact.path.parent,) if triton else ()

    def estimate(self, artifact: Artifact) -> int:
        """What code allocates nobody knows; the files beside it are taken to be its weights."""
        try:
            files = islice(artifact.path.rglob("*"), MOST_FILES)
            sizes = [file.stat().st_size for file in files if file.is_file()]
        except OSError:
            return 0  # nothing will be loaded
        return sum(sizes) * 2 + 64 * 2**20

    def load(self, artifact: Artifact) -> Model:
        """As the interface says."""
        file = model_file(artifact)
        device = device_of(artifact.settings)
        folders = [] if artifact.alone else [artifact.path, *self.code_folders(artifact)]

        def load_file() -> tuple[ModelModules, ModuleType]:
            bound = utils_for(artifact)
            return import_file(file, folders, bound, isolated=artifact.isolated)

        modules, module = load_file()
        try:
            cls = find_class(module, file.name)
            if cls.__name__ == TRITON:
                return load_triton(artifact, file, device, load_file, (modules, cls))
            return _load_ours(artifact, file.name, cls, device, modules)
        except BaseException:
            modules.close()
            raise


def _load_ours(
    artifact: Artifact, file: str, cls: type, device: str, modules: ModelModules
) -> Model:
    if callable(getattr(cls, "infer", None)):
        return _load_class(artifact, file, cls, device, modules)
    if any(callable(getattr(cls, name, None)) for name in METHODS):
        return load_transformer(artifact, file, cls, device, modules)
    raise ModelLoadError(f"{file}: {cls.__name__} has no method infer, preprocess or postprocess")


def _load_class(
    artifact: Artifact, file: str, cls: type, device: str, modules: ModelModules
) -> Model:
    shape = shape_of(cls, file)
    settings = artifact.settings
    if settings.decoupled and not shape.many:
        raise ModelLoadError(
            f"{file}: 'decoupled' is set, but {cls.__name__}.infer answers once; write it as a "
            "generator (with yield)"
        )
    loop = LoopThread(f"{artifact.model}/{artifact.version}/loop")
    made = Instances(cls, contexts(artifact, shape, device), modules, loop)
    try:
        signature = signature_of(made.objects[0], settings, file, modules)
        complete(signature, file)
        if shape.asynchronous:
            return AsyncClassModel(artifact, shape, signature, made)
        return ClassModel(shape, signature, made)
    except BaseException:
        made.close()
        raise


def contexts(artifact: Artifact, shape: Shape, device: str) -> list[Context]:
    """One for each object: asynchronous models have a single one."""
    gpus = artifact.settings.gpus or (0,)
    count = 1 if shape.asynchronous else artifact.settings.instances or 1
    return [
        Context(artifact, device, gpus[n % len(gpus)] if device == "gpu" else None, n)
        for n in range(count)
    ]


def signature_of(
    instance: object, settings: ModelSettings, file: str, modules: ModelModules
) -> Signature:
    """As the class and the settings say together; a side may be missing.

    Raises `ModelLoadError` where they contradict each other.
    """
    said = getattr(instance, "signature", None)
    if callable(said):
        try:
            said = said()
        except Exception as error:
            raise ModelLoadError(f"signature failed: {modules.where(error)}") from error
    ours = Signature() if said is None else from_class(said, file)
    return agreed(ours, from_settings(settings), file)


def model_file(artifact: Artifact) -> Path:
    """The file to import. Raises `ModelLoadError`."""
    file = artifact.file(DEFAULT_FILE)
    inside = file.absolute().is_relative_to(artifact.path.absolute()) and ".." not in file.parts
    if not inside or file.suffix != ".py":
        raise ModelLoadError(
            f"'file' is '{printable(artifact.settings.file or file.name)}', but the python runtime "
            "loads a .py file in the version's folder"
        )
    if not file.is_file():
        raise ModelLoadError(f"there is no {file.name} in version {artifact.version}")
    if not file.stem.isidentifier():
        raise ModelLoadError(f"'{file.name}' cannot be imported: its name is no Python name")
    return file


def device_of(settings: ModelSettings) -> str:
    """``cpu`` or ``gpu``. Raises `ModelLoadError` for a GPU that is not there."""
    if settings.device == "cpu":
        return "cpu"
    if gpu_visible():
        return "gpu"
    if settings.device == "gpu" or settings.gpus:
        raise ModelLoadError("device is gpu, but no GPU is visible here; set device: cpu")
    return "cpu"
