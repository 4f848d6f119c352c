"""A body whose numbers are read a piece at a time means what it means when read whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs import json_numbers, large
from gateway.codecs.oip_rest import RestCodec
from gateway.codecs.v1_rest import decode_v1
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import SluiceError
from gateway.tensors import DATATYPES, InferenceRequest, TensorSpec, datatype

LIMITS = LimitsConfig(max_json_depth=8)
KINDS = st.sampled_from([name for name in DATATYPES if name not in ("BYTES", "BOOL")])
NUMBERS = st.one_of(
    st.integers(-9, 300),
    st.integers(-(2**63) - 1, 2**64),
    st.integers(2**24 - 2, 2**24 + 40),
    st.sampled_from([2**53 + 1, 2**63, -(2**63), 65504, 65520, 3.5e38, -0.0, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-10, 10, width=32),
)
PLAIN = (st.integers(0, 99), st.integers(-9, 300), st.floats(-10, 10, width=32))
FAMILIES = st.sampled_from([*PLAIN, st.one_of(*PLAIN), NUMBERS])
STRANGE = st.sampled_from(
    [b"01", b"1.", b"-", b"NaN", b"1e999", b"true", b'"a"', b"null", b"{}", b"[]", b",", b" ",
     b"]", b"[", b"\x0b", b"\xff", b'"', b"\\", b"1 2", b'],"data":[1', b"],[", b"]]", b":", b"1"]
)  # fmt: skip
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "MIN_TEXT", 20)
        patch.setattr(json_numbers, "PIECE", 5)
        yield


def outcome(read: Callable[[], InferenceRequest]) -> object:
    """All that is to be seen of a request, or of its refusal."""
    try:
        request = read()
    except SluiceError as error:
        return type(error), str(error)
    return request.signature, request.id, request.outputs, request.parameters, [
        (t.name, t.datatype.name, t.shape, t.array.dtype, t.array.tobytes())
        if t.array.dtype.kind != "O"
        else (t.name, t.shape, t.array.tolist())
        for t in request.inputs
    ]  # fmt: skip


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[int], bytes]:
    """A shape, and the text of a list of numbers that has it (or is flat)."""
    shape = draw(SHAPES)
    count = int(np.prod(shape))
    few = draw(st.lists(draw(FAMILIES), min_size=1, max_size=6))
    numbers = [few[i % len(few)] for i in range(count)]
    nested: Any = np.array(numbers, object).reshape(shape).tolist()
    values = numbers if draw(st.booleans()) else nested
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")]))
    return shape, json.dumps(values, separators=separators).encode()


def mutated(draw: st.DrawFn, text: bytes) -> bytes:
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(text)))
        gone = draw(st.sampled_from([0, 0, 1, 2]))
        text = text[:at] + draw(STRANGE | st.just(b"")) + text[at + gone :]
    return text


@st.composite
def oip_bodies(draw: st.DrawFn) -> bytes:
    shape, text = draw(lists())
    head = {"name": "x", "shape": shape, "datatype": draw(KINDS)}
    before, behind = draw(
        st.sampled_from(
            [
                ('{"inputs":[%s,"data":', "}]}"),
                ('{"id":"[1,2,3]","inputs":[%s,"data":', ',"parameters":{"a":1}}],"outputs":[]}'),
                ('{"inputs":[%s,"data":', '},{"name":"y","shape":[],"datatype":"FP64"}]}'),
                ('{"inputs":[%s,"data": "', '"}]}'),
                ('{"parameters":{"a":"\\\\', '"},"inputs":[%s]}'),
            ]
        )
    )  # fmt: skip
    inner = json.dumps(head)[:-1]
    if "%s" in before:
        before %= inner
    else:
        behind %= inner + "}"
    return mutated(draw, before.encode() + text + behind.encode())


@settings(max_examples=150)
@given(oip_bodies())
def test_oip(body: bytes) -> None:
    def whole() -> InferenceRequest:
        return RestCodec(LIMITS, remember=False).decode("m", "", body, None)[0]

    def pieces() -> InferenceRequest:
        return large.read_infer(LIMITS, "m", "", body)[0]

    assert outcome(pieces) == outcome(whole)


@st.composite
def v1_bodies(draw: st.DrawFn) -> tuple[bytes, Contract]:
    shape, text = draw(lists())
    before, behind = draw(
        st.sampled_from(
            [
                (b'{"instances":', b"}"),
                (b'{"inputs":', b',"signature_name":"[1,2,3,4]"}'),
                (b'{"inputs":{"x":', b"}}"),
                (b'{"instances":[{"x":', b"}]}"),
            ]
        )
    )
    model = draw(st.sampled_from([shape, [-1, *shape[1:]], [-1, -1], [-1, 2, 2]]))
    spec = TensorSpec("x", datatype(draw(KINDS)), tuple(model))
    return mutated(draw, before + text + behind), Contract([spec], [], batched=True)


@settings(max_examples=150)
@given(v1_bodies())
def test_v1(made: tuple[bytes, Contract]) -> None:
    body, contract = made
    assert outcome(lambda: large.read_v1(LIMITS, "m", "", body, contract)) == outcome(
        lambda: decode_v1("m", "", body, contract, LIMITS)
    )


@pytest.mark.parametrize(
    ("data", "shape", "kind"),
    [("[[1000,2.5],[3,-40000]]", [2, 2], "FP32"), ("[1, 2, 3, 4, 5, 600000]", [6], "INT64"),
     ("[[[1.5],[2]],[[3],[4]]]", [2, 2, 1], "BF16"), ("[100, 200, 150, 255]", [2, 2], "UINT8")],
)  # fmt: skip
def test_what_is_regular_is_read_in_pieces(data: str, shape: list[int], kind: str) -> None:
    body = json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": kind, "data": 0}]})
    text = body.replace('"data": 0', f'"data": {data}').encode()
    tree = json_numbers.parse_around(text, 8, "inputs", 0, "data")
    numbers = tree["inputs"][0]["data"]
    assert isinstance(numbers, json_numbers.Numbers)
    array = numbers.array(datatype(kind), tuple(shape))
    assert array.ravel().tolist() == np.array(json.loads(data)).ravel().tolist()
