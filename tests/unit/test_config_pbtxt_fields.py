"""Every field of ``ModelConfig`` is honoured or refused by name: there is no third state."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.codecs.messages import ModelConfig
from gateway.errors import InvalidModelSettings
from gateway.model_settings import ModelSettings
from gateway.registries.config_pbtxt import is_map, parse_config_pbtxt
from gateway.registries.config_pbtxt_fields import FIELDS, Honoured, Refused
from gateway.registries.config_pbtxt_message import model_config_message

REFUSED = {path: entry for path, entry in FIELDS.items() if isinstance(entry, Refused)}
HONOURED = {path: entry for path, entry in FIELDS.items() if isinstance(entry, Honoured)}


def walk(descriptor: Any, prefix: str = "") -> dict[str, Any]:
    """Path → field, into every message that is not refused as a whole."""
    found: dict[str, Any] = {}
    for field in descriptor.fields:
        path = prefix + field.name
        found[path] = field
        if path in REFUSED:
            continue
        inner, suffix = field.message_type, "[]." if field.is_repeated else "."
        if is_map(field):
            inner = field.message_type.fields_by_name["value"].message_type
        if inner:
            found.update(walk(inner, path + suffix))
    return found


SCHEMA = walk(ModelConfig.DESCRIPTOR)


def test_table_and_schema_have_the_same_fields() -> None:
    assert set(SCHEMA) - set(FIELDS) == set(), "fields without an entry"
    assert set(FIELDS) - set(SCHEMA) == set(), "entries without a field"
    assert len(SCHEMA) > 100


def test_entries_say_something() -> None:
    for path, entry in FIELDS.items():
        assert all(len(text) > 8 for text in entry), path
    for path, refused in REFUSED.items():
        assert not refused.reason.endswith((".", ";")), path


def set_some_value(message: Any, field: Any) -> None:
    """Sets ``field`` to something that is not its default."""
    if is_map(field):
        container = getattr(message, field.name)
        if field.message_type.fields_by_name["value"].message_type:
            container["k"].SetInParent()
        else:
            container["k"] = "v"
    elif field.message_type and field.is_repeated:
        getattr(message, field.name).add()
    elif field.message_type:
        getattr(message, field.name).SetInParent()
    else:
        value: Any = {
            field.CPPTYPE_STRING: "x",
            field.CPPTYPE_BOOL: True,
            field.CPPTYPE_DOUBLE: 1.5,
            field.CPPTYPE_FLOAT: 1.5,
        }.get(field.cpp_type, 1)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


def config_with(path: str) -> Any:
    """A configuration in which nothing but ``path`` is set."""
    config = ModelConfig()
    message = config
    *parents, last = re.split(r"\.", path)
    for part in parents:
        field = message.DESCRIPTOR.fields_by_name[part.removesuffix("[]")]
        value = getattr(message, field.name)
        if is_map(field):
            message = value["k"] if field.message_type.fields_by_name["key"].type == 9 else value[1]
        elif field.is_repeated:
            message = value.add()
        else:
            value.SetInParent()
            message = value
    set_some_value(message, message.DESCRIPTOR.fields_by_name[last])
    return config


@pytest.mark.parametrize("path", REFUSED)
def test_refused_field_is_named_with_its_reason(path: str) -> None:
    with pytest.raises(InvalidModelSettings) as caught:
        parse_config_pbtxt(str(config_with(path)), "m")
    message = str(caught.value)
    assert path in message
    assert REFUSED[path].reason in message
    assert REFUSED[path].instead in message
    assert "\n" not in message


TENSOR = "name: 'x' data_type: TYPE_FP32 dims: [ 3, 4, 5 ]"
GPU = "optimization { execution_accelerators { gpu_execution_accelerator { name: 'cuda' %s } } }"
LEVELS = "priority_levels: 3 default_priority_level: 2"
WARM = "model_warmup { inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 %s } } %s }"
DB = "dynamic_batching"
DEFAULT = f"{DB}.default_queue_policy"
LEVEL = f"{DB}.priority_queue_policy"
GPUS = "optimization.execution_accelerators.gpu_execution_accelerator"

SAMPLES: dict[str, tuple[str, str]] = {
    "platform": ("", "platform: 'pytorch_libtorch'"),
    "backend": ("", "backend: 'onnxruntime'"),
    "default_model_filename": ("", "default_model_filename: 'net.onnx'"),
    "version_policy": ("", "version_policy { all { } }"),
    "version_policy.latest": ("version_policy { all { } }", "version_policy { latest { } }"),
    "version_policy.latest.num_versions": ("", "version_policy { latest { num_versions: 3 } }"),
    "version_policy.all": ("", "version_policy { all { } }"),
    "version_policy.specific": ("", "version_policy { specific { versions: 2 } }"),
    "version_policy.specific.versions": ("", "version_policy { specific { versions: [ 1, 3 ] } }"),
    "max_batch_size": ("", "max_batch_size: 8"),
    "input": ("", f"input {{ {TENSOR} }}"),
    "input[].name": (f"input {{ {TENSOR} }}", f"input {{ {TENSOR.replace('x', 'y')} }}"),
    "input[].data_type": (f"input {{ {TENSOR} }}", f"input {{ {TENSOR.replace('FP32', 'BOOL')} }}"),
    "input[].format": (f"input {{ {TENSOR} }}", f"input {{ {TENSOR} format: FORMAT_NCHW }}"),
    "input[].dims": (f"input {{ {TENSOR} }}", f"input {{ {TENSOR.replace('[ 3', '[ 2')} }}"),
    "input[].reshape": (f"input {{ {TENSOR} }}", f"input {{ {TENSOR} reshape {{ shape: 60 }} }}"),
    "input[].optional": (f"input {{ {TENSOR} }}", f"input {{ {TENSOR} optional: true }}"),
    "output": ("", f"output {{ {TENSOR} }}"),
    "output[].name": (f"output {{ {TENSOR} }}", f"output {{ {TENSOR.replace('x', 'y')} }}"),
    "output[].data_type": (
        f"output {{ {TENSOR} }}",
        f"output {{ {TENSOR.replace('FP32', 'BOOL')} }}",
    ),
    "output[].dims": (f"output {{ {TENSOR} }}", f"output {{ {TENSOR.replace('[ 3', '[ 2')} }}"),
    "output[].reshape": (
        f"output {{ {TENSOR} }}",
        f"output {{ {TENSOR} reshape {{ shape: 60 }} }}",
    ),
    "output[].label_filename": (
        f"output {{ {TENSOR} }}",
        f"output {{ {TENSOR} label_filename: 'labels.txt' }}",
    ),
    DB: ("max_batch_size: 8", f"max_batch_size: 8 {DB} {{ }}"),
    f"{DB}.preferred_batch_size": (f"{DB} {{ }}", f"{DB} {{ preferred_batch_size: [ 4, 8 ] }}"),
    f"{DB}.max_queue_delay_microseconds": (
        f"{DB} {{ }}",
        f"{DB} {{ max_queue_delay_microseconds: 5 }}",
    ),
    f"{DB}.preserve_ordering": (f"{DB} {{ }}", f"{DB} {{ preserve_ordering: true }}"),
    f"{DB}.priority_levels": (f"{DB} {{ }}", f"{DB} {{ {LEVELS} }}"),
    f"{DB}.default_priority_level": (
        f"{DB} {{ {LEVELS} }}",
        f"{DB} {{ {LEVELS.replace(': 2', ': 1')} }}",
    ),
    DEFAULT: ("", f"{DB} {{ default_queue_policy {{ max_queue_size: 3 }} }}"),
    f"{DEFAULT}.timeout_action": (
        "",
        f"{DB} {{ default_queue_policy {{ timeout_action: DELAY }} }}",
    ),
    f"{DEFAULT}.default_timeout_microseconds": (
        "",
        f"{DB} {{ default_queue_policy {{ default_timeout_microseconds: 7 }} }}",
    ),
    f"{DEFAULT}.allow_timeout_override": (
        f"{DB} {{ default_queue_policy {{ default_timeout_microseconds: 7 }} }}",
        f"{DB} {{ default_queue_policy {{ default_timeout_microseconds: 7"
        " allow_timeout_override: true } }",
    ),
    f"{DEFAULT}.max_queue_size": ("", f"{DB} {{ default_queue_policy {{ max_queue_size: 3 }} }}"),
    LEVEL: (
        f"{DB} {{ {LEVELS} }}",
        f"{DB} {{ {LEVELS} priority_queue_policy {{ key: 1 value {{ }} }} }}",
    ),
    **{
        f"{LEVEL}[].{name}": (
            f"{DB} {{ {LEVELS} priority_queue_policy {{ key: 1 value {{ {before} }} }} }}",
            f"{DB} {{ {LEVELS} priority_queue_policy {{ key: 1 value {{ {before} {after} }} }} }}",
        )
        for name, before, after in (
            ("timeout_action", "", "timeout_action: DELAY"),
            ("default_timeout_microseconds", "", "default_timeout_microseconds: 7"),
            (
                "allow_timeout_override",
                "default_timeout_microseconds: 7",
                "allow_timeout_override: true",
            ),
            ("max_queue_size", "", "max_queue_size: 3"),
        )
    },
    "instance_group": ("", "instance_group { count: 2 }"),
    "instance_group[].name": ("instance_group { }", "instance_group { name: 'a' }"),
    "instance_group[].kind": ("instance_group { }", "instance_group { kind: KIND_CPU }"),
    "instance_group[].count": ("instance_group { }", "instance_group { count: 2 }"),
    "instance_group[].gpus": ("instance_group { }", "instance_group { gpus: [ 0, 1 ] }"),
    "optimization": ("", "optimization { graph { level: 1 } }"),
    "optimization.graph": ("", "optimization { graph { level: 1 } }"),
    "optimization.graph.level": ("", "optimization { graph { level: -1 } }"),
    "optimization.execution_accelerators": ("", GPU % ""),
    GPUS: ("", GPU % ""),
    f"{GPUS}[].name": (GPU % "", (GPU % "").replace("cuda", "tensorrt")),
    f"{GPUS}[].parameters": (
        GPU % "",
        GPU % "parameters { key: 'cudnn_conv_use_max_workspace' value: '0' }",
    ),
    "parameters": (
        "",
        "parameters { key: 'intra_op_thread_count' value { string_value: '2' } }",
    ),
    "model_warmup": ("", WARM % ("zero_data: true", "")),
    "model_warmup[].name": (
        WARM % ("zero_data: true", ""),
        WARM % ("zero_data: true", "name: 'a'"),
    ),
    "model_warmup[].batch_size": (
        WARM % ("zero_data: true", ""),
        WARM % ("zero_data: true", "batch_size: 4"),
    ),
    "model_warmup[].inputs": ("model_warmup { }", WARM % ("zero_data: true", "")),
    "model_warmup[].inputs[].data_type": (
        WARM % ("zero_data: true", ""),
        (WARM % ("zero_data: true", "")).replace("FP32", "INT8"),
    ),
    "model_warmup[].inputs[].dims": (
        WARM % ("zero_data: true", ""),
        WARM % ("zero_data: true dims: 7", ""),
    ),
    "model_warmup[].inputs[].zero_data": (
        WARM % ("random_data: true", ""),
        WARM % ("zero_data: true", ""),
    ),
    "model_warmup[].inputs[].random_data": (
        WARM % ("zero_data: true", ""),
        WARM % ("random_data: true", ""),
    ),
    "model_warmup[].inputs[].input_data_file": (
        WARM % ("zero_data: true", ""),
        WARM % ("input_data_file: 'x.bin'", ""),
    ),
    "model_warmup[].count": (
        WARM % ("zero_data: true", ""),
        WARM % ("zero_data: true", "count: 3"),
    ),
    "model_transaction_policy.decoupled": ("", "model_transaction_policy { decoupled: true }"),
}
"""Field → a configuration without it and one with it."""
for _tensor in ("input", "output"):
    SAMPLES[f"{_tensor}[].reshape.shape"] = SAMPLES[f"{_tensor}[].reshape"]
SAMPLES["parameters[].string_value"] = SAMPLES["parameters"]

SHOWN_ONLY = {"input[].format", "instance_group[].name"}
"""Only seen by clients that read the configuration."""

WITHOUT_EFFECT = {
    "name": "must equal the folder's name",
    "optimization.cuda": "only holds fields that are refused",
    "optimization.input_pinned_memory": "holds one field",
    "optimization.input_pinned_memory.enable": "a hint about a buffer that does not exist",
    "optimization.output_pinned_memory": "holds one field",
    "optimization.output_pinned_memory.enable": "a hint about a buffer that does not exist",
    "model_operations": "only holds fields that are refused",
    "model_transaction_policy": "holds one field",
    "model_repository_agents": "only holds fields that are refused",
    "response_cache": "only holds fields that are refused",
    "model_metrics": "only holds fields that are refused",
}


def without_text(settings: ModelSettings) -> dict[str, Any]:
    fields = {name: getattr(settings, name) for name in settings.__struct_fields__}
    del fields["triton_config"]
    return fields


def test_every_honoured_field_has_a_sample() -> None:
    assert set(SAMPLES) | set(WITHOUT_EFFECT) == set(HONOURED)
    assert set(SAMPLES) & set(WITHOUT_EFFECT) == set()


@pytest.mark.parametrize("path", SAMPLES)
def test_honoured_field_has_an_effect(path: str) -> None:
    before, after = (parse_config_pbtxt(text, "m") for text in SAMPLES[path])
    if path in SHOWN_ONLY:
        assert without_text(before) == without_text(after)
        shown = [
            model_config_message(
                "m", settings, [("x", "FP32", (3, 4, 5))], [], max_batch_size=0, runtime="onnx"
            )
            for settings in (before, after)
        ]
        assert shown[0] != shown[1]
    else:
        assert without_text(before) != without_text(after)


@pytest.mark.parametrize("path", WITHOUT_EFFECT)
def test_field_without_effect_is_accepted(path: str) -> None:
    config = config_with(path)
    if path == "name":
        config.name = "m"
    found = parse_config_pbtxt(str(config), "m")
    assert without_text(found) == without_text(parse_config_pbtxt("", "m"))
