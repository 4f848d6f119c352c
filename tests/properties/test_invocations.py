"""MLflow's scoring protocol against pandas: every way of sending a frame says the same."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from gateway.codecs.invocations import decode_invocations, parse_invocations
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.deployments.payload import payload_of
from gateway.errors import InvalidRequest
from gateway.tensors import DATATYPES, InferenceRequest, TensorSpec

LIMITS = LimitsConfig()
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
CELLS: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "FP64": ("float64", st.floats(width=64) | st.none()),
    "FP32": ("float32", st.floats(width=32)),
    "INT64": ("int64", st.integers(-(2**63), 2**63 - 1)),
    "INT32": ("int32", st.integers(-(2**31), 2**31 - 1)),
    "BOOL": ("bool", st.booleans()),
    "BYTES": ("object", TEXT),
}


@st.composite
def frames(draw: st.DrawFn) -> tuple[list[TensorSpec], pd.DataFrame, list[list[Any]]]:
    """Columns, the DataFrame that pandas makes of them, and the plain rows."""
    names = draw(st.lists(TEXT.filter(str.strip), min_size=1, max_size=4, unique=True))
    kinds = [draw(st.sampled_from(sorted(CELLS))) for _ in names]
    count = draw(st.integers(1, 5))
    rows = [[draw(CELLS[kind][1]) for kind in kinds] for _ in range(count)]
    data = {
        name: pd.Series([row[n] for row in rows], dtype=CELLS[kinds[n]][0])
        for n, name in enumerate(names)
    }
    specs = [
        TensorSpec(name, DATATYPES[kind], (-1, 1), content="column")
        for name, kind in zip(names, kinds, strict=True)
    ]
    return specs, pd.DataFrame(data), rows


def decoded(body: bytes, specs: list[TensorSpec], media_type: str) -> InferenceRequest:
    payload = parse_invocations(body, media_type, LIMITS)
    return decode_invocations("m", "", payload, Contract(specs, (), batched=True))


def check(request: InferenceRequest, frame: pd.DataFrame) -> None:
    """The tensors hold exactly what pandas has."""
    assert [t.name for t in request.inputs] == list(frame.columns)
    for tensor in request.inputs:
        assert tensor.shape == (len(frame), 1)
        expected = frame[tensor.name].to_numpy()
        found = tensor.array.reshape(-1)
        if tensor.datatype.name == "BYTES":
            assert [each.decode() for each in found] == list(expected)
        else:
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


@given(frames(), st.randoms())
def test_every_json_form_says_what_pandas_has(
    drawn: tuple[list[TensorSpec], pd.DataFrame, list[list[Any]]], random: Any
) -> None:
    specs, frame, rows = drawn
    names = list(frame.columns)
    records = [dict(zip(names, row, strict=True)) for row in rows]
    columns = {name: [row[n] for row in rows] for n, name in enumerate(names)}
    order = random.sample(range(len(names)), len(names))
    split = {"columns": [names[n] for n in order], "data": [[r[n] for n in order] for r in rows]}
    for tree in (
        {"dataframe_split": split},
        {"dataframe_records": records},
        {"instances": records},
        {"inputs": records},
        {"inputs": columns},
    ):
        check(decoded(json.dumps(tree).encode(), specs, "application/json"), frame)
    # What MLflow's deployment client sends.
    check(decoded(payload_of(frame), specs, "application/json"), frame)


@given(frames())
def test_csv_says_what_pandas_has(
    drawn: tuple[list[TensorSpec], pd.DataFrame, list[list[Any]]],
) -> None:
    specs, frame, _ = drawn
    text = frame.to_csv(index=True, quoting=2)  # with the index, as many people send it
    check(decoded(text.encode(), specs, "text/csv"), frame)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXT, each, max_size=3),
    max_leaves=12,
)
FORMATS = st.sampled_from(
    ["dataframe_split", "dataframe_records", "instances", "inputs", "params", "x"]
)
SPECS = [
    [TensorSpec("x", DATATYPES["FP32"], (-1, 2))],
    [TensorSpec("a", DATATYPES["INT64"], (-1, 1), content="column")],
    [TensorSpec("input-0", DATATYPES["BYTES"], (-1, 1), content="json")],
    [TensorSpec(n, DATATYPES["BOOL"], (-1,)) for n in "ab"],
]


@given(st.dictionaries(FORMATS, JSON, max_size=3), st.sampled_from(SPECS))
def test_any_json_is_read_or_refused(tree: Any, specs: list[TensorSpec]) -> None:
    try:
        request = decoded(json.dumps(tree).encode(), specs, "application/json")
    except InvalidRequest as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        request.check_data()
        assert {t.name for t in request.inputs} <= {spec.name for spec in specs}


@given(st.binary(max_size=80) | TEXT.map(str.encode), st.sampled_from(SPECS))
def test_any_bytes_are_read_or_refused(body: bytes, specs: list[TensorSpec]) -> None:
    for media_type in ("application/json", "text/csv"):
        try:
            decoded(body, specs, media_type)
        except InvalidRequest as error:
            assert str(error)
