"""The models that the conformance tests serve, made on the spot."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto as T
from onnx import helper as h

KINDS = {
    "BOOL": T.BOOL,
    "UINT8": T.UINT8,
    "UINT16": T.UINT16,
    "UINT32": T.UINT32,
    "UINT64": T.UINT64,
    "INT8": T.INT8,
    "INT16": T.INT16,
    "INT32": T.INT32,
    "INT64": T.INT64,
    "FP16": T.FLOAT16,
    "BF16": T.BFLOAT16,
    "FP32": T.FLOAT,
    "FP64": T.DOUBLE,
    "BYTES": T.STRING,
}
"""Datatype → ONNX's element type."""
SLOW_MODELS = 40

info = h.make_tensor_value_info


def write_models(folder: Path) -> Path:
    """Writes all of them and returns the folder."""
    save(folder / "add", add())
    save(folder / "pair", pair())
    save(folder / "scalar", scalar())
    save(folder / "raw", add(width=4))
    save(folder / "versions", add(1.0), add(2.0), add(3.0))
    (folder / "versions" / "model.yaml").write_text(
        "versions: {all: true}\nlabels: {newest: '3'}\n"
    )
    (folder / "versions" / "traffic.yaml").write_text('weights: {"1": 50, "2": 50}\nstable: "1"\n')
    for kind in KINDS:
        save(folder / f"identity_{kind.lower()}", identity(kind))
    for number in range(SLOW_MODELS):
        save(folder / f"slow-{number}", slow())
    return folder


def save(folder: Path, *graphs: onnx.GraphProto) -> None:
    """One version a graph, counted from 1."""
    for version, graph in enumerate(graphs, 1):
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "model.onnx").write_bytes(model.SerializeToString())


def add(amount: float = 1.0, width: int = 4) -> onnx.GraphProto:
    """``y = x + amount``, FP32 [N, width]."""
    constant = h.make_tensor("amount", T.FLOAT, [1], [amount])
    node = h.make_node("Add", ["x", "amount"], ["y"])
    x, y = (info(name, T.FLOAT, ["N", width]) for name in "xy")
    return h.make_graph([node], "add", [x], [y], [constant])


def pair() -> onnx.GraphProto:
    """Two inputs, two outputs: ``sum = a + b``, ``difference = a - b``, INT32 [N, 2]."""
    nodes = [
        h.make_node("Add", ["a", "b"], ["sum"]),
        h.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    a, b, total, rest = (info(n, T.INT32, ["N", 2]) for n in ("a", "b", "sum", "difference"))
    return h.make_graph(nodes, "pair", [a, b], [total, rest])


def scalar() -> onnx.GraphProto:
    """No batch dimension at all: ``z = x * y``, FP64 []."""
    node = h.make_node("Mul", ["x", "y"], ["z"])
    x, y, z = (info(name, T.DOUBLE, []) for name in "xyz")
    return h.make_graph([node], "scalar", [x, y], [z])


def identity(kind: str) -> onnx.GraphProto:
    """``y = x`` [N, M]."""
    node = h.make_node("Identity", ["x"], ["y"])
    x, y = (info(name, KINDS[kind], ["N", "M"]) for name in "xy")
    return h.make_graph([node], "identity", [x], [y])


def slow() -> onnx.GraphProto:
    """Takes as long as its input ``loops`` (INT64 [1]) says, in loops; gives their number."""
    body = h.make_graph(
        [h.make_node("Add", ["before", "one"], ["after"]), h.make_node("Identity", ["go"], ["on"])],
        "body",
        [info("index", T.INT64, []), info("go", T.BOOL, []), info("before", T.INT64, [1])],
        [info("on", T.BOOL, []), info("after", T.INT64, [1])],
        [h.make_tensor("one", T.INT64, [1], [1])],
    )
    nodes = [
        h.make_node("Squeeze", ["loops"], ["trips"]),
        h.make_node("Loop", ["trips", "true", "zero"], ["count"], body=body),
    ]
    constants = [
        h.make_tensor("true", T.BOOL, [], [True]),
        h.make_tensor("zero", T.INT64, [1], [0]),
    ]
    return h.make_graph(
        nodes, "slow", [info("loops", T.INT64, [1])], [info("count", T.INT64, [1])], constants
    )
