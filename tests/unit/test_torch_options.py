"""The torch runtime's options and devices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from gateway.registries import config_pbtxt_options
from gateway.registries.config_pbtxt import parse_config_pbtxt
from runtimes.torch_file import Kind
from runtimes.torch_options import OPTIONS, Plan, check_kind, choose_devices, parse_options
from runtimes.torch_threads import default_threads


def test_defaults() -> None:
    assert parse_options({}) == Plan()
    assert set(Plan.__dataclass_fields__) == OPTIONS


def test_every_option() -> None:
    options: dict[str, Any] = {
        "autocast": "bf16",
        "cache_cleaning": True,
        "channels_last": True,
        "compile": False,
        "cudnn_benchmark": True,
        "factory": "my.models:Net.make",
        "inference_mode": False,
        "inter_op_threads": 1,
        "intra_op_threads": 2,
        "libraries": "a.so, b.so",
        "optimize": "freeze",
        "optimized_execution": False,
    }
    plan = parse_options(options)
    assert plan.library_names == ("a.so", "b.so")
    assert plan.compile == "off", "YAML's bare off"
    assert set(options) == OPTIONS


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"intra_op_thread": 1}, "no option 'intra_op_thread'; did you mean 'intra_op_threads'"),
        ({"intra_op_threads": "2"}, "intra_op_threads' is '2'; it must be a whole number"),
        ({"inter_op_threads": -1}, "must be a whole number, 0 or more"),
        ({"intra_op_threads": True}, "must be a whole number, 0 or more"),
        ({"autocast": "fp8"}, "autocast' is 'fp8'; it must be off, bf16, fp16"),
        ({"optimize": False}, "it must be none, freeze, inference"),
        ({"channels_last": "yes"}, "channels_last' is 'yes'; it must be true or false"),
        ({"factory": "os.system('x')"}, "it must be 'package.module:function'"),
        ({"factory": "package.module"}, "it must be 'package.module:function'"),
        ({"libraries": ""}, "it must name files in the version's folder"),
    ],
)
def test_what_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        parse_options(options)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (Kind.SCRIPT, {"compile": "default"}, "'compile' cannot be used on TorchScript"),
        (Kind.PROGRAM, {"optimize": "freeze"}, "'optimize' is for TorchScript modules"),
        (Kind.PACKAGE, {"autocast": "bf16"}, "'autocast' has no effect on an AOTInductor"),
        (Kind.PACKAGE, {"compile": "default"}, "compiled already"),
        (Kind.PROGRAM, {"factory": "a:b"}, "needs no factory; remove the option 'factory'"),
        (Kind.WEIGHTS, {}, "weights without a model; name the function that makes the module"),
    ],
)
def test_options_fit_the_kind_of_file(kind: Kind, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        check_kind(parse_options(options), kind, "model.pt")
    assert text in str(caught.value)


def parameter(key: str, value: str) -> str:
    return f"backend: 'pytorch' parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}"


@pytest.mark.parametrize(
    ("key", "value", "options"),
    [
        ("INFERENCE_MODE", "false", {"inference_mode": False}),
        ("DISABLE_OPTIMIZED_EXECUTION", "true", {"optimized_execution": False}),
        ("ENABLE_CACHE_CLEANING", "true", {"cache_cleaning": True}),
        ("INTER_OP_THREAD_COUNT", "2", {"inter_op_threads": 2}),
        ("ENABLE_WEIGHT_SHARING", "true", {}),
    ],
)
def test_tritons_parameters(key: str, value: str, options: dict[str, Any]) -> None:
    found = parse_config_pbtxt(parameter(key, value), "m").options
    assert found == options
    parse_options(found)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("DISABLE_CUDNN", "one such switch for the whole process"),
        ("ENABLE_JIT_PROFILING", "one such switch for the whole process"),
        ("ENABLE_NVFUSER", "no longer has this fuser"),
        ("ENABLE_WEIGHT_SHARING", "it must be true: instances share"),
        ("INFERENCE_MOD", "did you mean 'INFERENCE_MODE'"),
    ],
)
def test_tritons_parameters_that_are_refused(key: str, text: str) -> None:
    with pytest.raises(Exception, match=text):
        parse_config_pbtxt(parameter(key, "false"), "m")


def test_whatever_config_pbtxt_gives_is_taken() -> None:
    names = {option for option, *_ in config_pbtxt_options.TORCH_PARAMETERS.values()}
    assert names - {""} <= OPTIONS


def fake_torch(gpus: int, *, cuda: str | None = "13.0") -> Any:
    return SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: gpus > 0, device_count=lambda: gpus),
        version=SimpleNamespace(cuda=cuda, hip=None),
    )


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({}, 0, ("cpu",)),
        ({}, 2, ("cuda:0",)),
        ({"device": "cpu"}, 2, ("cpu",)),
        ({"device": "gpu", "gpus": (1, 0)}, 2, ("cuda:1", "cuda:0")),
        ({"gpus": (0, 1), "instances": 1}, 2, ("cuda:0",)),
        ({"gpus": (0, 1), "instances": 4}, 2, ("cuda:0", "cuda:1")),
        ({"gpus": (0, 2)}, 2, "gpus has 2, but the GPUs here are 0 to 1"),
        ({"device": "gpu"}, 0, "no GPU can be seen here"),
    ],
)
def test_devices(settings: dict[str, Any], gpus: int, expected: tuple[str, ...] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(ModelLoadError, match=expected):
            choose_devices(ModelSettings(**settings), fake_torch(gpus))
    else:
        assert choose_devices(ModelSettings(**settings), fake_torch(gpus)) == expected


def test_a_torch_for_cpus_alone() -> None:
    with pytest.raises(ModelLoadError, match="built for CPUs; install a CUDA build"):
        choose_devices(ModelSettings(device="gpu"), fake_torch(0, cuda=None))


@pytest.mark.parametrize(
    ("cores", "instances", "threads"), [(8, 1, 8), (8, 3, 2), (2, 9, 1), (1, 1, 1)]
)
def test_threads_fit_the_cores(cores: int, instances: int, threads: int) -> None:
    assert default_threads(cores, instances) == threads
