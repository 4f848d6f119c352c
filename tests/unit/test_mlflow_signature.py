"""Signatures of MLflow models as tensors of the protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings, TensorSettings
from runtimes.mlflow_signature import COLUMNS, fields_of, read_signature

NONE = ModelSettings()


def column(kind: str, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"type": kind, **({} if name is None else {"name": name}), **more}


def tensor(dtype: object, shape: object, name: str | None = None) -> dict[str, Any]:
    return column("tensor", name, **{"tensor-spec": {"dtype": dtype, "shape": shape}})


def signature(inputs: Any, outputs: Any, settings: ModelSettings = NONE, **more: Any) -> Any:
    raw = {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), **more}
    return read_signature(raw, settings)


def test_every_column_type() -> None:
    every = [column(kind, f"a {kind}") for kind in COLUMNS]
    found = signature(every, every)
    assert [repr(field.spec) for field in found.inputs] == [
        "a boolean BOOL [-1, 1]",
        "a integer INT32 [-1, 1]",
        "a long INT64 [-1, 1]",
        "a float FP32 [-1, 1]",
        "a double FP64 [-1, 1]",
        "a string BYTES [-1, 1]",
        "a binary BYTES [-1, 1]",
        "a datetime BYTES [-1, 1]",
        "a array BYTES [-1, 1]",
        "a object BYTES [-1, 1]",
        "a map BYTES [-1, 1]",
        "a any BYTES [-1, 1]",
    ]
    assert found.columns and not found.params


def test_the_library_agrees_on_the_types() -> None:
    types = pytest.importorskip("mlflow.types.schema")
    for each in types.DataType:
        [field] = fields_of([types.ColSpec(each, "c").to_dict()], "input")
        if field.datatype.name != "BYTES":
            assert field.datatype.dtype == each.to_numpy()


def test_names_and_options() -> None:
    found = signature(
        [column("long"), column("double", "b", required=False)],
        [tensor("float32", [-1, 2]), tensor("str", [-1], "t")],
    )
    assert [field.name for field in found.inputs] == ["input-0", "b"]
    assert [spec.optional for spec in (f.spec for f in found.inputs)] == [False, True]
    assert [repr(f.spec) for f in found.outputs] == ["output-0 FP32 [-1, 2]", "t BYTES [-1]"]


def test_tensors_keep_their_shapes() -> None:
    found = signature([tensor("int8", [-1, 3, -1], "x")], [tensor("bool", [], "y")])
    assert not found.columns
    assert [repr(field.spec) for field in found.inputs] == ["x INT8 [-1, 3, -1]"]
    assert [repr(field.spec) for field in found.outputs] == ["y BOOL []"]


def test_params() -> None:
    params = [
        {"name": "k", "type": "double", "default": 1.0, "shape": None},
        {"name": "stop", "type": "string", "default": [], "shape": [-1]},
        {"name": "how", "type": "object", "default": {}},
    ]
    one = [column("long", "a")]
    found = signature(one, one, params=json.dumps(params))
    assert [(p.name, p.kind, p.listed) for p in found.params] == [
        ("k", "double", False),
        ("stop", "string", True),
        ("how", "object", True),
    ]


ONE = [column("long", "a")]


@pytest.mark.parametrize(
    ("inputs", "outputs", "cause"),
    [
        (ONE, None, "no signature of its outputs; save the model with signature=.*infer_signature"),
        (None, ONE, "no signature of its inputs; .* or declare inputs and outputs in model.yaml"),
        (ONE, [], "signature.outputs is empty"),
        ("{", ONE, "signature.inputs must be a JSON list of objects"),
        ([3], ONE, "signature.inputs must be a JSON list of objects"),
        ([column("vector", "a")], ONE, "'a' is of the type 'vector', which .* known: boolean"),
        ([column({"x": 1}, "a")], ONE, "which the inference protocol has no datatype for"),  # type: ignore[arg-type]
        ([*ONE, *ONE], ONE, "has 'a' twice"),
        ([*ONE, tensor("int8", [1], "b")], ONE, "mixes columns and tensors"),
        ([column("tensor", "b")], ONE, "tensor 'b' has no tensor-spec"),
        ([tensor("int8", "x", "b")], ONE, "tensor 'b' has no shape such as"),
        ([tensor("int8", [-2], "b")], ONE, "tensor 'b' has no shape such as"),
        ([tensor("int8", [True], "b")], ONE, "tensor 'b' has no shape such as"),
        ([tensor("int8", [1] * 99, "b")], ONE, "tensor 'b' has no shape such as"),
        ([tensor("complex64", [1], "b")], ONE, "is of the type 'complex64'"),
        ([tensor("datetime64[ns]", [1], "b")], ONE, "is of the type 'datetime64"),
        ([tensor("f4,O", [1], "b")], ONE, "is of the type 'f4,O'"),
        ([tensor(3, [1], "b")], ONE, "is of the type '3'"),
        ([tensor("(", [1], "b")], ONE, "is of the type '\\('"),
        ([column("long", ["a"])], ONE, "the name must be text"),  # type: ignore[arg-type]
    ],
)
def test_bad_signatures(inputs: Any, outputs: Any, cause: str) -> None:
    raw = {
        "inputs": inputs if inputs is None or isinstance(inputs, str) else json.dumps(inputs),
        "outputs": None if outputs is None else json.dumps(outputs),
    }
    with pytest.raises(ModelLoadError, match=cause):
        read_signature(raw, NONE)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["type", "name", "tensor-spec", "dtype", "shape"]), inner
            )
        ),
        max_leaves=10,
    )
)
def test_any_json_is_a_signature_or_refused(content: Any) -> None:
    try:
        fields_of(json.dumps([content]), "input")
    except ModelLoadError as error:
        assert "\n" not in str(error)


# --- declared tensors


def declared(*tensors: TensorSettings, most: int | None = None) -> ModelSettings:
    return ModelSettings(inputs=tensors, outputs=tensors, max_batch_size=most)


def test_declared_ones_stand_for_a_missing_signature() -> None:
    settings = declared(TensorSettings(name="x", datatype="FP32", dims=(3,)), most=8)
    found = read_signature({}, settings)
    assert [repr(field.spec) for field in found.inputs] == ["x FP32 [-1, 3]"]
    frame = ModelSettings(
        inputs=settings.inputs, outputs=settings.outputs, options={"dataframe": True}
    )
    assert read_signature({}, frame).columns
    with pytest.raises(ModelLoadError, match="'dataframe' is for models without a signature"):
        signature(ONE, ONE, ModelSettings(options={"dataframe": True}))


@pytest.mark.parametrize(
    ("tensor", "cause"),
    [
        (TensorSettings(name="b", datatype="INT64", dims=(-1, 1)), "input 'b' is declared, but"),
        (TensorSettings(name="a", datatype="INT32", dims=(-1, 1)), "declared as INT32"),
        (TensorSettings(name="a", datatype="INT64", dims=(-1,)), r"INT64 \[-1\], but the sign"),
        (TensorSettings(name="a", datatype="INT64", dims=(-1, 1), optional=True), "needs it"),
        (TensorSettings(name="a", datatype="INT64", dims=(1,), reshape=(1, 1)), "'reshape'"),
    ],
)
def test_declared_ones_must_agree(tensor: TensorSettings, cause: str) -> None:
    with pytest.raises(ModelLoadError, match=cause):
        signature(ONE, ONE, declared(tensor))


def test_declared_ones_narrow_the_signature() -> None:
    wide = [tensor("float32", [-1, -1], "x")]
    found = signature(wide, wide, declared(TensorSettings(name="x", datatype="FP32", dims=(-1, 4))))
    assert found.inputs[0].shape == (-1, 4)
    two = [column("long", "a"), column("long", "b")]
    one = declared(TensorSettings(name="a", datatype="INT64", dims=(1,)), most=4)
    with pytest.raises(ModelLoadError, match="input 'b' is not declared"):
        signature(two, two, one)
    assert [f.name for f in signature(ONE, two, one).outputs] == ["a"]
