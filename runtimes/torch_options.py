"""The torch runtime's options, and the device that the settings ask for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import ModelLoadError, printable
from gateway.model_settings import ModelSettings
from runtimes.torch_file import Kind

Option = str | int | float | bool

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "autocast": ("off", "bf16", "fp16"),
    "compile": ("off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "optimize": ("none", "freeze", "inference"),
}
FLAGS: Final = (
    "cache_cleaning",
    "channels_last",
    "cudnn_benchmark",
    "inference_mode",
    "optimized_execution",
)
THREADS: Final = ("inter_op_threads", "intra_op_threads")
TEXTS: Final = ("factory", "libraries")
OPTIONS: Final = frozenset({*CHOICES, *FLAGS, *THREADS, *TEXTS})

_SCRIPT_ONLY: Final = "is for TorchScript modules"
_COMPILED: Final = "has no effect on an AOTInductor package, which is compiled already"
REFUSED: Final[Mapping[Kind, Mapping[str, str]]] = {
    Kind.SCRIPT: {
        "compile": "cannot be used on TorchScript; use 'optimize', or an exported program",
    },
    Kind.PROGRAM: {"optimize": _SCRIPT_ONLY, "optimized_execution": _SCRIPT_ONLY},
    Kind.PACKAGE: {
        "optimize": _SCRIPT_ONLY,
        "optimized_execution": _SCRIPT_ONLY,
        "autocast": _COMPILED,
        "channels_last": _COMPILED,
        "compile": _COMPILED,
    },
    Kind.WEIGHTS: {"optimize": _SCRIPT_ONLY, "optimized_execution": _SCRIPT_ONLY},
}
"""Options that a kind of file cannot have, and why."""


@dataclass(frozen=True)
class Plan:
    """How a model is loaded and run; 0 threads = to be decided."""

    autocast: str = "off"
    cache_cleaning: bool = False
    channels_last: bool = False
    compile: str = "off"
    cudnn_benchmark: bool = False
    factory: str = ""
    inference_mode: bool = True
    inter_op_threads: int = 0
    intra_op_threads: int = 0
    libraries: str = ""
    optimize: str = "none"
    optimized_execution: bool = True

    @property
    def library_names(self) -> tuple[str, ...]:
        """Files of custom operators, relative to the version's folder."""
        return tuple(name.strip() for name in self.libraries.split(",") if name.strip())


def parse_options(options: Mapping[str, Option]) -> Plan:
    """Raises `ModelLoadError` for an unknown option or a value it cannot have."""
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in OPTIONS:
            close = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ModelLoadError(
                f"the torch runtime has no option '{printable(name)}'{hint} "
                f"(known: {', '.join(sorted(OPTIONS))})"
            )
        values[name] = _value(name, value)
    return Plan(**values)


def _value(name: str, value: Option) -> Option:
    said = f"option '{name}' is '{printable(value)}'"
    if name in CHOICES:
        # YAML reads a bare off as false.
        choice = "off" if value is False and "off" in CHOICES[name] else value
        if choice not in CHOICES[name]:
            raise ModelLoadError(f"{said}; it must be {', '.join(CHOICES[name])}")
        return choice
    if name in FLAGS:
        if type(value) is not bool:
            raise ModelLoadError(f"{said}; it must be true or false")
        return value
    if name in THREADS:
        if type(value) is not int or value < 0:
            raise ModelLoadError(f"{said}; it must be a whole number, 0 or more")
        return value
    text = value if isinstance(value, str) else ""
    if name == "factory":
        module, _, function = text.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
            raise ModelLoadError(
                f"{said}; it must be 'package.module:function', a function without arguments "
                "that gives the module to load the weights into"
            )
    elif not text:
        raise ModelLoadError(f"{said}; it must name files in the version's folder, with commas")
    return text


def check_kind(plan: Plan, kind: Kind, file: str) -> None:
    """Raises `ModelLoadError` for options that the kind of file has no use for."""
    plain = Plan()
    for name, why in REFUSED[kind].items():
        if getattr(plan, name) != getattr(plain, name):
            raise ModelLoadError(f"'{file}' is {kind.value}: option '{name}' {why}")
    if plan.factory and kind is not Kind.WEIGHTS:
        raise ModelLoadError(
            f"'{file}' is {kind.value}, which needs no factory; remove the option 'factory'"
        )
    if kind is Kind.WEIGHTS and not plan.factory:
        raise ModelLoadError(
            f"'{file}' is a state dict, weights without a model; name the function that makes the "
            "module, options: {factory: 'package.module:function'}, or save the whole model with "
            "torch.export.save"
        )


def choose_devices(settings: ModelSettings, torch: Any) -> tuple[str, ...]:
    """One device for each copy of the model: ``cpu``, or ``cuda:N`` ones.

    Raises `ModelLoadError` when what the settings want is not there.
    """
    if settings.device == "cpu":
        return ("cpu",)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        if settings.device == "auto":
            return ("cpu",)
        if torch.version.cuda is None and not getattr(torch.version, "hip", None):
            raise ModelLoadError(
                "device is 'gpu', but the installed torch is built for CPUs; install a CUDA build "
                "(see pytorch.org), or set device: auto"
            )
        raise ModelLoadError(
            "device is 'gpu', but no GPU can be seen here; check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or set device: auto"
        )
    gpus = settings.gpus or (0,)
    if missing := [gpu for gpu in gpus if gpu >= count]:
        raise ModelLoadError(
            f"gpus has {missing[0]}, but the GPUs here are 0 to {count - 1}; correct 'gpus'"
        )
    gpus = gpus[: settings.instances] if settings.instances else gpus
    return tuple(f"cuda:{gpu}" for gpu in gpus)
