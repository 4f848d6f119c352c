"""MLflow's scoring protocol: what each value becomes, and what is said of those that do not fit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gateway.codecs.invocations import decode_invocations, parse_invocations
from gateway.codecs.invocations_answer import encode_predictions, mlflow_error
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    QueueFull,
    UnknownModel,
    Unsupported,
)
from gateway.tensors import (
    DATATYPES,
    InferenceRequest,
    InferenceResponse,
    Shape,
    Tensor,
    TensorSpec,
    objects,
)

LIMITS = LimitsConfig()


def spec(name: str, kind: str, shape: Shape, content: str = "", *, optional: bool = False) -> Any:
    return TensorSpec(name, DATATYPES[kind], shape, content=content, optional=optional)


def column(name: str, kind: str, content: str = "column", *, optional: bool = False) -> Any:
    return spec(name, kind, (-1, 1), content, optional=optional)


def decode(body: Any, *inputs: Any, media_type: str = "application/json") -> InferenceRequest:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    payload = parse_invocations(text, media_type, LIMITS)
    return decode_invocations("m", "", payload, Contract(inputs, (), batched=True))


def values(request: InferenceRequest) -> dict[str, Any]:
    return {t.name: t.array.tolist() for t in request.inputs}


def frame(*rows: list[Any], names: Any = ("a",)) -> Any:
    return {"dataframe_split": {"columns": list(names), "data": list(rows)}}


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("INT8", -128, -128),
        ("UINT64", 2**64 - 1, 2**64 - 1),
        ("INT64", 3.0, 3),
        ("FP64", 3, 3.0),
        ("FP32", 3.4028234663852886e38, 3.4028234663852886e38),
        ("BOOL", True, True),
        ("BYTES", "ü", "ü".encode()),
        ("BYTES", "", b""),
    ],
)
def test_values_that_fit(kind: str, value: Any, expected: Any) -> None:
    request = decode(frame([value]), column("a", kind))
    assert values(request) == {"a": [[expected]]}


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("INT8", 128, "-128 to 127"),
        ("UINT8", -1, "0 to 255"),
        ("INT64", 2**63, "row 1: 9223372036854775808"),
        ("INT64", 2**70, "is no INT64"),
        ("INT64", 1.5, "row 1: 1.5 (a number) is no INT64"),
        ("INT64", True, "true (a boolean)"),
        ("INT64", None, "null"),
        ("INT64", "1", '"1" (a string)'),
        ("INT64", [1], "[1] (a list)"),
        ("FP32", 1e39, "out of range"),
        ("FP16", 1e6, "out of range"),
        ("FP64", False, "false (a boolean)"),
        ("FP64", "1.0", '"1.0" (a string)'),
        ("FP64", {"x": 1}, "an object"),
        ("BOOL", 1, "1 (an integer)"),
        ("BYTES", 1, "send text"),
        ("BYTES", None, "null"),
    ],
)
def test_values_that_do_not_fit(kind: str, value: Any, said: str) -> None:
    good = {"BOOL": True, "BYTES": "x"}.get(kind, 1)
    with pytest.raises(InvalidRequest) as caught:
        decode(frame([good], [value]), column("a", kind))
    assert "column 'a', row 1" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_numbers_are_nan() -> None:
    body = b'{"dataframe_records": [{"a": NaN}, {"a": null}, {"a": -Infinity}, {}]}'
    array = decode(body, column("a", "FP32")).inputs[0].array
    assert np.isnan(array[[0, 1, 3]]).all() and array[2] == -np.inf


def test_python_json_is_read_as_strictly_as_other_json() -> None:
    for body, said in (
        (b'{"inputs": [NaN], "inputs": [1]}', "same key twice"),
        (b'{"inputs": ' + b"[" * 100 + b"NaN" + b"]" * 100 + b"}", "nested deeper"),
        (b'{"inputs": ' + b"[" * 200_000 + b"NaN", "nested deeper"),
        (b"[NaN]", "must be a JSON object"),
        (b'{"inputs": [NaN}', "not JSON"),
        (b'{"inputs": [NaN], "\xff": 1}', "not JSON"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            decode(body, column("a", "FP64"))


def test_binary_and_json_columns() -> None:
    binary = decode(frame(["aGVsbG8="]), column("a", "BYTES", "binary"))
    assert values(binary) == {"a": [[b"hello"]]}
    with pytest.raises(InvalidRequest, match="base64"):
        decode(frame(["ä"]), column("a", "BYTES", "binary"))
    nested = decode(frame([[1, {"x": None}]], ["s"]), column("a", "BYTES", "json"))
    assert values(nested) == {"a": [[b'[1,{"x":null}]'], [b'"s"']]}


def test_tensors_by_name_and_flat_rows() -> None:
    image = spec("x", "FP32", (-1, 2, 2))
    flat = decode({"inputs": [[1, 2, 3, 4]]}, image)
    nested = decode({"inputs": {"x": [[[1, 2], [3, 4]]]}}, image)
    assert values(flat) == values(nested) == {"x": [[[1.0, 2.0], [3.0, 4.0]]]}
    assert flat.signature == nested.signature
    assert values(decode({"inputs": 5}, spec("x", "INT32", (-1,)))) == {"x": [5]}
    assert values(decode(frame([1], [2], names="x"), spec("x", "INT32", (-1, 1)))) == {
        "x": [[1], [2]]
    }


def test_unnamed_columns_go_by_place() -> None:
    inputs = column("input-0", "FP64"), column("input-1", "BYTES")
    body = {"dataframe_split": {"data": [[1, "x"], [2, "y"]]}}
    assert values(decode(body, *inputs)) == {
        "input-0": [[1.0], [2.0]],
        "input-1": [[b"x"], [b"y"]],
    }
    with pytest.raises(InvalidRequest, match="missing"):
        decode({"dataframe_split": {"data": [[1]]}}, *inputs)


def test_optional_columns_may_be_left_out() -> None:
    inputs = column("a", "FP64"), column("b", "FP64", optional=True)
    assert values(decode({"inputs": {"a": [1]}}, *inputs)) == {"a": [[1.0]]}
    assert values(decode({"inputs": [{"a": 1}, {"a": 2, "b": 3}]}, *inputs))["b"][1] == [3.0]


def test_rows_without_columns_are_none() -> None:
    for body in (
        {"dataframe_records": [{}, {}]},
        {"inputs": [{}]},
        {"dataframe_split": {"data": []}},
    ):
        with pytest.raises(InvalidRequest, match="0 rows"):
            decode(body, spec("x", "FP32", (-1, 2), optional=True))


def test_missing_and_twice_given_columns() -> None:
    inputs = column("a", "FP64"), column("b", "FP64")
    with pytest.raises(InvalidRequest, match=r"column is missing: 'b'.*the request has: a, z"):
        decode(frame([1, 2], names="az"), *inputs)
    with pytest.raises(InvalidRequest, match="'a' is there twice"):
        decode(frame([1, 2], names="aa"), *inputs)
    with pytest.raises(InvalidRequest, match="row 1 has 1 values"):
        decode(frame([1, 2], [1], names="ab"), *inputs)
    with pytest.raises(InvalidRequest, match="several inputs"):
        decode({"inputs": [[1, 2]]}, *inputs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a,a\n1,2\n", "twice"),
        (b"a\n1\n2,3\n", "line 3"),
        (b'a\n"1\n', "line"),
        (b'a\n"1"2\n', "line 2"),
        (b"a\n\xff\n", "not UTF-8"),
        (b"a\n1_000\n", "is no FP64"),
        (b"a\n0x10\n", "is no FP64"),
        (b"a\n", "0 rows"),
        (b"\n\n", "empty"),
    ],
)
def test_bad_csv(text: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        decode(text, column("a", "FP64"), media_type="text/csv")


def test_csv_cells_are_what_the_model_declares() -> None:
    text = '\ufefff,i,b,s\r\n 1.5e3 ,7,true,NA\r\n\r\nNA,3.0,False,"a""b"\r\n'.encode()
    inputs = (
        column("f", "FP64"), column("i", "INT32"), column("b", "BOOL"), column("s", "BYTES"),
    )  # fmt: skip
    found = values(decode(text, *inputs, media_type="text/csv"))
    assert found["f"][0] == [1500.0] and np.isnan(found["f"][1][0])
    assert found["i"] == [[7], [3]] and found["b"] == [[True], [False]]
    assert found["s"] == [[b"NA"], [b'a"b']]


def test_params() -> None:
    body = {"inputs": [1], "params": {"n": 3, "t": 0.5, "l": [1, 2], "none": None}}
    request = decode(body, spec("x", "INT32", (-1,)))
    assert request.parameters == {"n": 3, "t": 0.5, "l": "[1,2]"}
    for params, said in (({"timeout": 3}, "'timeout'"), ([1], "must be an object")):
        with pytest.raises(InvalidRequest, match=said):
            decode({"inputs": [1], "params": params}, spec("x", "INT32", (-1,)))


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'parameters' beside 'inputs'"):
        decode({"inputs": [1], "parameters": {}}, spec("x", "INT32", (-1,)))
    with pytest.raises(InvalidRequest, match="not 'rows'"):
        decode({"dataframe_split": {"data": [], "rows": []}}, spec("x", "INT32", (-1,)))


def answer(*tensors: tuple[Any, Any]) -> Any:
    outputs = [
        Tensor(
            s.name, s.datatype, np.shape(a),
            array=objects(list(np.ravel(a)), np.shape(a)) if s.datatype is DATATYPES["BYTES"]
            else np.array(a, s.datatype.dtype),
        )
        for s, a in tensors
    ]  # fmt: skip
    content = encode_predictions(InferenceResponse("m", "1", outputs), [s for s, _ in tensors])
    return json.loads(content)["predictions"]


def test_answers() -> None:
    assert answer((spec("output-0", "FP32", (-1, 2)), [[1, np.nan]])) == [[1.0, None]]
    assert answer((column("output-0", "INT64"), [[1], [2]])) == [1, 2]
    assert answer((spec("y", "FP32", (-1, 1)), [[1]])) == {"y": [[1.0]]}
    assert answer((spec("y", "BYTES", (-1,)), [b"\xc3\xbc"])) == {"y": ["ü"]}
    rows = answer((column("a", "INT64"), [[1], [2]]), (column("b", "BYTES"), [[b"x"], [b"y"]]))
    assert rows == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert answer((column("b", "BYTES", "binary"), [[b"hello"]])) == [{"b": "aGVsbG8="}]
    assert answer((column("j", "BYTES", "json"), [[b'{"x": [1]}']])) == [{"j": {"x": [1]}}]


def test_answers_that_json_cannot_say() -> None:
    with pytest.raises(Unsupported, match="not UTF-8"):
        answer((spec("y", "BYTES", (-1,)), [b"\xff"]))
    with pytest.raises(InferenceFailed, match="should hold JSON"):
        answer((column("j", "BYTES", "json"), [[b"{"]]))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("x"), 400, "BAD_REQUEST"),
        (UnknownModel("x"), 404, "RESOURCE_DOES_NOT_EXIST"),
        (QueueFull("x"), 429, "REQUEST_LIMIT_EXCEEDED"),
        (DeadlineExceeded("x"), 504, "DEADLINE_EXCEEDED"),
        (InferenceFailed("x"), 500, "INTERNAL_ERROR"),
    ],
)
def test_errors_as_mlflow_clients_read_them(error: Any, status: int, code: str) -> None:
    body, found = mlflow_error(error)
    assert found == status
    assert json.loads(body) == {"error_code": code, "message": str(error)}
