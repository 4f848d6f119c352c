"""MLflow's scoring protocol against pandas: every way of sending a frame says the same."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs import invocations_frame, invocations_values
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


# --- the short way against the one that looks at every value

EDGES = st.sampled_from(
    [0, -1, 127, 128, 255, 256, 2**31, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63) - 1,
     1.0, 1.5, -0.0, 65504.0, 65520.0, 3.4028234e38, 3.4028236e38, 1e39, 1e308,
     float("nan"), float("inf"), float("-inf"), 5e-324, 1e-46,
     True, False, None, "", "x", "ü", "1", "1e3", "aGVsbG8=", [], [1], {}, {"a": 1}]
)  # fmt: skip
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int": st.integers(-128, 300),
    "float": st.integers(-5, 5) | st.floats(width=32),
    "bytes": TEXT,
}
WRITTEN = st.sampled_from(
    ["1", " 2", "3 ", "+4", "-5", "007", "1_000", "0x1", "1" * 45, "2.0", "2.5", ".5", "6.",
     "1e3", "1e400", "-1e39", "inf", "-Infinity", "nan", "NaN", "NA", "", "true", "FALSE", "x",
     "1 2", "\u0661", "e", "--1", "1e", "ü"]
)  # fmt: skip
SHAPES = st.sampled_from([(-1,), (-1, 1), (-1, 2), (-1, -1), (-1, 2, 2), (2, 2), ()])
CONTENTS = st.sampled_from(["", "", "column", "binary", "datetime", "json"])


@st.composite
def contracts(draw: st.DrawFn) -> list[TensorSpec]:
    names = draw(st.sampled_from([("a",), ("input-0",), ("a", "b"), ("input-0", "input-1")]))
    kinds = [DATATYPES[draw(st.sampled_from(sorted(DATATYPES)))] for _ in names]
    return [
        TensorSpec(
            name,
            kind,
            draw(SHAPES),
            content=draw(CONTENTS)
            if kind.kind == "bytes"
            else draw(st.sampled_from("  c")).strip(),
            optional=draw(st.booleans()),
        )
        for name, kind in zip(names, kinds, strict=True)
    ]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, list[TensorSpec], str]:
    """A body that fits a model, nearly, or not at all."""
    specs = draw(contracts())
    count = draw(st.integers(0, 3))
    odd = draw(st.integers(0, 9)) == 0

    def cell(spec: TensorSpec) -> Any:
        likely = LIKELY[spec.datatype.kind]
        return draw(EDGES | likely if odd else likely)

    def inner(spec: TensorSpec) -> Any:
        size = draw(st.sampled_from([0, 1, 2, 4]))
        if size == 0:
            return cell(spec)
        flat = [cell(spec) for _ in range(size)]
        return [flat[:2], flat[2:]] if size == 4 and draw(st.booleans()) else flat

    names = [spec.name for spec in specs]
    if draw(st.booleans()):
        names = draw(
            st.sampled_from([names, [*names, "more"], names[:-1], names[::-1], ["p", "q"]])
        )
    by_name = {spec.name: spec for spec in specs}
    some = [by_name.get(name, specs[0]) for name in names]
    form = draw(
        st.sampled_from(["split", "unnamed", "records", "instances", "named", "rows", "csv"])
    )
    value = draw(st.sampled_from([cell, cell, inner]))
    if form == "csv":
        rows = [names] + [[draw(WRITTEN) for _ in names] for _ in range(count)]
        return "\n".join(map(",".join, rows)).encode(), specs, "text/csv"
    rows = [[value(spec) for spec in some] for _ in range(count)]
    tree: Any
    if form == "split":
        tree = {"dataframe_split": {"columns": names, "data": rows}}
    elif form == "unnamed":
        tree = {"dataframe_split": {"data": rows}}
    elif form in ("records", "instances"):
        records = [dict(zip(names, row, strict=True)) for row in rows]
        if len(records) > 1 and odd:
            records[1].pop(names[0], None) if names else None
        tree = {"dataframe_records" if form == "records" else "instances": records}
    elif form == "named":
        tree = {"inputs": {n: [row[k] for row in rows] for k, n in enumerate(names)}}
    else:
        tree = {"inputs": [inner(specs[0]) for _ in range(count)]}
    return json.dumps(tree).encode(), specs, "application/json"


def outcome(body: bytes, specs: list[TensorSpec], media_type: str) -> Any:
    """Everything that a request says, byte by byte; or the error."""
    try:
        request = decoded(body, specs, media_type)
    except InvalidRequest as error:
        return type(error), str(error)
    request.check_data()
    tensors = [
        (
            t.name,
            t.datatype.name,
            t.shape,
            t.array.dtype,
            bytes(t.data),
            t.array.tolist().__repr__(),
        )
        for t in request.inputs
    ]
    return tensors, request.signature, request.rows, request.parameters


@settings(max_examples=200)
@given(bodies())
def test_both_ways_say_the_same(drawn: tuple[bytes, list[TensorSpec], str]) -> None:
    short = outcome(*drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(invocations_values, "plain_tensor", lambda *args, **kwargs: None)
        patch.setattr(invocations_frame, "all_lists", lambda *args: False)
        assert outcome(*drawn) == short


def test_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*args: Any) -> Any:
        raise AssertionError("every value is looked at")

    monkeypatch.setattr(invocations_values, "array_of", looked)
    specs = [TensorSpec(n, DATATYPES[k], (-1, 1), content="column") for n, k in COLUMNS.items()]
    row = {"a": 1.5, "b": 2, "c": "x", "d": True}
    decoded(json.dumps({"dataframe_records": [row] * 300}).encode(), specs, "application/json")
    decoded(b"a,b,c\n1.5,2,x\n", specs[:3], "text/csv")
    image = [TensorSpec("x", DATATYPES["FP32"], (-1, 2, 2))]
    decoded(b'{"inputs": [[[1, 2], [3, 4]], [[1, 2], [3, 4.5]]]}', image, "application/json")


COLUMNS = {"a": "FP64", "b": "INT32", "c": "BYTES", "d": "BOOL"}
