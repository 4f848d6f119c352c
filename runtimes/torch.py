"""PyTorch models: TorchScript, exported programs, AOTInductor packages and state dicts."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import threading
import warnings
from pathlib import Path
from typing import Any, Final

from gateway.errors import ModelLoadError, SluiceError
from runtimes.cpus import usable_cores
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.onnx_options import gpu_visible
from runtimes.torch_errors import one_line
from runtimes.torch_file import Archive, Kind, candidates, model_file, open_archive
from runtimes.torch_load import KINDS, load_libraries
from runtimes.torch_model import TorchModel
from runtimes.torch_options import Plan, check_kind, choose_devices, parse_options
from runtimes.torch_package import load_package
from runtimes.torch_program import Program
from runtimes.torch_signature import Signature, declared_signature, program_signature
from runtimes.torch_threads import default_threads, set_inter_op_threads, waiting_passively
from runtimes.torch_trust import code_in

log = logging.getLogger(__name__)
_loading = threading.Lock()
"""torch.export can read one program at a time, and says so with an error."""

MISSING: Final = "PyTorch is not installed; type: pip install 'sluicegate[torch]'"


class TorchRuntime(Runtime):
    """Loads ``model.pt`` or ``model.pt2``; what the file holds tells its format."""

    name = "torch"
    preload = ("runtimes.torch_preload",)

    def report(self) -> RuntimeReport:
        """As the interface says; the library is not imported."""
        try:
            version = importlib.metadata.version("torch")
        except importlib.metadata.PackageNotFoundError:
            version = ""
        available = importlib.util.find_spec("torch") is not None
        gpu = available and gpu_visible() and not version.endswith("+cpu")
        return RuntimeReport(
            name=self.name,
            available=available,
            version=version,
            devices=("cpu", "gpu") if gpu else ("cpu",),
            formats=("pt", "pt2", "pth", "safetensors"),
            reason="" if available else MISSING,
        )

    def probe(self, artifact: Artifact) -> bool:
        """As the interface says."""
        return bool(candidates(artifact))

    def estimate(self, artifact: Artifact) -> int:
        """Weights are there once, and a second time while they are converted or placed."""
        try:
            size = model_file(artifact).stat().st_size
        except (ModelLoadError, OSError):
            return 0  # nothing will be loaded
        return size * (1 + max(1, len(artifact.settings.gpus))) + 20 * 2**20

    def executes_code(self, artifact: Artifact) -> str:
        """As the interface says: compiled code, custom operators, and a factory's module."""
        options = artifact.settings.options
        for name in ("factory", "libraries"):
            if name in options:
                return f"option '{name}' ({options[name]})"
        try:
            return code_in(open_archive(model_file(artifact)))
        except ModelLoadError:
            return ""  # nothing will be loaded

    def code_file(self, artifact: Artifact) -> Path | None:
        """The model's file, unless it needs a factory's module or libraries beside it."""
        if {"factory", "libraries"} & artifact.settings.options.keys():
            return None
        try:
            return model_file(artifact)
        except ModelLoadError:
            return None  # nothing will be loaded

    def load(self, artifact: Artifact) -> Model:
        """As the interface says."""
        return self.load_file(artifact, model_file(artifact))

    def load_file(self, artifact: Artifact, file: Path) -> Model:
        """Loads `file`, wherever it is in the artifact, with the settings' signature.

        For runtimes that read other directories. Raises `ModelLoadError`.
        """
        torch = import_torch()
        settings = artifact.settings
        plan = parse_options(settings.options)
        archive = open_archive(file)
        check_kind(plan, archive.kind, file.name)
        devices = choose_devices(settings, torch)
        instances = settings.instances or len(devices)
        set_inter_op_threads(torch, plan.inter_op_threads)
        if plan.cudnn_benchmark:
            if devices[0] == "cpu":
                log.warning("%s: option cudnn_benchmark is not used on a CPU", artifact.model)
            torch.backends.cudnn.benchmark = True
        load_libraries(torch, artifact.path, plan.library_names)
        threads = plan.intra_op_threads or default_threads(usable_cores(), instances)
        torch.set_num_threads(threads)  # of this thread, for what loading computes
        programs: list[Program] = []
        try:
            for device in devices:
                runners = -(-instances // len(devices))
                batched = bool(settings.max_batch_size)
                with _loading:
                    program = _load(torch, archive, device, plan, runners, batched=batched)
                programs.append(program)
            signature = _signature(artifact, archive, programs[0])
        except BaseException:
            for program in programs:
                program.release()
            raise
        return TorchModel(torch, programs, signature, plan, instances=instances, threads=threads)


def import_torch() -> Any:
    """The module. Raises `ModelLoadError` that says what to install."""
    try:
        with waiting_passively():
            torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise ModelLoadError(f"PyTorch cannot be imported: {error}") from error
        raise ModelLoadError(MISSING) from None
    except ImportError as error:
        raise ModelLoadError(f"PyTorch cannot be imported: {one_line(error)}") from error
    # Whoever serves TorchScript has chosen it already.
    warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
    return torch


def _load(
    torch: Any, archive: Archive, device: str, plan: Plan, runners: int, *, batched: bool
) -> Program:
    """Raises `ModelLoadError`."""
    name = archive.path.name
    try:
        if archive.kind is Kind.PACKAGE:
            return load_package(torch, archive, device, runners, batched=batched)
        return KINDS[archive.kind](torch, archive, device, plan)
    except SluiceError:
        raise
    except Exception as error:
        cause = one_line(error, archive.path.parent)
        hint = ""
        if "Unknown builtin op" in str(error) or "custom operator" in str(error):
            hint = "; name the library that has it: options: {libraries: 'my_operators.so'}"
        raise ModelLoadError(f"'{name}' cannot be loaded: {cause}{hint}") from error


def _signature(artifact: Artifact, archive: Archive, program: Program) -> Signature:
    settings = artifact.settings
    if program.inputs is not None and program.outputs is not None:
        return program_signature(settings, program.inputs, program.outputs, program.results)
    what = f"'{archive.path.name}' ({archive.kind.value})"
    return declared_signature(settings, program.arguments, program.results, what)
