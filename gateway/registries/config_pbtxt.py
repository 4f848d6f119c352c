"""Read Triton's ``config.pbtxt`` into `ModelSettings`.

Every field is either mapped here or refused by name; `config_pbtxt_fields` is the table.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Final

import msgspec
from google.protobuf import text_format

from gateway.codecs.messages import POOL, ModelConfig
from gateway.errors import InvalidModelSettings, printable
from gateway.model_settings import ModelSettings, VersionPolicy
from gateway.registries.config_pbtxt_fields import FIELDS, WITH_TRITON, Refused
from gateway.registries.config_pbtxt_options import Options, runtime_options
from gateway.registries.config_pbtxt_parts import (
    batching_settings,
    placement,
    relative_path,
    tensor_settings,
    warmup_settings,
)

PLATFORMS: Final = {"onnxruntime_onnx": "onnx", "pytorch_libtorch": "torch"}
BACKENDS: Final = {"onnxruntime": "onnx", "pytorch": "torch"}
ELSEWHERE: Final = {
    "tensorrt": "serve the ONNX model with the 'tensorrt' accelerator",
    "tensorrt_plan": "serve the ONNX model with the 'tensorrt' accelerator",
    "tensorflow": "convert the model to ONNX",
    "tensorflow_graphdef": "convert the model to ONNX",
    "tensorflow_savedmodel": "convert the model to ONNX",
    "openvino": "convert the model to ONNX",
    "ensemble": "join the models in one ONNX graph",
}
"""Backends of Triton's own that no runtime here stands for."""

_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "(\w+)"')
_UNKNOWN_VALUE = re.compile(r'Enum type "([\w.]+)" has no value named (\w+)')
_EXPLICIT_ZERO = re.compile(r"(?m)^[^#\"'\n]*\bmax_batch_size\s*:\s*0\b")


def parse_config_pbtxt(text: str, model: str, *, file: str = "config.pbtxt") -> ModelSettings:
    """Settings that ``text``, the configuration of the model in the folder ``model``, declares.

    ``file`` is how messages call the file. Raises ``InvalidModelSettings`` for text that is not
    a model configuration, for a field that is not supported, and for values that contradict
    each other.
    """
    try:
        config = parse_message(text)
        _refuse_unsupported(config, "", text)
        return _settings(config, model, text)
    except InvalidModelSettings as error:
        raise InvalidModelSettings(f"{file}: {error}") from None


def parse_message(text: str) -> Any:
    """``text`` as a ``ModelConfig``. Raises ``InvalidModelSettings`` with line and column."""
    try:
        return text_format.Parse(text, ModelConfig(), descriptor_pool=POOL)
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        problem = re.sub(r"^\d+:\d+ : ", "", str(error))
        where = f"line {line}, column {column}: " if line is not None else ""
        raise InvalidModelSettings(where + printable(plain(problem), 300)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidModelSettings(printable(error, 300)) from None


def plain(problem: str) -> str:
    """The parser's complaint without protobuf's vocabulary, with a suggestion."""
    if found := _UNKNOWN_FIELD.search(problem):
        descriptor = POOL.FindMessageTypeByName(found[1])
        where = "" if found[1] == ModelConfig.DESCRIPTOR.full_name else f" in {descriptor.name}"
        known, text = descriptor.fields_by_name, f"unknown field '{found[2]}'{where}"
    elif found := _UNKNOWN_VALUE.search(problem):
        known = POOL.FindEnumTypeByName(found[1]).values_by_name
        text = f"unknown value '{found[2]}'"
    else:
        return problem
    if close := difflib.get_close_matches(found[2], list(known), n=1, cutoff=0.5):
        return f"{text}; did you mean '{close[0]}'?"
    return f"{text} (known: {', '.join(known)})"


def is_map(field: Any) -> bool:
    """Whether ``field`` is a map, which is a list of entries to protobuf."""
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _refuse_unsupported(message: Any, prefix: str, text: str) -> None:
    for field, value in message.ListFields():
        path = prefix + field.name
        entry = FIELDS[path]
        if isinstance(entry, Refused):
            raise InvalidModelSettings(
                f"{_line_of(field.name, text)}{path} is not supported: {entry.reason};"
                f" {entry.instead}"
            )
        if is_map(field):
            if field.message_type.fields_by_name["value"].message_type:
                for key in sorted(value):
                    _refuse_unsupported(value[key], f"{path}[].", text)
        elif field.message_type and field.is_repeated:
            for item in value:
                _refuse_unsupported(item, f"{path}[].", text)
        elif field.message_type:
            _refuse_unsupported(value, f"{path}.", text)


def _line_of(name: str, text: str) -> str:
    """Where the field is, if there is only one place it can be: protobuf does not keep lines."""
    lines = [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(rf"\b{name}\b\s*[:{{\[<]", line.split("#")[0])
    ]
    return f"line {lines[0]}: " if len(lines) == 1 else ""


def _settings(config: Any, model: str, text: str) -> ModelSettings:
    if config.name and config.name != model:
        raise InvalidModelSettings(
            f"name is '{printable(config.name)}' but the folder is '{printable(model)}';"
            " rename one of them, or leave 'name' out"
        )
    runtime = _runtime(config)
    max_batch_size = _max_batch_size(config, text)
    device, gpus, instances = placement(config.instance_group, by_itself=runtime == "python")
    options = runtime_options(config, runtime)
    _check_device(device, options)
    settings = ModelSettings(
        runtime=runtime,
        file=relative_path("default_model_filename", config.default_model_filename),
        max_batch_size=max_batch_size,
        inputs=tensor_settings("input", config.input),
        outputs=tensor_settings("output", config.output),
        instances=instances,
        device=device,
        gpus=gpus,
        versions=_versions(config.version_policy),
        batching=batching_settings(config, max_batch_size),
        warmup=warmup_settings(config.model_warmup),
        decoupled=config.model_transaction_policy.decoupled,
        options=options,
        declared="config.pbtxt",
        triton_config=text,
    )
    try:
        # Constructors do not check bounds; this does, should a check above have missed one.
        return msgspec.convert(msgspec.to_builtins(settings), ModelSettings)
    except msgspec.ValidationError as error:
        raise InvalidModelSettings(str(error)) from None


def _runtime(config: Any) -> str | None:
    named = {
        "platform": PLATFORMS.get(config.platform, config.platform),
        "backend": BACKENDS.get(config.backend, config.backend),
    }
    for field, name in named.items():
        if name in ELSEWHERE:
            raise InvalidModelSettings(
                f"{field} '{name}' is Triton's own and no runtime here; {ELSEWHERE[name]}, or "
                f"{WITH_TRITON}"
            )
        # A platform is one of Triton's fixed names; a backend is an open set of plugins.
        if field == "platform" and name and config.platform not in PLATFORMS:
            raise InvalidModelSettings(
                f"platform '{printable(name)}' is unknown; use {', '.join(PLATFORMS)}, or name the"
                " runtime with 'backend'"
            )
    if named["platform"] and named["backend"] and named["platform"] != named["backend"]:
        raise InvalidModelSettings(
            f"platform '{config.platform}' and backend '{config.backend}' contradict each other;"
            " leave one out"
        )
    return named["backend"] or named["platform"] or None


def _max_batch_size(config: Any, text: str) -> int | None:
    if config.max_batch_size < 0:
        raise InvalidModelSettings("max_batch_size must be 0 or more")
    says_nothing = not (config.max_batch_size or config.input or config.output)
    if says_nothing and not _EXPLICIT_ZERO.search(text):
        return None
    return int(config.max_batch_size)


def _versions(policy: Any) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(all=True)
    if choice == "specific":
        versions = tuple(sorted(set(policy.specific.versions)))
        if not versions or versions[0] < 1:
            raise InvalidModelSettings(
                "version_policy.specific.versions must list versions, each 1 or more"
            )
        return VersionPolicy(specific=versions)
    return VersionPolicy(latest=policy.latest.num_versions or 1)


def _check_device(device: str, options: Options) -> None:
    if device == "cpu" and any(key.startswith(("cuda.", "providers")) for key in options):
        raise InvalidModelSettings(
            "GPU accelerators and their parameters have no effect with instance_group.kind"
            " KIND_CPU; leave them out or use KIND_GPU"
        )
