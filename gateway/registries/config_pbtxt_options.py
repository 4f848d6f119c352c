"""The runtime's options that a ``config.pbtxt`` holds: ``parameters`` and ``optimization``.

A name that nobody knows is refused: ONNX Runtime itself takes any session entry, misspelled
ones too, and then ignores it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Final

from gateway.errors import InvalidModelSettings
from runtimes.onnx_options import SESSION_ENTRIES

Option = str | int | float | bool
Options = dict[str, Option]

GRAPH_LEVELS: Final = {0: "all", -1: "basic", 1: "extended", 2: "disabled"}


def _natural(value: str) -> int:
    number = int(value)
    if number < 0:
        raise ValueError
    return number


def _flag(value: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[value.lower()]


def _one_of(*values: str) -> Callable[[str], str]:
    return lambda value: dict(zip(map(str, range(len(values))), values, strict=True))[value]


Parse = Callable[[str], Option]

ONNX_PARAMETERS: Final[dict[str, tuple[str, str, Parse]]] = {
    "intra_op_thread_count": ("intra_op_threads", "a whole number, 0 or more", _natural),
    "inter_op_thread_count": ("inter_op_threads", "a whole number, 0 or more", _natural),
    "execution_mode": (
        "execution_mode",
        "0 (sequential) or 1 (parallel)",
        _one_of("sequential", "parallel"),
    ),
    "enable_mem_arena": ("memory_arena", "0 or 1", _flag),
    "enable_mem_pattern": ("memory_pattern", "0 or 1", _flag),
    "cudnn_conv_algo_search": (
        "cuda.cudnn_conv_algo_search",
        "0 (exhaustive), 1 (heuristic) or 2 (default)",
        _one_of("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    ),
    "gpu_mem_limit": ("cuda.gpu_mem_limit", "a number of bytes", lambda v: str(_natural(v))),
    "arena_extend_strategy": (
        "cuda.arena_extend_strategy",
        "0 (next power of two) or 1 (same as requested)",
        _one_of("kNextPowerOfTwo", "kSameAsRequested"),
    ),
    "do_copy_in_default_stream": ("cuda.do_copy_in_default_stream", "0 or 1", _one_of("0", "1")),
}
"""Triton's parameter → (our option, what its value may be, how to read it)."""

TORCH_PARAMETERS: Final[dict[str, tuple[str, str, Parse]]] = {
    "INTRA_OP_THREAD_COUNT": ("intra_op_threads", "a whole number, 0 or more", _natural),
    "INTER_OP_THREAD_COUNT": ("inter_op_threads", "a whole number, 0 or more", _natural),
    "INFERENCE_MODE": ("inference_mode", "true or false", _flag),
    "DISABLE_OPTIMIZED_EXECUTION": (
        "optimized_execution",
        "true or false",
        lambda value: not _flag(value),
    ),
    "ENABLE_CACHE_CLEANING": ("cache_cleaning", "true or false", _flag),
    "ENABLE_WEIGHT_SHARING": (
        "",
        "true: instances share the weights here",
        lambda value: {"1": True, "true": True}[value.lower()],
    ),
}
_PROCESS_WIDE: Final = (
    "PyTorch has one such switch for the whole process, and other models would be changed with"
    " it; leave it out"
)

TENSORRT_PARAMETERS: Final = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
"""Where Triton's name differs from ONNX Runtime's; names that start with trt_ are equal."""

PRECISIONS: Final = {"FP32": None, "FP16": "trt_fp16_enable", "INT8": "trt_int8_enable"}

REFUSED_ENTRIES: Final = {
    "DISABLE_CUDNN": _PROCESS_WIDE,
    "ENABLE_JIT_EXECUTOR": _PROCESS_WIDE,
    "ENABLE_JIT_PROFILING": _PROCESS_WIDE,
    "ENABLE_TENSOR_FUSER": _PROCESS_WIDE,
    "ENABLE_NVFUSER": "PyTorch no longer has this fuser; leave it out",
    "device_id": "the GPU is chosen with instance_group.gpus",
    "trt_extra_plugin_lib_paths": "native code is not loaded from a model's configuration",
    "user_compute_stream": "it is an address in memory",
    "has_user_compute_stream": "it is an address in memory",
    "gpu_external_alloc": "it is an address in memory",
    "gpu_external_free": "it is an address in memory",
    "gpu_external_empty_cache": "it is an address in memory",
    "memory.enable_memory_arena_shrinkage": "it would be paid for in every call;"
    ' turn the arena off with enable_mem_arena "0"',
}


def runtime_options(config: Any, runtime: str | None) -> Options:
    """Options that ``config`` (a ``ModelConfig``) holds for ``runtime`` (``None``: taken for onnx).

    Raises ``InvalidModelSettings`` for an unknown name, a value that cannot be read, and
    anything ONNX Runtime's own that is said for another runtime.
    """
    options: Options = {}
    onnx = runtime in (None, "onnx")
    level = config.optimization.graph.level
    accelerators = config.optimization.execution_accelerators
    if onnx:
        _graph_level(level, options)
        _accelerators(accelerators, options)
    elif level or accelerators.gpu_execution_accelerator:
        raise InvalidModelSettings(
            "optimization.graph and optimization.execution_accelerators are options of ONNX"
            f" Runtime; leave them out for the runtime '{runtime}'"
        )
    for key in sorted(config.parameters):
        value = config.parameters[key].string_value
        if onnx:
            _onnx_parameter(key, value, options)
        elif runtime == "torch":
            _known_parameter(key, value, TORCH_PARAMETERS, options)
        else:
            # Whatever the names mean is the runtime's or, for `python`, the model's own affair.
            options[key] = value
    return options


def _graph_level(level: int, options: Options) -> None:
    if level not in GRAPH_LEVELS:
        known = ", ".join(f"{key} ({value})" for key, value in GRAPH_LEVELS.items())
        raise InvalidModelSettings(f"optimization.graph.level {level} is unknown; use {known}")
    if level:
        options["graph_optimization"] = GRAPH_LEVELS[level]


def _onnx_parameter(key: str, value: str, options: Options) -> None:
    if key in SESSION_ENTRIES:
        options[key] = value
    else:
        _known_parameter(key, value, ONNX_PARAMETERS, options)


def _known_parameter(
    key: str, value: str, table: dict[str, tuple[str, str, Parse]], options: Options
) -> None:
    path = f'parameters["{key}"]'
    if key in REFUSED_ENTRIES:
        raise InvalidModelSettings(f"{path} is not supported: {REFUSED_ENTRIES[key]}")
    if key not in table:
        known = sorted({*table, *(SESSION_ENTRIES if table is ONNX_PARAMETERS else ())})
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise InvalidModelSettings(f"{path} is unknown{hint} (known: {', '.join(known)})")
    option, allowed, parse = table[key]
    try:
        parsed = parse(value.strip())
    except (ValueError, KeyError):
        raise InvalidModelSettings(f"{path} is '{value}'; it must be {allowed}") from None
    if option:  # else it says what happens anyway
        options[option] = parsed


def _accelerators(accelerators: Any, options: Options) -> None:
    names = []
    for accelerator in accelerators.gpu_execution_accelerator:
        name = accelerator.name
        if name not in ("tensorrt", "cuda"):
            raise InvalidModelSettings(
                f"gpu_execution_accelerator '{name}' is unknown to the ONNX runtime; use"
                " 'tensorrt' or 'cuda'"
            )
        if name in names:
            raise InvalidModelSettings(f"gpu_execution_accelerator '{name}' is there twice")
        names.append(name)
        for key in sorted(accelerator.parameters):
            _accelerator_parameter(name, key, accelerator.parameters[key], options)
    if names:
        # TensorRT leaves the nodes it cannot run to CUDA, whichever was written first.
        providers = ["TensorrtExecutionProvider"] if "tensorrt" in names else []
        options["providers"] = ",".join([*providers, "CUDAExecutionProvider"])


def _accelerator_parameter(accelerator: str, key: str, value: str, options: Options) -> None:
    path = f'gpu_execution_accelerator "{accelerator}" parameters["{key}"]'
    if key in REFUSED_ENTRIES:
        raise InvalidModelSettings(f"{path} is not supported: {REFUSED_ENTRIES[key]}")
    if accelerator == "cuda":
        # ONNX Runtime refuses unknown provider options by itself.
        options[f"cuda.{key}"] = value
    elif key == "precision_mode":
        if value not in PRECISIONS:
            raise InvalidModelSettings(f"{path} is '{value}'; it must be {', '.join(PRECISIONS)}")
        if (entry := PRECISIONS[value]) is not None:
            options[f"tensorrt.{entry}"] = "1"
    elif key in TENSORRT_PARAMETERS or key.startswith("trt_"):
        options[f"tensorrt.{TENSORRT_PARAMETERS.get(key, key)}"] = value
    else:
        known = ", ".join(["precision_mode", *TENSORRT_PARAMETERS, "trt_..."])
        raise InvalidModelSettings(f"{path} is unknown (known: {known})")
