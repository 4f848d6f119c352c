"""The probe at load time: which models may be batched, why others not, and the warm-up."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx import helper as h

from gateway.errors import ModelLoadError, SluiceError
from gateway.lifecycle.probe import Findings, examine
from gateway.model_settings import ModelSettings, WarmupInput, WarmupSettings
from gateway.tensors import DATATYPES, Array, TensorSpec
from runtimes.interface import Artifact, Model
from runtimes.onnx import OnnxRuntime
from tests.support.onnx_models import FLOAT, INT64, STRING, info, model_bytes, write

onnxruntime = pytest.importorskip("onnxruntime")
node = h.make_node
DEFAULT = 64


def load(folder: Path, data: bytes, **settings: Any) -> tuple[Model, ModelSettings]:
    made = ModelSettings(**settings)
    path = write(folder / "1", data)
    return OnnxRuntime().load(Artifact("m", "1", path, made)), made


def probe(folder: Path, data: bytes, **settings: Any) -> Findings:
    model, made = load(folder, data, **settings)
    return examine(model, made, DEFAULT, folder)


def ints(name: str, *values: int) -> Any:
    return h.make_tensor(name, INT64, [len(values)], values)


def unary(nodes: Sequence[Any], out: Sequence[Any], weights: Sequence[Any] = ()) -> bytes:
    """A model from FP32 ``x[N, 4]`` to ``y``."""
    return model_bytes(nodes, [info("x", FLOAT, ["N", 4])], [info("y", FLOAT, list(out))], weights)


ROWS_APART = {
    "add": unary([node("Add", ["x", "x"], ["y"])], ["N", 4]),
    "softmax over columns": unary([node("Softmax", ["x"], ["y"], axis=1)], ["N", 4]),
    "sum over columns": unary([node("ReduceSum", ["x", "a"], ["y"])], ["N", 1], [ints("a", 1)]),
    "nan for some values": unary([node("Log", ["x"], ["y"])], ["N", 4]),
    "half precision": model_bytes(
        [node("MatMul", ["x", "w"], ["y"])],
        [info("x", TensorProto.FLOAT16, ["N", 64])],
        [info("y", TensorProto.FLOAT16, ["N", 8])],
        [
            h.make_tensor(
                "w", TensorProto.FLOAT16, [64, 8],
                np.random.default_rng(1).standard_normal(512).astype(np.float16),
            )
        ],
    ),
    "indices into two rows": model_bytes(
        [node("Gather", ["table", "x"], ["y"])],
        [info("x", INT64, ["N"])],
        [info("y", FLOAT, ["N", 2])],
        [h.make_tensor("table", FLOAT, [2, 2], [1.0, 2.0, 3.0, 4.0])],
    ),
    "texts that must be numbers": model_bytes(
        [node("Cast", ["x"], ["y"], to=FLOAT)],
        [info("x", STRING, ["N", 2])],
        [info("y", FLOAT, ["N", 2])],
    ),
    "texts": model_bytes(
        [node("Identity", ["x"], ["y"])],
        [info("x", STRING, ["N", 2])],
        [info("y", STRING, ["N", 2])],
    ),
    "inner dimensions of any size": model_bytes(
        [node("Conv", ["x", "w"], ["c"]), node("GlobalAveragePool", ["c"], ["y"])],
        [info("x", FLOAT, ["N", 1, "H", "W"])],
        [info("y", FLOAT, ["N", 1, 1, 1])],
        [h.make_tensor("w", FLOAT, [1, 1, 12, 12], [0.1] * 144)],
    ),
}  # fmt: skip

ROWS_MIXED = {
    "softmax over rows": unary([node("Softmax", ["x"], ["y"], axis=0)], ["N", 4]),
    "minus the mean of all rows": unary(
        [node("ReduceMean", ["x", "a"], ["m"]), node("Sub", ["x", "m"], ["y"])],
        ["N", 4], [ints("a", 0)],
    ),
    "running sum over rows": unary(
        [node("CumSum", ["x", "zero"], ["y"])], ["N", 4],
        [h.make_tensor("zero", INT64, [], [0])],
    ),
    "running sum over rows of integers": model_bytes(
        [node("CumSum", ["x", "zero"], ["y"])],
        [info("x", INT64, ["N", 1])],
        [info("y", INT64, ["N", 1])],
        [h.make_tensor("zero", INT64, [], [0])],
    ),
    "rows in reverse order": unary(
        [node("Slice", ["x", "start", "end", "axis", "step"], ["y"])], ["N", 4],
        [ints("start", -1), ints("end", -100), ints("axis", 0), ints("step", -1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS_APART)
def test_batched(name: str, tmp_path: Path) -> None:
    findings = probe(tmp_path, ROWS_APART[name])
    assert findings.notes == []
    assert findings.max_batch_size == DEFAULT
    assert findings.curve.samples() > 0


@pytest.mark.parametrize("name", ROWS_MIXED)
def test_rows_that_depend_on_each_other_are_never_batched(name: str, tmp_path: Path) -> None:
    findings = probe(tmp_path, ROWS_MIXED[name])
    assert findings.max_batch_size == 0
    assert findings.notes == ["not batched: rows together give other answers than rows apart"]
    assert findings.curve.samples() > 0, "it is warmed up all the same"
    with pytest.raises(ModelLoadError, match=r"max_batch_size is 8, but rows together.*: 0$"):
        probe(tmp_path, ROWS_MIXED[name], max_batch_size=8)


def state() -> bytes:
    return model_bytes(
        [node("Add", ["x", "x"], ["y"]), node("Add", ["state", "state"], ["next"])],
        [info("x", FLOAT, ["N", 4]), info("state", FLOAT, [2, "N", 128])],
        [info("y", FLOAT, ["N", 4]), info("next", FLOAT, [2, "N", 128])],
    )


def scalar() -> bytes:
    return model_bytes(
        [node("Add", ["x", "s"], ["y"])],
        [info("x", FLOAT, ["N", 4]), info("s", FLOAT, [])],
        [info("y", FLOAT, ["N", 4])],
    )


def two_symbols() -> bytes:
    return model_bytes(
        [node("Add", ["x", "x"], ["y"]), node("Add", ["z", "z"], ["w"])],
        [info("x", FLOAT, ["N", 4]), info("z", FLOAT, ["M", 4])],
        [info("y", FLOAT, ["N", 4]), info("w", FLOAT, ["M", 4])],
    )


NO_BATCH: dict[str, Callable[[], bytes]] = {
    "state": state, "scalar input": scalar, "two symbols": two_symbols,
    "fixed first dimension": lambda: model_bytes(
        [node("Add", ["x", "x"], ["y"])],
        [info("x", FLOAT, [8, 4])],
        [info("y", FLOAT, [8, 4])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BATCH)
def test_a_first_dimension_that_is_no_batch(name: str, tmp_path: Path) -> None:
    findings = probe(tmp_path, NO_BATCH[name]())
    assert findings.max_batch_size == 0
    assert findings.notes == ["not batched: inputs and outputs share no symbolic first dimension"]
    assert findings.curve.samples() > 0, "it is warmed up all the same"


@pytest.mark.parametrize("name", ["state", "scalar input", "fixed first dimension"])
def test_a_declared_batch_that_the_shapes_rule_out_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="whose first dimension is no batch"):
        probe(tmp_path, NO_BATCH[name](), max_batch_size=8)


def test_a_declared_batch_is_respected(tmp_path: Path) -> None:
    assert probe(tmp_path, ROWS_APART["add"], max_batch_size=7).max_batch_size == 7
    assert probe(tmp_path, ROWS_APART["add"], max_batch_size=0).max_batch_size == 0
    assert probe(tmp_path, ROWS_MIXED["softmax over rows"], max_batch_size=1).max_batch_size == 1
    assert probe(tmp_path, two_symbols(), max_batch_size=4).max_batch_size == 4


def test_answers_for_some_rows_only_are_no_batch(tmp_path: Path) -> None:
    nodes = [
        node("ReduceSum", ["x", "a"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["chosen"]),
        node("Compress", ["x", "chosen"], ["y"], axis=0),
    ]
    zero = h.make_tensor("zero", FLOAT, [], [0.0])
    findings = probe(tmp_path, unary(nodes, ["N", 4], [ints("a", 1), zero]))
    assert findings.max_batch_size == 0
    assert "one row for each row" in findings.notes[0]


def random_model() -> bytes:
    return unary([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], ["N", 4])


def test_random_answers_are_batched_only_where_that_is_declared(tmp_path: Path) -> None:
    findings = probe(tmp_path, random_model())
    assert findings.max_batch_size == 0
    assert "the same input gives different answers" in findings.notes[0]
    declared = probe(tmp_path, random_model(), max_batch_size=4)
    assert declared.max_batch_size == 4
    assert "as max_batch_size says" in declared.notes[0]


def picky() -> bytes:
    """Takes only rows of 5 values, and does not say so."""
    return model_bytes(
        [node("MatMul", ["x", "w"], ["y"])],
        [info("x", FLOAT, ["N", "anything"])],
        [info("y", FLOAT, ["N", 1])],
        [h.make_tensor("w", FLOAT, [5, 1], [1.0] * 5)],
    )


def test_a_model_that_takes_no_made_up_input(tmp_path: Path) -> None:
    findings = probe(tmp_path, picky())
    assert findings.max_batch_size == 0
    assert "made-up rows do not run; set max_batch_size in model.yaml" in findings.notes[0]
    assert findings.notes[1] == "not warmed up: made-up input does not run"
    declared = probe(tmp_path, picky(), max_batch_size=8)
    assert declared.max_batch_size == 8


# --- warm-up


class Recording(Model):
    """Keeps what it was given."""

    inputs = (TensorSpec("x", DATATYPES["FP32"], (-1, 2)),)
    outputs = (TensorSpec("y", DATATYPES["FP32"], (-1, 2)),)
    batch_dimension = True

    def __init__(self) -> None:
        self.calls: list[Mapping[str, Array]] = []

    def infer(self, inputs: Any, outputs: Any, parameters: Any) -> Mapping[str, Array]:
        self.calls.append(dict(inputs))
        return {"y": next(iter(inputs.values()))}


def warm(folder: Path, given: WarmupInput, **more: Any) -> list[Mapping[str, Array]]:
    model = Recording()
    settings = ModelSettings(
        max_batch_size=0, warmup=(WarmupSettings(inputs={"x": given}, **more),)
    )
    examine(model, settings, DEFAULT, folder)
    return model.calls


def test_warm_up_runs_as_declared(tmp_path: Path) -> None:
    calls = warm(tmp_path, WarmupInput(datatype="FP32", dims=(2,), source="zero"), count=3)
    assert len(calls) == 3
    np.testing.assert_array_equal(calls[0]["x"], np.zeros((1, 2), np.float32))
    (call,) = warm(tmp_path, WarmupInput(datatype="INT64", dims=(2,)), batch_size=5)
    assert call["x"].shape == (5, 2)
    (call,) = warm(tmp_path, WarmupInput(datatype="BYTES", dims=(3,)), batch_size=0)
    assert call["x"].shape == (3,)


def test_warm_up_takes_values_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    values = np.array([[1, 2], [3, 4]], np.float32)
    (tmp_path / "warmup" / "x.bin").write_bytes(values.tobytes())
    given = WarmupInput(datatype="FP32", dims=(2,), file="x.bin")
    (call,) = warm(tmp_path, given, batch_size=2)
    np.testing.assert_array_equal(call["x"], values)
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"a", b"bcd"))
    (tmp_path / "warmup" / "t.bin").write_bytes(texts)
    (call,) = warm(tmp_path, WarmupInput(datatype="BYTES", dims=(2,), file="t.bin"))
    assert call["x"].tolist() == [[b"a", b"bcd"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (WarmupInput(datatype="FP32", dims=(2,), file="no.bin"), "No such file"),
        (WarmupInput(datatype="FP32", dims=(2,), file="../1/model.onnx"), "leaves the model's"),
        (WarmupInput(datatype="FP32", dims=(3,), file="x.bin"), "has 8 bytes"),
        (WarmupInput(datatype="BYTES", dims=(2,), file="x.bin"), "BYTES"),
        (WarmupInput(datatype="FP32", dims=(-1,)), "must all be sizes"),
    ],
)
def test_a_warm_up_that_cannot_be_is_a_failed_load(
    given: WarmupInput, message: str, tmp_path: Path
) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "x.bin").write_bytes(b"\xff" * 8)
    with pytest.raises(SluiceError, match=message):
        warm(tmp_path, given)


def test_a_warm_up_that_the_model_refuses_is_a_failed_load(tmp_path: Path) -> None:
    given = WarmupInput(datatype="FP32", dims=(4,))
    settings = {"warmup": (WarmupSettings(name="w", inputs={"z": given}),)}
    with pytest.raises(ModelLoadError, match="warm-up 'w' failed"):
        probe(tmp_path, ROWS_APART["add"], **settings)


def test_an_expensive_model_is_not_run_at_its_largest_batch(tmp_path: Path) -> None:
    class Slow(Recording):
        def infer(self, inputs: Any, outputs: Any, parameters: Any) -> Mapping[str, Array]:
            import time

            time.sleep(0.03 * len(inputs["x"]))
            return super().infer(inputs, outputs, parameters)

    model = Slow()
    examine(model, ModelSettings(max_batch_size=64), DEFAULT, tmp_path)
    assert max(len(call["x"]) for call in model.calls) == 8
