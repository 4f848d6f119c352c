"""The models of the comparison: seeded, so that every run measures the same files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

from .wire import Floats

SEED = 20260


@dataclass(frozen=True)
class Model:
    """One model file and what the verifier needs to know of it."""

    name: str
    path: Path
    row_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    exact: bool
    """Whether answers are compared bit by bit (``add``) or within a tolerance."""


class _Net:
    """A chain of layers, from ``x`` on."""

    def __init__(self, name: str, row_shape: Sequence[int]) -> None:
        self.name = name
        self.random = np.random.default_rng(SEED)
        self.row_shape = tuple(row_shape)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last = "x"

    def constant(self, value: Floats) -> str:
        """Adds a constant and returns its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(onh.from_array(value, name))
        return name

    def weights(self, shape: Sequence[int], fan_in: int) -> str:
        """Random weights that keep the size of the values from layer to layer."""
        scale = np.sqrt(2.0 / fan_in)
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def add(self, op: str, *inputs: str, **attributes: Any) -> None:
        """Adds one node behind the last."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(oh.make_node(op, [self.last, *inputs], [name], **attributes))
        self.last = name

    def save(self, path: Path, output_shape: Sequence[int]) -> Model:
        """Writes the file; the first dimension is the symbol ``N`` on both sides."""
        self.nodes[-1].output[0] = "y"
        f32 = onnx.TensorProto.FLOAT
        graph = oh.make_graph(
            self.nodes,
            self.name,
            [oh.make_tensor_value_info("x", f32, ["N", *self.row_shape])],
            [oh.make_tensor_value_info("y", f32, ["N", *output_shape])],
            self.constants,
        )
        model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(path))
        return Model(self.name, path, self.row_shape, tuple(output_shape), self.name == "add")


def make_add(path: Path) -> Model:
    """``y = x + 1`` over four numbers: the work of the server alone."""
    net = _Net("add", [4])
    net.add("Add", net.constant(np.ones(1, np.float32)))
    return net.save(path, [4])


def make_mlp(path: Path) -> Model:
    """256-1024-1024-256-16 with Relu between: a model that gains from batches."""
    sizes = [256, 1024, 1024, 256, 16]
    net = _Net("mlp", sizes[:1])
    for i, (rows, columns) in enumerate(pairwise(sizes)):
        if i:
            net.add("Relu")
        bias = np.zeros(columns, np.float32)
        net.add("Gemm", net.weights([rows, columns], rows), net.constant(bias))
    return net.save(path, sizes[-1:])


def make_cnn(path: Path) -> Model:
    """About 10 ms an image on one thread: twenty convolutions, a pool, a classifier.

    Most of the work is on 16x16 maps, which stay in the caches, so that the rate hardly depends
    on the batch size and the cell shows what the server adds, not how the caches behave.
    """
    net = _Net("cnn", [3, 64, 64])
    channels = [3, 32, 64] + [128] * 19
    for i, (inside, outside) in enumerate(pairwise(channels)):
        weights = net.weights([outside, inside, 3, 3], inside * 9)
        stride = 2 if i < 2 else 1
        net.add("Conv", weights, pads=[1, 1, 1, 1], strides=[stride, stride])
        net.add("Relu")
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.add("Gemm", net.weights([channels[-1], 10], channels[-1]))
    return net.save(path, [10])


MAKERS = {"add": make_add, "mlp": make_mlp, "cnn": make_cnn}


def make(name: str, folder: Path) -> Model:
    """Writes the model ``name`` as ``folder/name.onnx``."""
    return MAKERS[name](folder / f"{name}.onnx")


def samples(model: Model, count: int = 64, threads: int = 1) -> tuple[Floats, Floats]:
    """Random rows and what onnxruntime, called directly row by row, answers to them."""
    random = np.random.default_rng()
    rows = random.standard_normal((count, *model.row_shape)).astype(np.float32)
    if model.exact:
        return rows, rows + np.float32(1)
    session = open_session(model.path, threads)
    answers = [session.run(["y"], {"x": rows[i : i + 1]})[0] for i in range(count)]
    return rows, np.concatenate(answers)


def open_session(path: Path, threads: int) -> Any:
    """An onnxruntime session with the options that every side of the comparison uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
