"""Tiny ONNX models for tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from onnx import TensorProto
from onnx import helper as h

FLOAT: Any = TensorProto.FLOAT
INT64: Any = TensorProto.INT64
STRING: Any = TensorProto.STRING
info = h.make_tensor_value_info


def model_bytes(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any] = ()
) -> bytes:
    graph = h.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [h.make_opsetid("", 18)]
    data: bytes = h.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return data


@cache
def adding(value: float, width: int = 4, padding: int = 0) -> bytes:
    """``y = x + value`` for FP32 ``x[N, width]``; `padding` unused weights make the file larger."""
    weights = [h.make_tensor("value", FLOAT, [1], [value])]
    if padding:
        weights.append(h.make_tensor("unused", FLOAT, [padding], bytes(4 * padding), raw=True))
    x, y = (info(name, FLOAT, ["N", width]) for name in "xy")
    return model_bytes([h.make_node("Add", ["x", "value"], ["y"])], [x], [y], weights)


def write(folder: Path, data: bytes, name: str = "model.onnx") -> Path:
    """A version's folder with the file, there in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / ".new"
    hidden.write_bytes(data)
    hidden.replace(folder / name)
    return folder


def write_adding(root: Path, model: str, *values: float) -> Path:
    """Versions 1, 2, ... that add these values."""
    for version, value in enumerate(values, 1):
        write(root / model / str(version), adding(value))
    return root / model
