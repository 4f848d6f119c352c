"""MLflow model directories: each handed to the runtime of one of its flavours.

ONNX and TorchScript (or exported) models run natively, and mlflow need not be installed;
anything else by its python_function flavour, which executes code.
"""

from __future__ import annotations

import dataclasses
import logging
import zipfile
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from gateway.errors import ModelLoadError, SluiceError, printable
from gateway.model_settings import ModelSettings, TensorSettings
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.mlflow_document import MLMODEL, Document, find_root, read_document
from runtimes.mlflow_example import read_example
from runtimes.mlflow_library import MISSING, importable, installed_version
from runtimes.mlflow_pyfunc import FLAVOR as PYTHON
from runtimes.mlflow_pyfunc import code_of, load_pyfunc
from runtimes.mlflow_signature import TENSOR, fields_of

log = logging.getLogger(__name__)

ONNX: Final = "onnx"
TORCH: Final = "pytorch"
FLAVORS: Final = (ONNX, TORCH, PYTHON)
LIBRARY_BYTES: Final = 300 << 20
"""What mlflow and pandas take when they are imported."""


class MlflowRuntime(Runtime):
    """Loads folders with an ``MLmodel`` file."""

    name = "mlflow"
    preload = ("runtimes.mlflow_library", "mlflow.pyfunc")

    def report(self) -> RuntimeReport:
        """As the interface says; native flavours do without mlflow, so it is always usable."""
        reason = "" if importable() else f"for ONNX and pytorch flavours alone: {MISSING}"
        return RuntimeReport(
            name=self.name,
            available=True,
            version=installed_version(),
            devices=("cpu",),
            formats=(MLMODEL,),
            reason=reason,
        )

    def probe(self, artifact: Artifact) -> bool:
        """As the interface says."""
        return find_root(artifact) is not None

    def estimate(self, artifact: Artifact) -> int:
        """The native runtime's; else as if all files were read, and once more unpickled."""
        try:
            document = read_document(artifact)
            flavor = choose_flavor(document, artifact.settings)
            if flavor == PYTHON:
                return 2 * size_of(document.root) + LIBRARY_BYTES
            native, inner = delegate(document, artifact, flavor)
            return native.estimate(inner)
        except ModelLoadError:
            return 0  # nothing will be loaded

    def executes_code(self, artifact: Artifact) -> str:
        """What the flavour's runtime says. Raises `ModelLoadError` for a bad ``MLmodel``."""
        document = read_document(artifact)
        flavor = choose_flavor(document, artifact.settings)
        if flavor == PYTHON:
            return code_of(document)
        native, inner = delegate(document, artifact, flavor)
        return native.executes_code(inner)

    def code_file(self, artifact: Artifact) -> Path | None:
        """None for python_function, whose files are many. Raises `ModelLoadError`."""
        document = read_document(artifact)
        flavor = choose_flavor(document, artifact.settings)
        if flavor == PYTHON:
            return None
        native, inner = delegate(document, artifact, flavor)
        return native.code_file(inner)

    def load(self, artifact: Artifact) -> Model:
        """As the interface says; the input example is run once where there is one."""
        document = read_document(artifact)
        flavor = choose_flavor(document, artifact.settings)
        if flavor == PYTHON:
            model = load_pyfunc(document, artifact.settings)
        else:
            native, inner = delegate(document, artifact, flavor)
            model = native.load(inner)
            if flavor == TORCH and open_rows(document, inner.settings):
                model.batch_dimension = True  # TorchScript cannot say it; the probe will see
        try:
            warm_up(artifact.model, document, model)
        except BaseException:
            model.close()
            raise
        return model


def choose_flavor(document: Document, settings: ModelSettings) -> str:
    """The flavour that the settings name, else the first native one, else python_function.

    Raises `ModelLoadError`.
    """
    wanted = settings.options.get("flavor")
    has = [name for name in FLAVORS if name in document.flavors]
    others = printable(", ".join(document.flavors) or "none", 200)
    if wanted is not None:
        if wanted not in FLAVORS:
            raise ModelLoadError(
                f"option 'flavor' is '{printable(wanted)}'; it must be {', '.join(FLAVORS)}"
            )
        if wanted not in has:
            raise ModelLoadError(f"MLmodel has no flavour '{wanted}'; it has: {others}")
        if wanted == TORCH:
            torch_file(document)
        return str(wanted)
    if ONNX in has:
        return ONNX
    if TORCH in has and (PYTHON not in has or not is_pickled(document)):
        return TORCH
    if PYTHON in has:
        return PYTHON
    raise ModelLoadError(f"MLmodel has none of the flavours {', '.join(FLAVORS)}; it has: {others}")


def delegate(document: Document, artifact: Artifact, flavor: str) -> tuple[Runtime, Artifact]:
    """The native runtime of a flavour, and the artifact for it. Raises `ModelLoadError`."""
    options = {k: v for k, v in artifact.settings.options.items() if k != "flavor"}
    settings = replace(artifact.settings, options=options, version_files={})
    if flavor == ONNX:
        from runtimes.onnx import OnnxRuntime

        data = document.flavors[ONNX].get("data")
        document.inside(data, "data")
        return OnnxRuntime(), _inner(artifact, document, replace(settings, file=str(data)))
    from runtimes.torch import TorchRuntime

    file = torch_file(document)
    settings = with_signature(document, settings)
    name = str(file.relative_to(document.root))
    return TorchRuntime(), _inner(artifact, document, replace(settings, file=name))


def _inner(artifact: Artifact, document: Document, settings: ModelSettings) -> Artifact:
    return dataclasses.replace(artifact, path=document.root, settings=settings)


def torch_file(document: Document) -> Path:
    """The file of the pytorch flavour. Raises `ModelLoadError` for a pickled module."""
    data = document.inside(document.flavors[TORCH].get("model_data"), "model_data")
    file = _torch_file(data)
    document.inside(str(file.relative_to(document.root)), "model_data")
    if not is_torchscript(file) and file.suffix != ".pt2":
        way_out = (
            "set options: {flavor: python_function} and list its source in trust.code"
            if PYTHON in document.flavors
            else "save it with serialization_format='pt2', or as TorchScript"
        )
        raise ModelLoadError(
            f"'{file.name}' of the pytorch flavour is a pickled module, which executes code; "
            f"{way_out}"
        )
    return file


def is_pickled(document: Document) -> bool:
    """Whether the pytorch flavour holds neither TorchScript nor an exported program."""
    data = document.inside(document.flavors[TORCH].get("model_data"), "model_data")
    file = _torch_file(data)
    return file.suffix != ".pt2" and not is_torchscript(file)


def _torch_file(data: Path) -> Path:
    if not data.is_dir():
        return data
    exported = data / "model.pt2"
    return exported if exported.is_file() else data / "model.pth"


def is_torchscript(file: Path) -> bool:
    """Whether it is TorchScript's archive: what ``torch.save`` writes has no constants."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def with_signature(document: Document, settings: ModelSettings) -> ModelSettings:
    """The settings with the tensors of MLmodel's signature, where they declare none."""
    batched = bool(settings.max_batch_size)
    for side in ("input", "output"):
        text = document.signature.get(f"{side}s")
        if text is None or getattr(settings, f"{side}s"):
            continue
        fields = fields_of(text, side)
        if any(field.kind != TENSOR for field in fields):
            continue  # columns of a DataFrame are no tensors of the module
        declared = tuple(
            TensorSettings(
                name=field.name,
                datatype=field.datatype.name,
                dims=field.shape[1:] if batched else field.shape,
            )
            for field in fields
        )
        settings = replace(settings, **{f"{side}s": declared})
    return settings


def open_rows(document: Document, settings: ModelSettings) -> bool:
    """Whether the signature in MLmodel, which the settings have taken over, leaves the first
    dimension of every tensor open."""
    if settings.max_batch_size is not None or not document.signature:
        return False
    tensors = (*settings.inputs, *settings.outputs)
    return bool(tensors) and all(tensor.dims[:1] == (-1,) for tensor in tensors)


def warm_up(name: str, document: Document, model: Model) -> None:
    """Runs the input example; one that does not run is told of, and does no harm."""
    try:
        example = read_example(document, model.inputs)
        if example is not None:
            model.infer(example, (), {})
    except SluiceError as error:
        log.warning("%s: the input example does not run: %s", name, error)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
