"""ONNX models by ONNX Runtime, on CPUs and NVIDIA GPUs."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from gateway.tensors import BYTES, DATATYPES
from runtimes.cpus import usable_cores
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.onnx_file import DEFAULT_FILE, external_files, model_file, unranked_tensors
from runtimes.onnx_metadata import Metadata, read_metadata
from runtimes.onnx_model import BoundOnnxModel, OnnxModel, one_line
from runtimes.onnx_options import (
    CUDA,
    TENSORRT,
    SessionPlan,
    choose_providers,
    gpu_visible,
    parse_options,
)

BF16: Final = DATATYPES["BF16"]
log = logging.getLogger(__name__)

PACKAGES: Final = ("onnxruntime", "onnxruntime-gpu")
MISSING: Final = "ONNX Runtime is not installed; type: pip install 'sluicegate[onnx]'"
BOTH: Final = (
    "onnxruntime and onnxruntime-gpu are both installed and have overwritten each other's files; "
    "type: pip uninstall onnxruntime onnxruntime-gpu && pip install 'sluicegate[onnx-gpu]'"
)


class OnnxRuntime(Runtime):
    """Loads ``model.onnx``, a file or a folder with one ONNX file in it."""

    name = "onnx"

    def report(self) -> RuntimeReport:
        """As the interface says; the library is not imported."""
        found = installed_packages()
        reason = ""
        if len(found) > 1:
            reason = BOTH
        elif importlib.util.find_spec("onnxruntime") is None:
            reason = MISSING
        gpu = "onnxruntime-gpu" in found and gpu_visible()
        return RuntimeReport(
            name=self.name,
            available=not reason,
            version=next(iter(found.values()), ""),
            devices=("cpu", "gpu") if gpu else ("cpu",),
            formats=("onnx",),
            reason=reason,
        )

    def probe(self, artifact: Artifact) -> bool:
        """As the interface says."""
        path = artifact.file(DEFAULT_FILE)
        if path.is_dir():
            return any(path.glob("*.onnx"))
        return path.suffix == ".onnx" and path.is_file()

    def estimate(self, artifact: Artifact) -> int:
        """Weights are there once, and for a while a part of them twice while they are packed."""
        try:
            file = model_file(artifact)
            files = (file, *external_files(file, artifact.path))
        except ModelLoadError:
            return 0  # nothing will be loaded
        return int(sum(f.stat().st_size for f in files) * 1.5) + 10 * 2**20

    def load(self, artifact: Artifact) -> Model:
        """As the interface says."""
        ort = import_onnxruntime()
        settings = artifact.settings
        plan = parse_options(settings.options)
        file = model_file(artifact)
        external_files(file, artifact.path)
        providers = choose_providers(
            settings, plan, ort.get_available_providers(), gpu=gpu_visible()
        )
        if unused := [name for name in plan.provider_options if name not in providers]:
            log.warning("%s: options of %s are not used", artifact.model, unused[0])
        make = _SessionMaker(ort, file, settings, plan, providers)
        gpus = settings.gpus or (0,)
        instances = settings.instances or (len(gpus) if _on_gpu(providers) else 1)
        gpus = gpus[:instances] if _on_gpu(providers) else (0,)
        threads = default_threads(usable_cores(), instances, len(gpus))
        sessions = [make(gpus[0], threads)]
        on_gpu = _on_gpu(sessions[0].get_providers())
        if on_gpu:
            sessions += [make(gpu, threads) for gpu in gpus[1:]]
        args = (*sessions[0].get_inputs(), *sessions[0].get_outputs())
        unranked = () if all(arg.shape for arg in args) else unranked_tensors(file)
        metadata = read_metadata(sessions[0], settings, unranked)
        return _model_class(metadata, on_gpu=on_gpu)(ort, sessions, metadata, instances=instances)


def installed_packages() -> dict[str, str]:
    """Distributions of ONNX Runtime that are installed, and their versions."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def import_onnxruntime() -> Any:
    """The module. Raises `ModelLoadError` that says what to install."""
    if len(installed_packages()) > 1:
        raise ModelLoadError(BOTH)
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise ModelLoadError(f"ONNX Runtime cannot be imported: {error}") from error
        raise ModelLoadError(MISSING) from None
    except ImportError as error:
        raise ModelLoadError(f"ONNX Runtime cannot be imported: {one_line(error)}") from error


def default_threads(cores: int, instances: int, sessions: int) -> int:
    """Threads that one session computes with, so that all together are as many as cores.

    Instances that share a session share its threads too: each brings its own, and the session
    adds the rest.
    """
    if sessions > 1:
        return max(1, cores // sessions)
    return max(1, cores - instances + 1)


def _model_class(metadata: Metadata, *, on_gpu: bool) -> type[OnnxModel]:
    """Raises `ModelLoadError` for what neither way of calling can do."""
    bfloat16 = any(spec.datatype is BF16 for spec in (*metadata.inputs, *metadata.outputs))
    text = any(spec.datatype is BYTES for spec in metadata.inputs)
    if bfloat16 and text:
        raise ModelLoadError(
            "ONNX Runtime's Python interface cannot take text inputs beside BF16 tensors; "
            "export the model with FP16 or FP32 instead of BF16"
        )
    return BoundOnnxModel if bfloat16 or (on_gpu and not text) else OnnxModel


def _on_gpu(providers: Collection[str]) -> bool:
    return CUDA in providers or TENSORRT in providers


@dataclass(frozen=True)
class _SessionMaker:
    ort: Any
    file: Path
    settings: ModelSettings
    plan: SessionPlan
    providers: tuple[str, ...]

    def __call__(self, gpu: int, threads: int) -> Any:
        """A session on GPU `gpu`, or on the CPU. Raises `ModelLoadError`."""
        if _on_gpu(self.providers) and hasattr(self.ort, "preload_dlls"):
            self.ort.preload_dlls()  # finds CUDA where pip has put it
        try:
            session = self.ort.InferenceSession(
                str(self.file),  # by path: from bytes, loading holds the GIL
                self.plan.session_options(self.ort, threads),
                providers=list(self.providers),
                provider_options=[self._provider_options(name, gpu) for name in self.providers],
                enable_fallback=0,  # it would print, and hide that a GPU is not used
            )
        except Exception as error:
            cause = one_line(error, self.file.parent)
            raise ModelLoadError(f"'{self.file.name}' cannot be loaded: {cause}") from error
        self._check(session.get_providers())
        return session

    def _provider_options(self, name: str, gpu: int) -> dict[str, str]:
        device = {"device_id": str(gpu)} if _on_gpu((name,)) else {}
        return {**self.plan.provider_options.get(name, {}), **device}

    def _check(self, started: Collection[str]) -> None:
        """A provider that does not start is left out without an error."""
        lost = [name for name in self.providers if name not in started]
        if not lost:
            return
        if self.settings.device == "gpu" or self.plan.providers:
            raise ModelLoadError(
                f"{lost[0]} did not start, most likely for want of CUDA's libraries; type: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]', or set device: cpu"
            )
        log.warning("%s did not start; %s runs on the CPU", lost[0], self.file.name)
