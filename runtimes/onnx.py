"""ONNX models by ONNX Runtime, on CPUs and NVIDIA GPUs."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
from pathlib import Path
from typing import Any, Final

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes.cpus import usable_cores
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.onnx_file import DEFAULT_FILE, external_files, model_file, unranked_tensors
from runtimes.onnx_metadata import read_metadata
from runtimes.onnx_model import BF16, BoundOnnxModel, OnnxModel, one_line
from runtimes.onnx_options import (
    CPU,
    CUDA,
    TENSORRT,
    SessionPlan,
    choose_providers,
    gpu_visible,
    parse_options,
)

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
        on_gpu = CUDA in providers or TENSORRT in providers
        if unused := [name for name in plan.provider_options if name not in providers]:
            log.warning("%s: options of %s are not used on %s", artifact.model, unused[0], CPU)
        if on_gpu and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds CUDA where pip has put it
        gpus = (settings.gpus or (0,)) if on_gpu else (0,)
        instances = settings.instances or len(gpus)
        gpus = gpus[:instances]
        threads = default_threads(usable_cores(), instances, len(gpus))
        sessions = [_session(ort, file, settings, plan, providers, gpu, threads) for gpu in gpus]
        args = (*sessions[0].get_inputs(), *sessions[0].get_outputs())
        unranked = () if all(arg.shape for arg in args) else unranked_tensors(file)
        metadata = read_metadata(sessions[0], settings, unranked)
        specs = (*metadata.inputs, *metadata.outputs)
        bound = on_gpu or any(spec.datatype is BF16 for spec in specs)
        kind = BoundOnnxModel if bound else OnnxModel
        return kind(ort, sessions, metadata, instances=instances)


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


def _session(
    ort: Any,
    file: Path,
    settings: ModelSettings,
    plan: SessionPlan,
    providers: tuple[str, ...],
    gpu: int,
    threads: int,
) -> Any:
    """A session on GPU `gpu`, or on the CPU. Raises `ModelLoadError`."""
    options = []
    for name in providers:
        own = dict(plan.provider_options.get(name, {}))
        if name in (CUDA, TENSORRT):
            own["device_id"] = str(gpu)
        options.append(own)
    try:
        session = ort.InferenceSession(
            str(file),  # by path: from bytes, loading holds the GIL
            plan.session_options(ort, threads),
            providers=list(providers),
            provider_options=options,
            enable_fallback=0,  # it would print, and hide that a GPU is not used
        )
    except Exception as error:
        raise ModelLoadError(
            f"'{file.name}' cannot be loaded: {one_line(error, file.parent)}"
        ) from error
    lost = [name for name in providers if name not in session.get_providers()]
    if lost and (settings.device == "gpu" or plan.providers):
        raise ModelLoadError(
            f"{lost[0]} did not start, most likely for want of CUDA's libraries; type: "
            "pip install 'onnxruntime-gpu[cuda,cudnn]', or set device: cpu"
        )
    if lost:
        log.warning("%s did not start; %s runs on %s", lost[0], file.name, CPU)
    return session
