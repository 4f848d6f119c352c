"""From a model's settings to ONNX Runtime's session options and execution providers."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gateway.errors import ModelLoadError, printable
from gateway.model_settings import ModelSettings

Option = str | int | float | bool
ProviderOptions = dict[str, str]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
PREFIXES: Final = {"cuda.": CUDA, "tensorrt.": TENSORRT}
SHORT_NAMES: Final = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}

LEVELS: Final = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
MODES: Final = {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"}
LOG_LEVELS: Final = {"verbose": 0, "info": 1, "warning": 2, "error": 3, "fatal": 4}
CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "execution_mode": tuple(MODES),
    "graph_optimization": tuple(LEVELS),
    "log_level": tuple(LOG_LEVELS),
}

OPTIONS: Final = frozenset(
    {
        "execution_mode",
        "graph_optimization",
        "inter_op_threads",
        "intra_op_threads",
        "log_level",
        "memory_arena",
        "memory_pattern",
        "providers",
    }
)
SESSION_ENTRIES: Final = frozenset(
    {
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "session.allow_released_opsets_only",
        "session.disable_aot_function_inlining",
        "session.disable_cpu_ep_fallback",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.graph_optimizations_loop_level",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.intra_op_thread_affinities",
        "session.qdq_matmulnbits_accuracy_level",
        "session.set_denormal_as_zero",
        "session.strict_shape_type_inference",
        "session.use_device_allocator_for_initializers",
    }
)
"""Handed on as they are. ONNX Runtime takes any other entry too, and ignores it; and some of
those name files, so what is not here is refused."""

_NO_CODE: Final = "native code is not loaded from a model's configuration"
_ADDRESS: Final = "it is an address in memory"
REFUSED: Final = {
    "custom_ops_library": _NO_CODE,
    "custom_op_libraries": _NO_CODE,
    "register_custom_ops_library": _NO_CODE,
    "trt_extra_plugin_lib_paths": _NO_CODE,
    "device_id": "the GPU is chosen with 'gpus'",
    "user_compute_stream": _ADDRESS,
    "has_user_compute_stream": _ADDRESS,
    "gpu_external_alloc": _ADDRESS,
    "gpu_external_free": _ADDRESS,
    "gpu_external_empty_cache": _ADDRESS,
}


@dataclass(frozen=True)
class SessionPlan:
    """What a session is made with; 0 threads = to be decided."""

    intra_op_threads: int = 0
    inter_op_threads: int = 0
    execution_mode: str = "sequential"
    graph_optimization: str = "all"
    memory_arena: bool = True
    memory_pattern: bool = True
    # Whatever ONNX Runtime would print comes as an exception too; printing it besides would
    # let any caller fill the log.
    log_level: str = "fatal"
    providers: tuple[str, ...] = ()
    provider_options: Mapping[str, ProviderOptions] = field(default_factory=dict)
    entries: Mapping[str, str] = field(default_factory=dict)

    def session_options(self, ort: Any, threads: int) -> Any:
        """An `onnxruntime.SessionOptions`; `threads` where the settings name none."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.intra_op_threads or threads
        sequential = self.execution_mode == "sequential"
        options.inter_op_num_threads = self.inter_op_threads or (1 if sequential else threads)
        options.execution_mode = getattr(ort.ExecutionMode, MODES[self.execution_mode])
        options.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, LEVELS[self.graph_optimization]
        )
        options.enable_cpu_mem_arena = self.memory_arena
        options.enable_mem_pattern = self.memory_pattern
        options.log_severity_level = LOG_LEVELS[self.log_level]
        for name, value in self.entries.items():
            options.add_session_config_entry(name, value)
        return options


def parse_options(options: Mapping[str, Option]) -> SessionPlan:
    """Raises `ModelLoadError` for an unknown option or a value it cannot have."""
    plain: dict[str, Any] = {}
    # Threads that spin while they wait for work take the processor from the gateway's own
    # threads: the model gets a little faster alone and everything gets slower together.
    entries = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    provider_options: dict[str, ProviderOptions] = {}
    for name, value in options.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), "")
        bare = name.removeprefix(prefix)
        if bare in REFUSED:
            raise ModelLoadError(f"option '{name}' is not supported: {REFUSED[bare]}")
        if prefix:
            provider_options.setdefault(PREFIXES[prefix], {})[bare] = _text(value)
        elif name in SESSION_ENTRIES:
            entries[name] = _text(value)
        elif name == "providers":
            plain[name] = _provider_names(value)
        elif name in OPTIONS:
            plain[name] = _value(name, value)
        else:
            raise ModelLoadError(_unknown(name))
    return SessionPlan(**plain, entries=entries, provider_options=provider_options)


def _unknown(name: str) -> str:
    known = [*sorted(OPTIONS), "cuda.*", "tensorrt.*", *sorted(SESSION_ENTRIES)]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"the onnx runtime has no option '{printable(name)}'{hint} (known: {', '.join(known)})"


def _text(value: Option) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _provider_names(value: Option) -> tuple[str, ...]:
    names = [name.strip() for name in str(value).split(",") if name.strip()]
    return tuple(dict.fromkeys(SHORT_NAMES.get(name.lower(), name) for name in names))


def _value(name: str, value: Option) -> Option:
    known = CHOICES.get(name)
    if known is not None:
        if value not in known:
            raise ModelLoadError(
                f"option '{name}' is '{printable(value)}'; it must be {', '.join(known)}"
            )
        return value
    if name.endswith("_threads"):
        if type(value) is not int or value < 0:
            raise ModelLoadError(
                f"option '{name}' is '{printable(value)}'; it must be a whole number, 0 or more"
            )
        return value
    if type(value) is not bool:
        raise ModelLoadError(f"option '{name}' is '{printable(value)}'; it must be true or false")
    return value


def choose_providers(
    settings: ModelSettings, plan: SessionPlan, available: Collection[str], *, gpu: bool
) -> tuple[str, ...]:
    """Execution providers in the order they are asked; the CPU always comes last.

    `gpu`: whether a GPU can be seen. Raises `ModelLoadError` when what the settings want is
    not there.
    """
    if plan.providers:
        return _asked_providers(settings, plan.providers, available)
    if settings.device == "cpu":
        return (CPU,)
    if CUDA in available and gpu:
        return (CUDA, CPU)
    if settings.device == "auto":
        return (CPU,)
    if CUDA not in available:
        raise ModelLoadError(
            "device is 'gpu', but the installed onnxruntime has no CUDA; type: "
            "pip uninstall onnxruntime && pip install 'sluicegate[onnx-gpu]'"
        )
    raise ModelLoadError(
        "device is 'gpu', but no NVIDIA GPU can be seen here; check nvidia-smi and "
        "CUDA_VISIBLE_DEVICES, or set device: auto"
    )


def _asked_providers(
    settings: ModelSettings, asked: Sequence[str], available: Collection[str]
) -> tuple[str, ...]:
    missing = [name for name in asked if name not in available]
    if missing:
        hint = "; pip install 'sluicegate[onnx-gpu]' brings CUDA and TensorRT"
        raise ModelLoadError(
            f"execution provider '{printable(missing[0])}' is not in the installed onnxruntime, "
            f"which has: {', '.join(available)}{hint if missing[0] in (CUDA, TENSORRT) else ''}"
        )
    on_gpu = any(name in (CUDA, TENSORRT) for name in asked)
    if settings.device == "cpu" and on_gpu:
        raise ModelLoadError(f"device is 'cpu', but option 'providers' asks for {asked[0]}")
    if settings.device == "gpu" and not on_gpu:
        raise ModelLoadError(f"device is 'gpu', but option 'providers' asks for {asked[0]}")
    return tuple(asked) if CPU in asked else (*asked, CPU)


def gpu_visible() -> bool:
    """Whether the machine shows an NVIDIA GPU to this process."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "none", "NoDevFiles"):
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))
