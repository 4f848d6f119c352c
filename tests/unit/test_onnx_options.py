"""Session options and execution providers from a model's settings."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from gateway.registries import config_pbtxt_options
from runtimes.onnx import default_threads
from runtimes.onnx_options import (
    CHOICES,
    CPU,
    CUDA,
    OPTIONS,
    SESSION_ENTRIES,
    TENSORRT,
    SessionPlan,
    choose_providers,
    gpu_visible,
    parse_options,
)

onnxruntime = pytest.importorskip("onnxruntime")

ALL = (TENSORRT, CUDA, CPU)


def test_the_defaults() -> None:
    options = parse_options({}).session_options(onnxruntime, threads=3)
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.graph_optimization_level == level
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    assert options.log_severity_level == 4


def test_every_option_reaches_the_session() -> None:
    plan = parse_options(
        {
            "intra_op_threads": 5,
            "inter_op_threads": 2,
            "execution_mode": "parallel",
            "graph_optimization": "basic",
            "memory_arena": False,
            "memory_pattern": False,
            "log_level": "warning",
            "session.intra_op.allow_spinning": True,
            "session.set_denormal_as_zero": 1,
        }
    )
    options = plan.session_options(onnxruntime, threads=3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (5, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.graph_optimization_level == level
    assert not options.enable_cpu_mem_arena and not options.enable_mem_pattern
    assert options.log_severity_level == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


@pytest.mark.parametrize(("option", "values"), CHOICES.items())
def test_every_choice_is_one_of_onnxruntime(option: str, values: tuple[str, ...]) -> None:
    for value in values:
        parse_options({option: value}).session_options(onnxruntime, threads=1)


def test_parallel_execution_gets_threads() -> None:
    plan = parse_options({"execution_mode": "parallel"})
    assert plan.session_options(onnxruntime, threads=4).inter_op_num_threads == 4


def test_options_of_the_providers() -> None:
    plan = parse_options(
        {"providers": "tensorrt, cuda", "cuda.gpu_mem_limit": 1, "tensorrt.trt_fp16_enable": True}
    )
    assert plan.providers == (TENSORRT, CUDA)
    assert plan.provider_options == {
        CUDA: {"gpu_mem_limit": "1"},
        TENSORRT: {"trt_fp16_enable": "1"},
    }


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"intra_op_thread": 1}, "no option 'intra_op_thread'; did you mean 'intra_op_threads'"),
        ({"session.intra_op.alow_spinning": 1}, "did you mean 'session.intra_op.allow_spinning'"),
        ({"session.load_model_format": "ORT"}, "no option 'session.load_model_format'"),
        (
            {"session.model_external_initializers_file_folder_path": "/"},
            "no option 'session.model_external_initializers",
        ),
        ({"custom_ops_library": "x.so"}, "custom_ops_library' is not supported: native code"),
        ({"tensorrt.trt_extra_plugin_lib_paths": "x.so"}, "not supported: native code"),
        ({"cuda.device_id": "1"}, "the GPU is chosen with 'gpus'"),
        ({"cuda.user_compute_stream": "1"}, "an address in memory"),
        ({"intra_op_threads": "2"}, "intra_op_threads' is '2'; it must be a whole number"),
        ({"intra_op_threads": -1}, "must be a whole number, 0 or more"),
        ({"intra_op_threads": True}, "must be a whole number, 0 or more"),
        ({"memory_arena": "yes"}, "memory_arena' is 'yes'; it must be true or false"),
        ({"graph_optimization": 1}, "it must be disabled, basic, extended, all"),
        ({"execution_mode": "fast"}, "it must be sequential, parallel"),
    ],
)
def test_what_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        parse_options(options)
    assert text in str(caught.value)


def test_whatever_config_pbtxt_gives_is_taken() -> None:
    assert config_pbtxt_options.SESSION_ENTRIES == SESSION_ENTRIES
    names = {option for option, *_ in config_pbtxt_options.ONNX_PARAMETERS.values()}
    assert {name for name in names if not name.startswith("cuda.")} <= OPTIONS
    assert set(config_pbtxt_options.GRAPH_LEVELS.values()) == set(CHOICES["graph_optimization"])
    parse_options({"providers": f"{TENSORRT},{CUDA}", "cuda.do_copy_in_default_stream": "1"})


@pytest.mark.parametrize(
    ("device", "available", "gpu", "expected"),
    [
        ("auto", ALL, True, (CUDA, CPU)),
        ("auto", ALL, False, (CPU,)),
        ("auto", (CPU,), True, (CPU,)),
        ("cpu", ALL, True, (CPU,)),
        ("gpu", ALL, True, (CUDA, CPU)),
        ("gpu", ALL, False, "no NVIDIA GPU can be seen"),
        ("gpu", (CPU,), True, r"pip install 'sluicegate\[onnx-gpu\]'"),
    ],
)
def test_providers_by_device(
    device: Any, available: tuple[str, ...], gpu: bool, expected: tuple[str, ...] | str
) -> None:
    settings = ModelSettings(device=device)
    if isinstance(expected, str):
        with pytest.raises(ModelLoadError, match=expected):
            choose_providers(settings, SessionPlan(), available, gpu=gpu)
    else:
        assert choose_providers(settings, SessionPlan(), available, gpu=gpu) == expected


def test_providers_by_name() -> None:
    def choose(names: str, device: Any = "auto") -> tuple[str, ...]:
        plan = parse_options({"providers": names})
        return choose_providers(
            ModelSettings(device=device), plan, (CUDA, "XnnpackX", CPU), gpu=True
        )

    assert choose("XnnpackX") == ("XnnpackX", CPU)
    assert choose("cpu,cuda") == (CPU, CUDA)
    assert choose(f"{CUDA},{CUDA}") == (CUDA, CPU)
    with pytest.raises(ModelLoadError, match=r"'Nonsense' is not in .* which has: CUDAExecution"):
        choose("Nonsense")
    with pytest.raises(ModelLoadError, match=r"which has: .*sluicegate\[onnx-gpu\]' brings"):
        choose("tensorrt")
    with pytest.raises(ModelLoadError, match="device is 'cpu', but option 'providers'"):
        choose("cuda", device="cpu")
    with pytest.raises(ModelLoadError, match="device is 'gpu', but option 'providers'"):
        choose("cpu", device="gpu")


def test_a_hidden_gpu_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not gpu_visible()


@pytest.mark.parametrize(
    ("cores", "instances", "sessions", "threads"),
    [
        (8, 1, 1, 8),
        (8, 2, 1, 7),
        (2, 2, 1, 1),
        (2, 9, 1, 1),
        (1, 1, 1, 1),
        (8, 4, 2, 4),
        (1, 4, 4, 1),
    ],
)
def test_threads_fit_the_cores(cores: int, instances: int, sessions: int, threads: int) -> None:
    assert default_threads(cores, instances, sessions) == threads
