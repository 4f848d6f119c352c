"""KServe V1: short ways into tensors and out of them change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codecs import json_data
from gateway.codecs.v1_rest import decode_v1, encode_v1
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import RequestError
from gateway.tensors import DATATYPES, InferenceResponse, Tensor, TensorSpec, objects, to_wire

LIMITS = LimitsConfig()
KINDS = st.sampled_from([*DATATYPES])
SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)
VALUES = st.one_of(
    st.sampled_from([0, 1, -1, 2.0, 127, 128, 255, 256, 2**31, 2**32, 2**63, 2**64 - 1, 1e39]),
    st.floats(-1e6, 1e6),
)
ODD = st.sampled_from([True, None, "a", [], [1], {}])


@st.composite
def nested(draw: Any) -> Any:
    """Lists, nested regularly for the most part, of what are numbers for the most part."""
    values = st.one_of(VALUES, VALUES, VALUES, ODD) if draw(st.booleans()) else VALUES

    def lists(shape: tuple[int, ...]) -> Any:
        return [lists(shape[1:]) if shape[1:] else draw(values) for _ in range(shape[0])]

    tree = lists(draw(SHAPES))
    if tree and draw(st.integers(0, 4)) == 0:
        tree[draw(st.integers(0, len(tree) - 1))] = draw(st.one_of(ODD, VALUES))
    return tree


def outcome(body: bytes, contract: Contract) -> Any:
    try:
        (tensor,) = decode_v1("m", "", body, contract, LIMITS).inputs
    except RequestError as error:
        return str(error)
    return tensor.name, tensor.datatype, tensor.shape, bytes(to_wire(tensor.array))


@given(nested(), KINDS, st.integers(1, 4), st.sampled_from(["inputs", "instances"]))
def test_nested_lists_without_numpy_and_with_it(rows: Any, kind: str, rank: int, key: str) -> None:
    spec = TensorSpec("x", DATATYPES[kind], (-1,) * rank)
    contract = Contract([spec], [], batched=True)
    body = orjson.dumps({key: rows})
    quick = outcome(body, contract)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_data, "PACKED_NESTED", -1)
        assert quick == outcome(body, contract)


@given(KINDS, st.lists(st.integers(0, 9), max_size=4).map(tuple))
def test_answers_are_nested_as_their_shape(kind: str, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape, dtype=int))
    if kind == "BYTES":
        array = objects([b"%d" % each for each in range(count)], shape)
        tensor = Tensor("y", DATATYPES[kind], shape, array=array)
        expected = np.array([str(each) for each in range(count)], object).reshape(shape)
    else:
        expected = (np.arange(count) % 2).astype(DATATYPES[kind].dtype).reshape(shape)
        tensor = Tensor("y", DATATYPES[kind], shape, expected.tobytes())
    given = encode_v1(InferenceResponse("m", "1", [tensor]))
    assert given == {"predictions": expected.tolist()}
