"""The module ``triton_python_backend_utils``, made anew for each model that imports it."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any, Final, NoReturn

from gateway.errors import SluiceError
from runtimes.interface import Artifact
from runtimes.python.pb import messages, metrics, tensor
from runtimes.python.pb.bindings import Binding
from runtimes.python.pb.errors import TritonError, TritonModelException
from runtimes.python.pb.model_config import ModelConfig

NAMES: Final = ("triton_python_backend_utils", "c_python_backend_utils")


class LogLevel(IntEnum):
    """Triton's levels."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_LEVELS: Final = {LogLevel.INFO: 20, LogLevel.WARNING: 30, LogLevel.ERROR: 40, LogLevel.VERBOSE: 10}


def utils_for(artifact: Artifact) -> dict[str, ModuleType]:
    """The module under the names it can be imported by."""
    return dict.fromkeys(NAMES, make_utils(Binding(artifact)))


def make_utils(binding: Binding) -> ModuleType:
    """The module for one model."""
    module = ModuleType(NAMES[0], "Triton's Python backend, as models see it.")
    request = types.new_class("InferenceRequest", (messages.InferenceRequest,))
    request.binding = binding  # type: ignore[attr-defined]
    vars(module).update(_SHARED)
    vars(module).update(
        InferenceRequest=request,
        Logger=make_logger(binding),
        is_model_ready=lambda model_name, model_version="": is_ready(
            binding, model_name, model_version
        ),
    )
    return module


def make_logger(binding: Binding) -> type:
    """``pb_utils.Logger`` for one model: lines of the gateway's log, under the model's name."""

    def write(message: str, level: LogLevel) -> None:
        binding.log.log(_LEVELS[LogLevel(level)], "%s: %s", binding.model, message)

    class Logger:
        """Static methods, as in Triton."""

        INFO = LogLevel.INFO
        WARNING = LogLevel.WARNING
        ERROR = LogLevel.ERROR
        VERBOSE = LogLevel.VERBOSE

        @staticmethod
        def log(message: str, level: LogLevel = LogLevel.INFO) -> None:
            """A line of that level; verbose ones are shown with ``--log-level debug``."""
            write(message, level)

        @staticmethod
        def log_info(message: str) -> None:
            """A line of level info."""
            write(message, LogLevel.INFO)

        @staticmethod
        def log_warn(message: str) -> None:
            """A line of level warning."""
            write(message, LogLevel.WARNING)

        @staticmethod
        def log_error(message: str) -> None:
            """A line of level error."""
            write(message, LogLevel.ERROR)

        @staticmethod
        def log_verbose(message: str) -> None:
            """A line of level debug."""
            write(message, LogLevel.VERBOSE)

    return Logger


def is_ready(binding: Binding, model_name: str, model_version: str = "") -> bool:
    """Whether a model of this gateway can answer."""
    try:
        binding.host.describe(model_name, str(model_version))
    except SluiceError:
        return False
    return True


def _refused(name: str) -> Any:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise TritonModelException(
            f"pb_utils.{name} is not supported: models are loaded as their registry says; change "
            "the registry, or its traffic"
        )

    return refuse


def get_input_tensor_by_name(
    inference_request: messages.InferenceRequest, name: str
) -> tensor.Tensor | None:
    """An input of a request; `None` where it has none of that name."""
    return next((t for t in inference_request.inputs() if t.name() == name), None)


def get_output_tensor_by_name(
    inference_response: messages.InferenceResponse, name: str
) -> tensor.Tensor | None:
    """An output of a response; `None` where it has none of that name."""
    return next((t for t in inference_response.output_tensors() if t.name() == name), None)


def _by_name(tensors: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((each for each in tensors if each["name"] == name), None)


def get_input_config_by_name(
    model_config: Mapping[str, Any], name: str
) -> Mapping[str, Any] | None:
    """What the configuration says of an input; `None` if nothing."""
    return _by_name(model_config.get("input", ()), name)


def get_output_config_by_name(
    model_config: Mapping[str, Any], name: str
) -> Mapping[str, Any] | None:
    """What the configuration says of an output; `None` if nothing."""
    return _by_name(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether requests have any number of answers."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


_SHARED: Final[dict[str, Any]] = {
    "InferenceResponse": messages.InferenceResponse,
    "InferenceResponseSender": messages.InferenceResponseSender,
    "InferenceTrace": messages.InferenceTrace,
    "PreferredMemory": messages.PreferredMemory,
    "MemoryType": SimpleNamespace(
        TRITONSERVER_MEMORY_CPU=messages.MEMORY_CPU, TRITONSERVER_MEMORY_GPU=messages.MEMORY_GPU
    ),
    "TRITONSERVER_MEMORY_CPU": messages.MEMORY_CPU,
    "TRITONSERVER_MEMORY_GPU": messages.MEMORY_GPU,
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START": 1,
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END": 2,
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL": messages.FINAL,
    "TRITONSERVER_REQUEST_RELEASE_ALL": messages.RELEASE_ALL,
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE": messages.RESCHEDULE,
    "TRITON_STRING_TO_NUMPY": tensor.TRITON_STRING_TO_NUMPY,
    "Tensor": tensor.Tensor,
    "TritonError": TritonError,
    "TritonModelException": TritonModelException,
    "ModelConfig": ModelConfig,
    "Metric": metrics.Metric,
    "MetricFamily": metrics.MetricFamily,
    "MetricKind": metrics.MetricKind,
    "LogLevel": LogLevel,
    "deserialize_bytes_tensor": tensor.deserialize_bytes_tensor,
    "serialize_byte_tensor": tensor.serialize_byte_tensor,
    "triton_to_numpy_type": tensor.triton_to_numpy_type,
    "numpy_to_triton_type": tensor.numpy_to_triton_type,
    "triton_string_to_numpy": tensor.triton_string_to_numpy,
    "get_input_tensor_by_name": get_input_tensor_by_name,
    "get_output_tensor_by_name": get_output_tensor_by_name,
    "get_input_config_by_name": get_input_config_by_name,
    "get_output_config_by_name": get_output_config_by_name,
    "using_decoupled_model_transaction_policy": using_decoupled_model_transaction_policy,
    "load_model": _refused("load_model"),
    "unload_model": _refused("unload_model"),
}
