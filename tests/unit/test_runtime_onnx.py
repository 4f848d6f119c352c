"""ONNX models through the runtime: values, text, threads, errors, devices."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import runtimes.onnx as runtime_module
from gateway.errors import InferenceFailed, InvalidInput, ModelLoadError
from gateway.model_settings import ModelSettings, TensorSettings
from gateway.tensors import DATATYPES, Array, objects
from runtimes.interface import Artifact, Model
from runtimes.onnx import OnnxRuntime
from runtimes.onnx_model import BoundOnnxModel, one_line

info = h.make_tensor_value_info
ONE = h.make_tensor("one", T.FLOAT, [1], [1.0])
onnxruntime = pytest.importorskip("onnxruntime")


def save(folder: Path, nodes: list[Any], ins: list[Any], outs: list[Any], *weights: T) -> Path:
    graph = h.make_graph(nodes, "g", ins, outs, weights)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder


def add(folder: Path) -> Path:
    x, y = (info(name, T.FLOAT, ["N", 4]) for name in "xy")
    return save(folder, [h.make_node("Add", ["x", "one"], ["y"])], [x], [y], ONE)


def identity(folder: Path, kind: int, shape: list[Any]) -> Path:
    x, y = (info(name, kind, shape) for name in "xy")
    return save(folder, [h.make_node("Identity", ["x"], ["y"])], [x], [y])


def artifact(folder: Path, **settings: Any) -> Artifact:
    return Artifact("m", "1", folder, ModelSettings(**settings))


def load(folder: Path, **settings: Any) -> Model:
    return OnnxRuntime().load(artifact(folder, **settings))


def run(model: Model, **inputs: Array) -> dict[str, Array]:
    return dict(model.infer(inputs, (), {}))


def test_adds(tmp_path: Path) -> None:
    model = load(add(tmp_path))
    assert model.platform == "onnxruntime_onnx"
    assert (model.instances, model.batch_dimension) == (1, True)
    result = run(model, x=np.zeros((2, 4), np.float32))
    assert result["y"].tolist() == [[1] * 4] * 2


@pytest.mark.parametrize("name", sorted(set(DATATYPES) - {"BYTES"}))
def test_every_datatype_goes_through(tmp_path: Path, name: str) -> None:
    kinds = {"FP16": "FLOAT16", "BF16": "BFLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE"}
    kind = getattr(T, kinds.get(name, name))
    model = load(identity(tmp_path, kind, ["N", 2]))
    assert (model.inputs[0].datatype.name, model.outputs[0].datatype.name) == (name, name)
    x = np.array([[0, 1], [1, 0], [1, 1]]).astype(DATATYPES[name].dtype)
    result = run(model, x=x)["y"]
    assert result.dtype == x.dtype
    assert result.tolist() == x.tolist()


def test_text(tmp_path: Path) -> None:
    model = load(identity(tmp_path, T.STRING, ["N", 2]))
    elements = [b"plain", "ä€😀".encode(), b"", b"a\0b"]
    result = run(model, x=objects(elements, (2, 2)))["y"]
    assert result.shape == (2, 2)
    assert [str(text).encode() for text in result.ravel()] == elements
    assert run(model, x=objects([], (0, 2)))["y"].shape == (0, 2)


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"\xc3", b"\xed\xb3\xbf", b"ok\x80"])
def test_bytes_that_are_no_text_are_the_senders_fault(tmp_path: Path, bad: bytes) -> None:
    model = load(identity(tmp_path, T.STRING, ["N"]))
    with pytest.raises(InvalidInput, match="input 'x': element 1 is not UTF-8"):
        run(model, x=objects([b"good", bad], (2,)))
    assert run(model, x=objects([b"good"], (1,)))["y"].tolist() == ["good"]


def test_output_that_is_no_text_fails_alone(tmp_path: Path) -> None:
    weights = T(name="c", data_type=T.STRING, dims=[1], string_data=[b"\xff"])
    ins, outs = [info("x", T.FLOAT, ["N"])], [info("y", T.STRING, [1])]
    model = load(save(tmp_path, [h.make_node("Identity", ["c"], ["y"])], ins, outs, weights))
    with pytest.raises(InferenceFailed, match="utf-8"):
        run(model, x=np.zeros(1, np.float32))


def test_inputs_are_not_copied_and_may_lie_anywhere(tmp_path: Path) -> None:
    model = load(add(tmp_path))
    for offset in range(5):
        raw = bytes(offset) + np.arange(8, dtype=np.float32).tobytes()
        x = np.frombuffer(raw, np.float32, offset=offset).reshape(2, 4)
        assert run(model, x=x)["y"].ravel().tolist() == list(range(1, 9))
    columns = np.arange(16, dtype=np.float32).reshape(2, 8)[:, ::2]
    assert run(model, x=columns)["y"].tolist() == (columns + 1).tolist()


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 5), np.float32), np.zeros(2, np.float32), np.zeros((2, 4), np.float64),
        np.zeros((2, 4, 1), np.float32), np.zeros((2, 4), np.int8),
    ],
)  # fmt: skip
def test_input_that_does_not_fit_is_the_senders_fault(tmp_path: Path, x: Array) -> None:
    model = load(add(tmp_path))
    with pytest.raises(InvalidInput) as caught:
        run(model, x=x)
    message = str(caught.value)
    assert "\n" not in message and "ONNXRuntimeError" not in message
    assert run(model, x=np.zeros((1, 4), np.float32))["y"].tolist() == [[1] * 4]


def test_values_out_of_range_are_the_senders_fault(tmp_path: Path) -> None:
    table = h.make_tensor("table", T.FLOAT, [2], [1, 2])
    ins, outs = [info("i", T.INT64, ["N"])], [info("y", T.FLOAT, ["N"])]
    model = load(save(tmp_path, [h.make_node("Gather", ["table", "i"], ["y"])], ins, outs, table))
    with pytest.raises(InvalidInput, match="out of data bounds"):
        run(model, i=np.array([9]))


def test_failures_are_quiet_and_name_no_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ins = [info("x", T.FLOAT, ["N"]), info("s", T.INT64, ["K"])]
    node = h.make_node("Reshape", ["x", "s"], ["y"])
    model = load(save(tmp_path, [node], ins, [info("y", T.FLOAT, ["a", "b"])]))
    with pytest.raises(InferenceFailed, match="cannot be reshaped") as caught:
        run(model, x=np.zeros(4, np.float32), s=np.array([3, 3]))
    assert "/" not in str(caught.value).replace("inputs/outputs", "")
    assert capfd.readouterr() == ("", "")


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    model = load(add(tmp_path))
    with pytest.raises(InferenceFailed, match="missing"):
        run(model)
    with pytest.raises(InferenceFailed, match="zz"):
        run(model, x=np.zeros((1, 4), np.float32), zz=np.zeros(1))
    with pytest.raises(InferenceFailed, match="nope"):
        model.infer({"x": np.zeros((1, 4), np.float32)}, ("nope",), {})


def test_only_the_outputs_asked_for(tmp_path: Path) -> None:
    nodes = [h.make_node("Neg", ["x"], ["y"]), h.make_node("Abs", ["x"], ["z"])]
    x, y, z = (info(name, T.FLOAT, ["N"]) for name in "xyz")
    model = load(save(tmp_path, nodes, [x], [y, z]))
    inputs = {"x": np.array([2], np.float32)}
    assert list(model.infer(inputs, ("z",), {})) == ["z"]
    assert list(model.infer(inputs, ("z", "y"), {})) == ["z", "y"]
    assert list(model.infer(inputs, (), {})) == ["y", "z"]
    y_only = TensorSettings(name="y", datatype="FP32", dims=(-1,))
    assert list(run(load(tmp_path, outputs=(y_only,)), **inputs)) == ["y"]


def test_reshape(tmp_path: Path) -> None:
    ins, outs = [info("x", T.FLOAT, ["N", 2, 2])], [info("y", T.FLOAT, ["N", 2, 2])]
    node = h.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])
    save(tmp_path, [node], ins, outs)
    flat = [
        TensorSettings(name=name, datatype="FP32", dims=(4,), reshape=(2, 2)) for name in ("x", "y")
    ]
    model = load(tmp_path, max_batch_size=4, inputs=(flat[0],), outputs=(flat[1],))
    assert model.inputs[0].shape == model.outputs[0].shape == (-1, 4)
    result = run(model, x=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32))
    assert result["y"].tolist() == [[1, 3, 2, 4], [5, 7, 6, 8]]


def test_optional_input_keeps_its_default(tmp_path: Path) -> None:
    bias = h.make_tensor("b", T.FLOAT, [1], [1.0])
    ins = [info("x", T.FLOAT, ["N"]), info("b", T.FLOAT, [1])]
    node = h.make_node("Add", ["x", "b"], ["y"])
    save(tmp_path, [node], ins, [info("y", T.FLOAT, ["N"])], bias)
    declared = (
        TensorSettings(name="x", datatype="FP32", dims=(-1,)),
        TensorSettings(name="b", datatype="FP32", dims=(1,), optional=True),
    )
    x = np.zeros(1, np.float32)
    model = load(tmp_path, inputs=declared)
    assert run(model, x=x)["y"].tolist() == [1]
    assert run(model, x=x, b=np.array([5], np.float32))["y"].tolist() == [5]
    assert [spec.name for spec in load(tmp_path).inputs] == ["x"]


def test_a_rank_that_the_file_leaves_out(tmp_path: Path) -> None:
    identity(tmp_path, T.FLOAT, None)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match="how many dimensions input 'x' has"):
        load(tmp_path)
    specs = [TensorSettings(name=name, datatype="FP32", dims=(3,)) for name in ("x", "y")]
    model = load(tmp_path, max_batch_size=2, inputs=(specs[0],), outputs=(specs[1],))
    assert model.batch_dimension and model.inputs[0].shape == (-1, 3)


def test_instances_share_one_session(tmp_path: Path) -> None:
    model = load(add(tmp_path), instances=4)
    assert model.instances == 4
    wrong: list[int] = []

    def work(value: int) -> None:
        x = np.full((3, 4), value, np.float32)
        for _ in range(200):
            if not (run(model, x=x)["y"] == value + 1).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class FakeOrt:
    """ONNX Runtime as if it had GPUs: sessions run on the CPU and remember their options."""

    def __init__(self, *, starts: bool = True) -> None:
        self.starts = starts
        self.devices: list[str] = []
        self.capi = onnxruntime.capi

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def preload_dlls(self) -> None:
        """There are none."""

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: Any, **more: Any) -> Any:
        fake = self
        fake.devices.append(more["provider_options"][0].get("device_id", "cpu"))

        class Session(onnxruntime.InferenceSession):  # type: ignore[name-defined,misc]
            calls = 0

            def get_providers(self) -> list[str]:
                return more["providers"] if fake.starts else ["CPUExecutionProvider"]

            def run_with_iobinding(self, *args: Any) -> None:
                self.calls += 1
                super().run_with_iobinding(*args)

        return Session(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    fake = FakeOrt()
    monkeypatch.setattr(runtime_module, "import_onnxruntime", lambda: fake)
    monkeypatch.setattr(runtime_module, "gpu_visible", lambda: True)
    return fake


def test_one_session_a_gpu(tmp_path: Path, gpus: FakeOrt) -> None:
    model = load(add(tmp_path), device="gpu", gpus=(1, 3), instances=4)
    assert isinstance(model, BoundOnnxModel)
    assert (gpus.devices, model.instances) == (["1", "3"], 4)
    x = np.zeros((2, 4), np.float32)
    for _ in range(8):
        assert run(model, x=x)["y"].tolist() == [[1] * 4] * 2
    queue = model._idle
    assert queue is not None
    sessions = [queue.get() for _ in range(4)]
    assert sorted(session.calls for session in sessions) == [4, 4, 4, 4]
    model.close()
    model.close()


def test_instances_on_gpus(tmp_path: Path, gpus: FakeOrt) -> None:
    assert load(add(tmp_path)).instances == 1
    assert load(tmp_path, gpus=(0, 1, 2)).instances == 3
    assert load(tmp_path, gpus=(0, 1, 2), instances=2).instances == 2
    assert gpus.devices == ["0", "0", "1", "2", "0", "1"]


def test_a_gpu_that_does_not_start(
    tmp_path: Path, gpus: FakeOrt, caplog: pytest.LogCaptureFixture
) -> None:
    gpus.starts = False
    with pytest.raises(ModelLoadError, match="CUDAExecutionProvider did not start"):
        load(add(tmp_path), device="gpu")
    with caplog.at_level(logging.WARNING):
        model = load(tmp_path, gpus=(0, 1))
    assert "did not start; model.onnx runs on the CPU" in caplog.text
    assert not isinstance(model, BoundOnnxModel)
    assert gpus.devices == ["0", "0"]


def test_text_beside_a_gpu(tmp_path: Path, gpus: FakeOrt) -> None:
    """Text cannot be bound."""
    model = load(identity(tmp_path, T.STRING, ["N"]))
    assert not isinstance(model, BoundOnnxModel)
    assert run(model, x=objects(["ä".encode(), b"b"], (2,)))["y"].tolist() == ["ä", "b"]


def test_bfloat16_beside_text(tmp_path: Path) -> None:
    half, text = info("half", T.BFLOAT16, ["N"]), info("text", T.STRING, ["N"])
    outs = [info("y", T.FLOAT, ["N"]), info("z", T.STRING, ["N"])]
    nodes = [h.make_node("Cast", ["half"], ["y"], to=1), h.make_node("Identity", ["text"], ["z"])]
    with pytest.raises(ModelLoadError, match="cannot take text inputs beside BF16"):
        load(save(tmp_path, nodes, [half, text], outs))
    word = T(name="c", data_type=T.STRING, dims=[1], string_data=[b"word"])
    nodes[1] = h.make_node("Identity", ["c"], ["z"])
    model = load(save(tmp_path, nodes, [half], [outs[0], info("z", T.STRING, [1])], word))
    result = run(model, half=np.ones(1, DATATYPES["BF16"].dtype))
    assert (result["y"].tolist(), result["z"].tolist()) == ([1], ["word"])


def test_options_of_an_unused_provider_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(add(tmp_path), device="cpu", options={"cuda.gpu_mem_limit": "1000"})
    assert "options of CUDAExecutionProvider are not used" in caplog.text


def test_options_reach_the_session(tmp_path: Path) -> None:
    model: Any = load(add(tmp_path), options={"intra_op_threads": 3, "memory_pattern": False})
    options = model._session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert not options.enable_mem_pattern
    with pytest.raises(ModelLoadError, match="did you mean 'intra_op_threads'"):
        load(tmp_path, options={"intra_op_treads": 3})


def test_broken_models_say_why_in_one_line(tmp_path: Path) -> None:
    node = h.make_node("Nonsense", ["x"], ["y"], domain="nobody.knows")
    save(tmp_path, [node], [info("x", T.FLOAT, ["N"])], [info("y", T.FLOAT, ["N"])])
    with pytest.raises(ModelLoadError, match=r"'model.onnx' cannot be loaded: .*nobody.knows") as e:
        load(tmp_path)
    assert "\n" not in str(e.value) and str(tmp_path) not in str(e.value)


def test_a_closed_model_fails(tmp_path: Path) -> None:
    model = load(add(tmp_path))
    model.close()
    with pytest.raises(InferenceFailed, match="closed"):
        run(model, x=np.zeros((1, 4), np.float32))


def test_messages_lose_codes_and_folders() -> None:
    error = Exception(
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : while running node. Name:'/conv/Conv'\n at "
        "/onnxruntime_src/core/x.h:40 in f"
    )
    assert one_line(error) == "while running node. Name:'/conv/Conv' at x.h:40 in f"
    assert one_line(Exception()) == "Exception"
    assert len(one_line(Exception("x" * 9999))) == 400


def test_report() -> None:
    report = OnnxRuntime().report()
    assert report.available and report.formats == ("onnx",)
    assert report.version == onnxruntime.__version__


def test_report_does_not_import_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime")
    OnnxRuntime().report()
    assert "onnxruntime" not in sys.modules


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelLoadError, match=r"pip install 'sluicegate\[onnx\]'"):
        load(add(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = OnnxRuntime().report()
    assert not report.available and "pip install" in report.reason
    assert OnnxRuntime().probe(artifact(tmp_path))


def test_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    report = OnnxRuntime().report()
    assert not report.available
    with pytest.raises(ModelLoadError) as caught:
        load(add(tmp_path))
    line = "pip uninstall onnxruntime onnxruntime-gpu && pip install 'sluicegate[onnx-gpu]'"
    assert line in report.reason and line in str(caught.value)
