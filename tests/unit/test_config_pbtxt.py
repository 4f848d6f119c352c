"""``config.pbtxt`` read into settings, and a model's settings shown as ``ModelConfig``."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs.messages import ModelConfig
from gateway.errors import InvalidModelSettings
from gateway.model_settings import (
    BatchingSettings,
    ModelSettings,
    PriorityQueueSettings,
    QueueSettings,
    TensorSettings,
    VersionPolicy,
    WarmupInput,
    WarmupSettings,
)
from gateway.registries.config_pbtxt import parse_config_pbtxt
from gateway.registries.config_pbtxt_fields import FIELDS
from gateway.registries.config_pbtxt_message import model_config_message, to_json

WHOLE = """
name: "resnet"
platform: "onnxruntime_onnx"
max_batch_size: 16
input [
  {
    name: "image"           # pixels
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
  },
  {
    name: "weight"
    data_type: TYPE_STRING
    dims: [ 1 ]
    reshape { shape: [ ] }
    optional: true
  }
]
output [
  {
    name: "classes"
    data_type: TYPE_FP32
    dims: [ 1000 ]
    label_filename: "labels.txt"
  }
]
version_policy { specific { versions: [ 3, 1 ] } }
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching {
  preferred_batch_size: [ 8, 4 ]
  max_queue_delay_microseconds: 100
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy { default_timeout_microseconds: 5000 max_queue_size: 64 }
  priority_queue_policy {
    key: 1
    value { timeout_action: DELAY default_timeout_microseconds: 100 allow_timeout_override: true }
  }
}
optimization { graph { level: 1 } }
parameters { key: "intra_op_thread_count" value { string_value: "2" } }
parameters { key: "execution_mode" value { string_value: "1" } }
parameters { key: "session.intra_op.allow_spinning" value { string_value: "0" } }
model_warmup [
  {
    name: "one"
    batch_size: 1
    inputs { key: "image" value { data_type: TYPE_FP32 dims: [ 3, 224, 224 ] zero_data: true } }
  }
]
"""


def parse(text: str) -> ModelSettings:
    return parse_config_pbtxt(text, "m")


def test_a_whole_configuration() -> None:
    assert parse_config_pbtxt(WHOLE, "resnet") == ModelSettings(
        runtime="onnx",
        max_batch_size=16,
        inputs=(
            TensorSettings(name="image", datatype="FP32", dims=(3, 224, 224)),
            TensorSettings(name="weight", datatype="BYTES", dims=(1,), reshape=(), optional=True),
        ),
        outputs=(
            TensorSettings(name="classes", datatype="FP32", dims=(1000,), labels="labels.txt"),
        ),
        instances=2,
        device="cpu",
        versions=VersionPolicy(specific=(1, 3)),
        batching=BatchingSettings(
            preferred_sizes=(4, 8),
            max_delay_us=100,
            priority_levels=2,
            default_priority=2,
            queue=QueueSettings(max_requests=64, timeout_us=5000, allow_timeout_override=False),
            priority_queues={
                1: PriorityQueueSettings(
                    max_requests=0,
                    timeout_us=100,
                    timeout_action="delay",
                    allow_timeout_override=True,
                )
            },
        ),
        warmup=(
            WarmupSettings(
                name="one",
                inputs={"image": WarmupInput(datatype="FP32", dims=(3, 224, 224), source="zero")},
            ),
        ),
        options={
            "graph_optimization": "extended",
            "intra_op_threads": 2,
            "execution_mode": "parallel",
            "session.intra_op.allow_spinning": "0",
        },
        declared="config.pbtxt",
        triton_config=WHOLE,
    )


def test_an_empty_file_says_nothing() -> None:
    assert parse("# nothing\n") == ModelSettings(
        declared="config.pbtxt", triton_config="# nothing\n"
    )


@pytest.mark.parametrize(
    ("text", "rows", "batching"),
    [
        ("backend: 'onnxruntime'", None, True),
        ("max_batch_size: 0", 0, False),
        ("# max_batch_size: 0", None, True),
        ("input { name: 'x' data_type: TYPE_FP32 dims: -1 }", 0, False),
        ("max_batch_size: 8", 8, False),
        ("max_batch_size: 8 dynamic_batching { }", 8, True),
        ("dynamic_batching { preferred_batch_size: 100 }", None, True),
    ],
)
def test_batching_depends_on_the_block(text: str, rows: int | None, batching: bool) -> None:
    found = parse(text)
    assert (found.max_batch_size, found.batching.enabled) == (rows, batching)


@pytest.mark.parametrize(
    ("text", "runtime"),
    [
        ("", None),
        ("platform: 'onnxruntime_onnx'", "onnx"),
        ("backend: 'onnxruntime' platform: 'onnxruntime_onnx'", "onnx"),
        ("backend: 'pytorch'", "torch"),
        ("platform: 'pytorch_libtorch'", "torch"),
        ("backend: 'python'", "python"),
        ("backend: 'their_own'", "their_own"),
    ],
)
def test_runtime(text: str, runtime: str | None) -> None:
    assert parse(text).runtime == runtime


@pytest.mark.parametrize(
    ("text", "device", "gpus", "instances"),
    [
        ("", "auto", (), 0),
        ("instance_group { }", "auto", (), 1),
        (
            "instance_group { kind: KIND_CPU count: 2 } instance_group { kind: KIND_CPU }",
            "cpu",
            (),
            3,
        ),
        ("instance_group { kind: KIND_GPU count: 2 gpus: [ 1, 0 ] }", "gpu", (0, 1), 4),
        (
            "instance_group { kind: KIND_GPU gpus: 0 } instance_group { kind: KIND_GPU gpus: 2 }",
            "gpu",
            (0, 2),
            2,
        ),
    ],
)
def test_placement(text: str, device: str, gpus: tuple[int, ...], instances: int) -> None:
    found = parse(text)
    assert (found.device, found.gpus, found.instances) == (device, gpus, instances)


def accelerator(name: str, **parameters: str) -> str:
    inside = " ".join(f"parameters {{ key: '{k}' value: '{v}' }}" for k, v in parameters.items())
    return (
        "optimization { execution_accelerators { gpu_execution_accelerator {"
        f" name: '{name}' {inside} }} }} }}"
    )


def parameter(key: str, value: str) -> str:
    return f"parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (
            accelerator("cuda", gpu_mem_limit="9"),
            {
                "providers": "CUDAExecutionProvider",
                "cuda.gpu_mem_limit": "9",
            },
        ),
        (
            accelerator(
                "tensorrt",
                precision_mode="FP16",
                max_workspace_size_bytes="5",
                trt_engine_cache_enable="1",
            ),
            {
                "providers": "TensorrtExecutionProvider,CUDAExecutionProvider",
                "tensorrt.trt_fp16_enable": "1",
                "tensorrt.trt_max_workspace_size": "5",
                "tensorrt.trt_engine_cache_enable": "1",
            },
        ),
        (
            accelerator("tensorrt", precision_mode="FP32"),
            {
                "providers": "TensorrtExecutionProvider,CUDAExecutionProvider",
            },
        ),
        ("optimization { graph { level: -1 } }", {"graph_optimization": "basic"}),
        ("optimization { graph { level: 2 } }", {"graph_optimization": "disabled"}),
        (parameter("cudnn_conv_algo_search", "1"), {"cuda.cudnn_conv_algo_search": "HEURISTIC"}),
        (parameter("enable_mem_arena", "0"), {"memory_arena": False}),
        ("backend: 'pytorch'" + parameter("INTRA_OP_THREAD_COUNT", "3"), {"intra_op_threads": 3}),
        ("backend: 'python'" + parameter("anything", "at all"), {"anything": "at all"}),
    ],
)
def test_options(text: str, options: dict[str, Any]) -> None:
    assert parse(text).options == options


X = "name: 'x' data_type: TYPE_FP32"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_batchsize: 3", "line 1, column 1: unknown field 'max_batchsize'; did you mean 'max_"),
        (
            "\ninput {\n  dim: 3 }",
            "line 3, column 3: unknown field 'dim' in ModelInput; did you me",
        ),
        ("input { data_type: TYPE_FLOAT32 }", "unknown value 'TYPE_FLOAT32'; did you mean 'TYPE_F"),
        ("max_batch_size: 'x'", "line 1, column 17"),
        ("max_batch_size: 99999999999", "line 1"),
        ("name: 'other'", "name is 'other' but the folder is 'm'"),
        ("max_batch_size: -1", "max_batch_size must be 0 or more"),
        ("\n\nresponse_cache { enable: true }", "line 3: response_cache.enable is not supported"),
        ("platform: 'tensorrt_plan'", "'tensorrt' accelerator"),
        ("platform: 'onnx'", "use onnxruntime_onnx, pytorch_libtorch"),
        ("backend: 'python' platform: 'onnxruntime_onnx'", "contradict each other"),
        ("default_model_filename: '../x.onnx'", "leaves the model's folder"),
        ("default_model_filename: '/etc/passwd'", "leaves the model's folder"),
        ("version_policy { specific { } }", "must list versions"),
        (f"input {{ {X} }}", "dims are required"),
        (f"input {{ {X} dims: 0 }}", "must be 1 or more, or -1"),
        (f"input {{ {X} dims: 2 reshape {{ shape: 3 }} }}", "another number of elements"),
        (f"input {{ {X} dims: 2 format: FORMAT_NHWC }}", "needs three dims"),
        (f"input {{ {X} dims: 2 }} input {{ {X} dims: 2 }}", "input 'x' is declared twice"),
        ("input { name: 'x' dims: 2 }", "data_type is required"),
        ("output { data_type: TYPE_FP32 dims: 2 }", "output[0] has no name"),
        ("instance_group { kind: KIND_MODEL }", "KIND_MODEL is not supported"),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "gpus contradict KIND_CPU"),
        (
            "instance_group { kind: KIND_CPU } instance_group { kind: KIND_GPU }",
            "one kind of device",
        ),
        ("instance_group { gpus: 0 } instance_group { gpus: [ 0, 1 ] }", "the same count"),
        ("instance_group { gpus: 0 } instance_group { }", "the same count"),
        ("instance_group { count: -1 }", "must be 0 or more"),
        ("instance_group { kind: KIND_CPU }" + accelerator("cuda"), "no effect with"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "between 1 and"),
        ("dynamic_batching { priority_levels: 2 }", "between 1 and 2"),
        ("dynamic_batching { default_priority_level: 2 }", "it must be left out"),
        ("dynamic_batching { priority_queue_policy { key: 1 value { } } }", "priority_levels is 0"),
        ("optimization { graph { level: 7 } }", "graph.level 7 is unknown"),
        ("backend: 'pytorch' optimization { graph { level: 1 } }", "options of ONNX Runtime"),
        (accelerator("openvino"), "use 'tensorrt' or 'cuda'"),
        (accelerator("cuda", device_id="1"), "instance_group.gpus"),
        (accelerator("tensorrt", precision_mode="FP8"), "FP32, FP16, INT8"),
        (accelerator("tensorrt", nonsense="1"), "is unknown (known: precision_mode"),
        (accelerator("tensorrt", trt_extra_plugin_lib_paths="x"), "native code"),
        (parameter("intra_op_threadcount", "1"), "did you mean 'intra_op_thread_count'?"),
        (parameter("intra_op_thread_count", "many"), "must be a whole number"),
        (parameter("intra_op_thread_count", "-1"), "must be a whole number"),
        (parameter("execution_mode", "2"), "0 (sequential) or 1 (parallel)"),
        (parameter("session.misspelled", "1"), "is unknown"),
        ("backend: 'pytorch'" + parameter("intra_op_thread_count", "1"), "is unknown"),
        ("model_warmup { inputs { key: 'x' value { data_type: TYPE_FP32 } } }", "needs zero_data"),
        (
            "model_warmup { inputs { key: 'x' value { data_type: 1 random_data: false } } }",
            "random_data is false",
        ),
    ],
)
def test_what_is_wrong_is_said_on_one_line(text: str, words: str) -> None:
    with pytest.raises(InvalidModelSettings) as caught:
        parse(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("config.pbtxt: ")
    assert "\n" not in str(caught.value)


WORDS = [path.split(".")[-1].removesuffix("[]") for path in FIELDS]
TOKENS = [
    *WORDS,
    *WORDS,
    *"{}[]:,<>;",
    "'x'",
    "1",
    "-1",
    "2.5",
    "TYPE_FP32",
    "KIND_CPU",
    "true",
    "#",
]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(TOKENS)).map(" ".join)))
def test_any_text_gives_settings_or_the_one_error(text: str) -> None:
    message = ""
    try:
        parse(text)
    except InvalidModelSettings as error:
        message = str(error)
    assert "\n" not in message


# ---- the other direction ----

INPUTS = [("image", "FP32", (-1, 3, 224, 224)), ("weight", "BYTES", (-1, 1))]
OUTPUTS = [("classes", "FP32", (-1, 1000))]


def test_a_declared_model_is_shown_as_declared() -> None:
    before = parse_config_pbtxt(WHOLE, "resnet")
    shown = model_config_message(
        "resnet", before, INPUTS, OUTPUTS, max_batch_size=16, runtime="onnx"
    )
    again = parse_config_pbtxt(text_format.MessageToString(shown), "resnet")
    differing = {
        name for name in before.__struct_fields__ if getattr(before, name) != getattr(again, name)
    }
    assert differing == {"triton_config"}
    assert shown.backend == "onnxruntime"
    assert shown.input[0].format == 2


def test_a_completed_model_is_shown_with_what_was_found_out() -> None:
    shown = model_config_message(
        "digits",
        ModelSettings(),
        [("image", "FP32", (-1, 1, 8, 8))],
        [("label", "INT64", (-1,)), ("text", "BYTES", (-1, 2))],
        max_batch_size=64,
        runtime="onnx",
    )
    assert shown.platform == "onnxruntime_onnx"
    assert shown.max_batch_size == 64
    assert shown.HasField("dynamic_batching")
    assert not shown.HasField("sequence_batching")
    assert [(i.name, i.data_type, list(i.dims)) for i in shown.input] == [("image", 11, [1, 8, 8])]
    assert [(o.name, o.data_type, list(o.dims)) for o in shown.output] == [
        ("label", 9, []),
        ("text", 13, [2]),
    ]
    assert ModelConfig.FromString(shown.SerializeToString()) == shown


def test_a_model_that_does_not_batch_has_no_block() -> None:
    shown = model_config_message(
        "m", ModelSettings(), [("x", "FP32", (2, 3))], [], max_batch_size=0, runtime="their_own"
    )
    assert not shown.HasField("dynamic_batching")
    assert list(shown.input[0].dims) == [2, 3]
    assert (shown.backend, shown.platform) == ("their_own", "")


def test_settings_of_model_yaml_are_shown() -> None:
    shown = model_config_message(
        "m",
        ModelSettings(
            file="net.onnx",
            device="gpu",
            gpus=(0, 1),
            versions=VersionPolicy(all=True),
            inputs=(TensorSettings(name="x", datatype="FP32", dims=(4,), reshape=(2, 2)),),
            outputs=(TensorSettings(name="y", datatype="FP32", dims=(4,), labels="l.txt"),),
            batching=BatchingSettings(
                priority_levels=3,
                queue=QueueSettings(max_requests=9),
                priority_queues={2: PriorityQueueSettings(timeout_us=5)},
            ),
        ),
        [("x", "FP32", (-1, 4))],
        [("y", "FP32", (-1, 4))],
        max_batch_size=8,
        runtime="onnx",
        instances=2,
    )
    found = to_json(shown)
    assert found["default_model_filename"] == "net.onnx"
    assert found["version_policy"] == {"all": {}}
    assert found["instance_group"][0]["gpus"] == [0, 1]
    assert found["instance_group"][0]["kind"] == "KIND_GPU"
    assert found["input"][0]["reshape"] == {"shape": [2, 2]}
    assert found["output"][0]["label_filename"] == "l.txt"
    block = found["dynamic_batching"]
    assert (block["priority_levels"], block["default_priority_level"]) == (3, 2)
    assert block["priority_queue_policy"]["2"]["default_timeout_microseconds"] == 5
    assert block["priority_queue_policy"]["2"]["max_queue_size"] == 9


def test_json_has_tritons_shape() -> None:
    found = to_json(
        model_config_message(
            "m",
            parse(parameter("intra_op_thread_count", "2")),
            [("x", "FP32", (-1, 4))],
            [],
            max_batch_size=4,
            runtime="onnx",
        )
    )
    assert found["max_batch_size"] == 4
    assert found["input"] == [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [4],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert found["output"] == []
    assert found["parameters"] == {"intra_op_thread_count": {"string_value": "2"}}
    assert found["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert "sequence_batching" not in found
    assert to_json(ModelConfig())["max_batch_size"] == 0


def test_python_models_may_place_themselves() -> None:
    text = 'backend: "python" instance_group { kind: KIND_MODEL count: 2 }'
    settings = parse_config_pbtxt(text, "m")
    assert (settings.device, settings.instances) == ("auto", 2)
