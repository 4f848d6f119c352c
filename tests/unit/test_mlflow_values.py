"""Values between tensors and what python_function models take and give."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InferenceFailed, InvalidInput
from gateway.tensors import objects
from runtimes.mlflow_signature import Field, Param, fields_of
from runtimes.mlflow_values import column, params, tensor, values_of


def fields(*specs: dict[str, Any]) -> tuple[Field, ...]:
    return fields_of(list(specs), "output")


def col(kind: str, name: str | None = None) -> dict[str, Any]:
    return {"type": kind, **({} if name is None else {"name": name})}


def ten(dtype: str, *shape: int, name: str | None = None) -> dict[str, Any]:
    return {**col("tensor", name), "tensor-spec": {"dtype": dtype, "shape": list(shape)}}


def texts(*values: bytes) -> Any:
    return objects(values, (len(values), 1))


# --- in


def test_columns() -> None:
    [number, text, raw, time, anything] = fields(
        *(col(kind, kind) for kind in ("double", "string", "binary", "datetime", "any"))
    )
    given_ = np.array([[1.5], [2.5]])
    given_.flags.writeable = False
    made = column(number, given_)
    assert made.tolist() == [1.5, 2.5] and made.flags.writeable
    assert column(text, texts(b"a", "é".encode())) == ["a", "é"]
    assert column(raw, texts(b"\xff", b"")) == [b"\xff", b""]
    assert column(anything, texts(b'{"a": [1]}', b"null")) == [{"a": [1]}, None]
    written = [b"2024-02-29T12:30:00Z", b"2024-02-29", b"2024-02-29T12:30+02:00", b"20240229"]
    noon = np.datetime64("2024-02-29T00:00", "ns")
    minutes = [12 * 60 + 30, 0, 10 * 60 + 30, 0]
    expected = [noon + np.timedelta64(m, "m") for m in minutes]
    assert column(time, texts(*written)).tolist() == [
        int(each.astype("int64")) for each in expected
    ]
    exact = column(time, texts(b"2024-02-29T12:30:00.123456789"))
    assert str(exact[0]) == "2024-02-29T12:30:00.123456789"


@pytest.mark.parametrize(
    ("kind", "value", "cause"),
    [
        ("string", b"\xff", "input 'c': element 0 is not UTF-8"),
        ("any", b"{", "input 'c': element 0 is not JSON: '{'"),
        ("any", b"[" * 100_000, "is not JSON"),
        ("datetime", b"yesterday", "is not a time such as 2024-02-29T12:30:00"),
        ("datetime", b"2024-02-30", "is not a time"),
        ("datetime", b"99999999-01-01", "is not a time"),
        ("datetime", b"9999-01-01", "is not a time"),
        ("datetime", b"now", "is not a time"),
    ],
)
def test_bad_columns(kind: str, value: bytes, cause: str) -> None:
    [field] = fields(col(kind, "c"))
    with pytest.raises(InvalidInput, match=cause):
        column(field, texts(value))


def test_tensors() -> None:
    shape = (2, 1)
    assert tensor(fields(ten("float32", -1, 1))[0], np.ones(shape, np.float32)).dtype == np.float32
    assert tensor(fields(ten("str", -1, 1))[0], texts(b"a", b"bc")).dtype == np.dtype("<U2")
    assert tensor(fields(ten("S2", -1, 1))[0], texts(b"a", b"bc")).dtype == np.dtype("S2")
    made = tensor(fields(ten("object", -1, 1))[0], texts(b"a", b"bc"))
    assert made.dtype == object and made.tolist() == [["a"], ["bc"]]
    big = tensor(fields(ten(">f4", -1, 1))[0], np.ones(shape, np.float32))
    assert big.tolist() == [[1], [1]]
    with pytest.raises(InvalidInput, match="not UTF-8"):
        tensor(fields(ten("str", -1, 1))[0], texts(b"\xff"))


def test_params() -> None:
    known = (Param("k", "double", False), Param("n", "long", False), Param("s", "string", True))
    given_ = {"k": 2, "n": 3, "s": '["a", "b"]', "other": 1}
    found = params(known, given_)
    assert found == {"k": 2.0, "n": 3, "s": ["a", "b"]} and type(found["k"]) is float
    assert params(known, {}) == {}
    with pytest.raises(InvalidInput, match="parameter 's' is not JSON: '\\['"):
        params(known, {"s": "["})


# --- out

ABC = fields(col("double", "a"), col("string", "b"))
FRAME = pd.DataFrame({"b": ["x", None], "c": [0, 0], "a": [1, 2]})


@pytest.mark.parametrize(
    "result",
    [
        FRAME,
        FRAME.to_dict("list"),
        FRAME.to_dict("records"),
        {"a": np.array([[1], [2]]), "b": np.array([["x"], [None]], object)},
        {"a": pd.Series([1, 2]), "b": pd.Series(["x", None])},
        [[1, 2], ["x", None]],
        (np.array([1, 2]), np.array(["x", None], object)),
        np.array([[1, "x"], [2, None]], object),
        pd.DataFrame(np.array([[1, "x"], [2, None]], object)),
    ],
)
def test_two_columns(result: Any) -> None:
    found = values_of(ABC, result)
    assert found["a"].dtype == np.float64 and found["a"].tolist() == [[1.0], [2.0]]
    assert found["b"].tolist() == [[b"x"], [b""]]


@pytest.mark.parametrize(
    ("spec", "result", "expected"),
    [
        (ten("int64", -1), np.array([1, 2]), [1, 2]),
        (ten("int64", -1), pd.Series([1, 2]), [1, 2]),
        (ten("int64", -1), [1, 2], [1, 2]),
        (ten("int64", -1), 5, [5]),
        (ten("int64", -1), np.array([[1], [2]]), [1, 2]),
        (ten("int64", -1, 1), np.array([1, 2]), [[1], [2]]),
        (ten("int64", -1), {"anything": [1]}, [1]),
        (ten("float32", -1, 2), pd.DataFrame({"p": [0.5], "q": [1]}), [[0.5, 1.0]]),
        (ten("float32", -1), np.array([0.5]), [0.5]),
        (ten("float32", -1, name="y"), {"y": [1, 2], "z": [3]}, [1.0, 2.0]),
        (ten("str", -1), ["a", "b"], [b"a", b"b"]),
        (ten("object", -1), np.array(["a", 1], object), [b"a", b"1"]),
        (col("string"), "one answer", [[b"one answer"]]),
        (col("string"), ["a", "b"], [[b"a"], [b"b"]]),
        (col("binary"), [b"\xff"], [[b"\xff"]]),
        (col("long"), pd.DataFrame({"p": [1, 2]}), [[1], [2]]),
        (col("object"), [{"a": np.int64(1)}], [[b'{"a": 1}']]),
        (col("object"), {"a": [1]}, [[b'{"a": [1]}']]),
        (col("array"), np.array([[1, 2], [3, 4]]), [[b"[1, 2]"], [b"[3, 4]"]]),
        (
            col("datetime"),
            pd.Series(pd.to_datetime(["2024-02-29T12:30"])),
            [[b"2024-02-29T12:30:00.000000000"]],
        ),
        (col("any"), [datetime.date(2024, 2, 29)], [[b'"2024-02-29"']]),
        (ten("int64", -1), [], []),
    ],
)
def test_one_output(spec: dict[str, Any], result: Any, expected: Any) -> None:
    [(name, array)] = values_of(fields(spec), result).items()
    assert name in ("output-0", "y") and array.tolist() == expected


def test_sparse_matrices() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    found = values_of(fields(ten("float64", -1, 2)), sparse.csr_matrix([[0, 1], [2, 0]]))
    assert found["output-0"].tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("result", "cause"),
    [
        ({"a": [1]}, "the model gave no output 'b'; it gave: a"),
        ([[1], ["x"], [3]], "the model gave 3 outputs, but its signature has 2"),
        (7, "the model gave a int, but its signature has 2 outputs"),
        ({"a": ["x"], "b": ["x"]}, "output 'a' came as list, but the signature says FP64"),
        ({"a": [[1, 2]], "b": ["x"]}, r"output 'a' came with shape \[1, 2\]"),
        ({"a": [1 + 2j], "b": ["x"]}, "output 'a' came as list"),
    ],
)
def test_bad_results(result: Any, cause: str) -> None:
    with pytest.raises(InferenceFailed, match=cause):
        values_of(ABC, result)


def test_floats_are_no_integers() -> None:
    with pytest.raises(InferenceFailed, match="came as float64, but the signature says INT64"):
        values_of(fields(ten("int64", -1)), np.array([1.5]))
    with pytest.raises(InferenceFailed, match="cannot be written as JSON: a object"):
        values_of(fields(col("any")), [object()])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_result_is_an_answer_or_refused(result: Any) -> None:
    for spec in (col("double", "a"), col("string", "a"), ten("int64", -1), col("any")):
        try:
            [array] = values_of(fields(spec), result).values()
        except InferenceFailed:
            continue
        if spec["type"] == "any":
            for element in array.ravel().tolist():
                json.loads(element)
