"""PyTorch models behind a real gateway, called with Triton's own clients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from gateway.tensors import Array
from tests.support.gateway import ROOT, GatewayProcess

torch = pytest.importorskip("torch")
pytest.importorskip("pygrpc_native")
import tritonclient.grpc as triton_grpc  # noqa: E402
import tritonclient.http as triton_http  # noqa: E402

from tests.support import torch_models as models  # noqa: E402 - it imports PyTorch

MLP = """\
max_batch_size: 8
inputs: [{name: x, datatype: FP32, dims: [4]}]
outputs:
  - {name: scores, datatype: FP32, dims: [3]}
  - {name: label, datatype: INT64, dims: [1], reshape: []}
"""
LIBTORCH = """\
platform: "pytorch_libtorch"
max_batch_size: 8
input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] }
output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 5 ] }
dynamic_batching { }
parameters { key: "INFERENCE_MODE" value { string_value: "true" } }
"""


def folder(root: Path, model: str, version: str = "1", **files: str) -> Path:
    """The version's folder, with the model's own documents beside it."""
    path = root / model / version
    path.mkdir(parents=True)
    for name, text in files.items():
        (root / model / name.replace("_", ".")).write_text(text)
    return path


def write_onnx(path: Path) -> None:
    """`make_mlp` in ONNX."""
    weights = [value.detach().numpy() for value in models.make_mlp().parameters()]
    info = h.make_tensor_value_info
    nodes = [
        h.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        h.make_node("Relu", ["h"], ["r"]),
        h.make_node("Gemm", ["r", "w2", "b2"], ["scores"], transB=1),
        h.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    named = [
        nh.from_array(value, name)
        for value, name in zip(weights, ["w1", "b1", "w2", "b2"], strict=True)
    ]
    outputs = [info("scores", T.FLOAT, ["N", 3]), info("label", T.INT64, ["N"])]
    graph = h.make_graph(nodes, "g", [info("x", T.FLOAT, ["N", 4])], outputs, named)
    opset = [h.make_opsetid("", 18)]
    onnx.save(h.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("models")
    write_onnx(folder(root, "mixed", "1", model_yaml=MLP) / "model.onnx")
    traffic = 'weights: {"1": 50, "2": 50}\nstable: "1"\n'
    path = folder(root, "mixed", "2", traffic_yaml=traffic)
    models.save_program(models.make_mlp(), (torch.rand(2, 4),), path / "model.pt2")
    image = (torch.rand(2, 3, 8, 8),)
    models.save_program(models.make_cnn(), image, folder(root, "program") / "model.pt2")
    path = folder(root, "libtorch", config_pbtxt=LIBTORCH) / "model.pt"
    models.save_traced(models.make_cnn(), image, path)
    torch.save(models.make_cnn(), folder(root, "pickled") / "model.pt")
    gateway = GatewayProcess(tmp_path_factory.mktemp("work"), [root])
    yield gateway
    gateway.stop()


def call(gateway: GatewayProcess, protocol: str, model: str, name: str, array: Array) -> Any:
    module: Any = triton_http if protocol == "http" else triton_grpc
    address = gateway.http_address if protocol == "http" else gateway.grpc
    tensor = module.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    client = module.InferenceServerClient(address)
    try:
        return client.infer(model, [tensor])
    finally:
        client.close()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("model", "name"), [("program", "image"), ("libtorch", "INPUT__0")])
def test_answers_are_pytorchs_own(
    served: GatewayProcess, protocol: str, model: str, name: str
) -> None:
    image = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        wanted = models.make_cnn()(torch.from_numpy(image.copy())).numpy()
    found = call(served, protocol, model, name, image).as_numpy("OUTPUT__0")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_one_version_on_onnx_and_one_on_pytorch(served: GatewayProcess) -> None:
    x = np.random.default_rng(1).random((2, 4)).astype(np.float32)
    with torch.no_grad():
        scores, label = models.make_mlp()(torch.from_numpy(x.copy()))
    versions = set()
    for _ in range(60):
        answer = call(served, "http", "mixed", "x", x)
        versions.add(answer.get_response()["model_version"])
        np.testing.assert_allclose(answer.as_numpy("scores"), scores.numpy(), rtol=1e-4)
        assert answer.as_numpy("label").ravel().tolist() == label.tolist()
    assert versions == {"1", "2"}


def test_a_pickled_module_fails_and_says_why(served: GatewayProcess) -> None:
    assert "pickled/1 failed to load: 'model.pt' is a pickled object" in served.log()


def test_a_gateway_without_pytorch_starts_and_says_what_to_type(tmp_path: Path) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "hide = lambda name, *more: None if name == 'torch' else find(name, *more)\n"
        "PathFinder.find_spec = hide\n"
    )
    root = tmp_path / "models"
    models.save_script(models.make_mlp(), folder(root, "torch", model_yaml=MLP) / "model.pt")
    write_onnx(folder(root, "onnx", model_yaml=MLP) / "model.onnx")
    environment = {"PYTHONPATH": f"{hiding}:{ROOT}"}
    gateway = GatewayProcess(tmp_path, [root], environment=environment)
    try:
        assert "type: pip install 'sluicegate[torch]'" in gateway.log()
        x = np.zeros((1, 4), np.float32)
        assert call(gateway, "http", "onnx", "x", x).as_numpy("scores").shape == (1, 3)
    finally:
        gateway.stop()
    assert sys.modules["torch"] is torch
