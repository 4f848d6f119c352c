"""JSON frames: a body whose frame is known decodes to what it would have without, or is refused
in the same words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codecs.oip_rest import RestCodec
from gateway.config import LimitsConfig
from gateway.errors import RequestError

KINDS = ("FP32", "FP64", "INT64", "UINT8", "BYTES", "BOOL", "FP16")


def body(data: str, kind: str = "FP32", shape: str = "[1, 2]", tight: bool = False) -> bytes:
    text = (
        f'{{"inputs": [{{"name": "x", "shape": {shape}, "datatype": "{kind}", "data": {data}}}], '
        '"outputs": [{"name": "y"}]}'
    )
    return (text.replace(": ", ":").replace(", ", ",") if tight else text).encode()


def outcome(codec: RestCodec, text: bytes) -> Any:
    """What a body decodes to, in a form that compares; or the refusal."""
    try:
        request, answer = codec.decode("m", "1", text, None)
    except RequestError as error:
        return type(error), str(error)
    tensors = [
        (t.name, t.datatype.name, t.shape, t.array.dtype, t.array.tobytes())
        if t.datatype.name != "BYTES"
        else (t.name, t.shape, t.array.tolist())
        for t in request.inputs
    ]
    return tensors, request.outputs, request.signature, request.parameters, type(answer)


VALUES = st.recursive(
    st.one_of(
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.none(),
        st.text(max_size=8),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(
    kind=st.sampled_from(KINDS), known=st.lists(st.integers(0, 9), min_size=2, max_size=2),
    value=VALUES, tight=st.booleans(),
)  # fmt: skip
def test_a_known_frame_changes_nothing(
    kind: str, known: list[int], value: Any, tight: bool
) -> None:
    first: list[Any] = known
    if kind == "BYTES":
        first = [str(each) for each in known]
    elif kind == "BOOL":
        first = [each > 4 for each in known]
    codec = RestCodec(LimitsConfig())
    codec.decode("m", "1", body(json.dumps(first), kind, tight=tight), None)
    text = body(json.dumps(value), kind, tight=tight)
    assert outcome(codec, text) == outcome(RestCodec(LimitsConfig()), text)


@given(
    cut=st.integers(0, 200), insert=st.binary(max_size=6), drop=st.integers(0, 6),
)  # fmt: skip
def test_mutated_bodies_decode_as_without_frames(cut: int, insert: bytes, drop: int) -> None:
    codec = RestCodec(LimitsConfig())
    good = body("[1.5, 2.5]")
    codec.decode("m", "1", good, None)
    text = good[:cut] + insert + good[cut + drop :]
    assert outcome(codec, text) == outcome(RestCodec(LimitsConfig()), text)


@pytest.mark.parametrize(
    "data",
    [
        '[1, 2], "data": [3, 4]',
        '[1, 2]}], "inputs": [{"data": [3, 4]',
        "[[1, 2]]",
        "[[1], [2]]",
        "[1, 2, 3]",
        "[1 2]",
        '["]", "["]',
        "[" * 100 + "]" * 100,
        "[true, 2]",
        "[1e300, 2]",
        "[NaN, 2]",
        "[]",
        "",
        "5",
        "[1, 2] ",
        '[{"data": [1]}, 2]',
    ],
)
def test_odd_data_is_judged_as_without_frames(data: str) -> None:
    codec = RestCodec(LimitsConfig())
    codec.decode("m", "1", body("[1.5, 2.5]"), None)
    text = body(data)
    assert outcome(codec, text) == outcome(RestCodec(LimitsConfig()), text)


def test_a_name_that_looks_like_data_makes_no_frame() -> None:
    codec = RestCodec(LimitsConfig())
    for value in ("[1, 2]", "[3, 4]"):
        text = body(value).replace(b'"x"', b'"\\"data\\": ["')
        request, _ = codec.decode("m", "1", text, None)
        assert request.inputs[0].name == '"data": ['
        np.testing.assert_array_equal(request.inputs[0].array, [json.loads(value)])
