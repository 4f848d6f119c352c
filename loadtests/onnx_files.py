"""ONNX files of the models that are loaded: one input ``x``, one output ``y``, FP32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as onh

FLOAT: int = onnx.TensorProto.FLOAT
Shape = Sequence[int | str]
"""Sizes; a name for one that may be any."""


def model_of(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    takes: Shape,
    gives: Shape,
    constants: Sequence[onnx.TensorProto] = (),
    *,
    datatype: int = FLOAT,
) -> onnx.ModelProto:
    """A graph from ``x`` to ``y``; ``datatype``: of ``x``."""
    x = oh.make_tensor_value_info("x", datatype, list(takes))
    y = oh.make_tensor_value_info("y", FLOAT, list(gives))
    graph = oh.make_graph(nodes, name, [x], [y], constants)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def adding(number: float, columns: int = 4) -> onnx.ModelProto:
    """``y = x + number`` over rows of so many columns."""
    value = onh.from_array(np.full(1, number, np.float32), "number")
    node = oh.make_node("Add", ["x", "number"], ["y"])
    return model_of("add", [node], ["N", columns], ["N", columns], [value])


def save(model: onnx.ModelProto, path: Path) -> None:
    """Writes the file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
