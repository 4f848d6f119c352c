"""Flat JSON of the generate extension, in and out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.codecs.generate_rest import (
    decode_generate,
    encode_event,
    encode_generate,
    parse_generate,
    plain_values,
)
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import InvalidRequest, RequestError, Unsupported
from gateway.tensors import DATATYPES, InferenceRequest, InferenceResponse, Tensor, TensorSpec

LIMITS = LimitsConfig(max_parameters=50)


def contract(*specs: TensorSpec) -> Contract:
    return Contract(specs, (), batched=False)


def spec(name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (-1,)) -> TensorSpec:
    return TensorSpec(name, DATATYPES[datatype], shape)


def decode(body: object, *specs: TensorSpec) -> InferenceRequest:
    keys = parse_generate(json.dumps(body).encode(), LIMITS)
    return decode_generate("m", "1", keys, contract(*specs), LIMITS)


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        ((1,), 5, (1,)),
        ((), 5, ()),
        ((1, 1), 5, (1, 1)),
        ((-1, 1), 5, (1, 1)),
        ((-1, 1), [1, 2, 3], (3, 1)),
        ((-1, -1), [1, 2, 3], (1, 3)),
        ((-1, 4), [1, 2, 3, 4, 5, 6, 7, 8], (2, 4)),
        ((2, -1, 2), [1, 2, 3, 4, 5, 6, 7, 8], (2, 2, 2)),
        ((-1, -1), [[1, 2], [3, 4]], (2, 2)),
        ((-1,), [], (0,)),
    ],
)
def test_shapes_follow_from_the_models(
    shape: tuple[int, ...], value: Any, expected: tuple[int, ...]
) -> None:
    (tensor,) = decode({"x": value}, spec(shape=shape)).inputs
    assert tensor.shape == expected
    assert tensor.array.ravel().tolist() == np.ravel(value).tolist()


@given(st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=4), st.integers(0, 40))
def test_a_shape_holds_exactly_its_values(dims: list[int], count: int) -> None:
    try:
        (tensor,) = decode({"x": list(range(count))}, spec(shape=tuple(dims))).inputs
    except InvalidRequest as error:
        fixed = int(np.prod([d for d in dims if d > 0]))
        assert count % fixed or (-1 not in dims and count != fixed), error
    else:
        assert int(np.prod(tensor.shape)) == count
        assert all(want in (-1, got) for want, got in zip(dims, tensor.shape, strict=True))


def test_keys_are_inputs_or_parameters() -> None:
    body = {
        "warm": True,
        "b": "text",
        "id": "7",
        "parameters": {"a": [1, 2], "top": 0.5, "timeout": 1000, "priority": 2},
    }
    request = decode(body, spec("a", "INT64"), spec("b", "BYTES", (1, 1)))
    assert [tensor.name for tensor in request.inputs] == ["a", "b"], "in the model's order"
    assert request.inputs[1].array.tolist() == [[b"text"]]
    assert request.id == "7"
    assert request.parameters == {"warm": True, "top": 0.5, "timeout": 1000, "priority": 2}
    assert (request.timeout_us, request.priority) == (1000, 2)


def test_id_may_be_an_input() -> None:
    request = decode({"id": 3}, spec("id", "INT32", (1,)))
    assert request.id == "" and request.inputs[0].array.tolist() == [3]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "no key of the body is an input"),
        ({"y": 1}, "no key of the body is an input; model 'm' takes: x FP32 [-1, 2]"),
        ({"x": [1, 2, 3]}, "3 values do not fill; nest the lists"),
        ({"x": None}, "not null"),
        ({"x": {"a": 1}}, "not an object"),
        ({"x": ["a", "b"]}, "input 'x'"),
        ({"x": [True, 2]}, "true or false"),
        ({"x": [[1, 2], [3]]}, "differ in length"),
        ({"x": [1, 2], "y": None}, "'y' is no input of the model, so it is a parameter"),
        ({"x": [1, 2], "y": {"z": 1}}, "not dict"),
        ({"x": [1, 2], "y": [1]}, "not list"),
        ({"x": [1, 2], "parameters": 1}, "'parameters' must be an object"),
        ({"x": [1, 2], "parameters": {"x": [1, 2]}}, "'x' is there twice"),
        ({"x": [1, 2], "id": 7}, "'id' must be a string"),
        ({"x": [1, 2], "timeout": -1}, "parameter 'timeout'"),
        ({"x": [1, 2], "triton_enable_empty_final_response": True}, "are reserved"),
        ({"x": [1, 2], "binary_data_output": True}, "are JSON"),
        ({"x": [1, 2], **{f"p{n}": n for n in range(200)}}, "more than limits.max_parameters"),
    ],
)
def test_bodies_that_are_refused(body: object, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body, spec(shape=(-1, 2)))
    assert text in str(caught.value)


def test_a_model_with_an_input_called_parameters() -> None:
    with pytest.raises(Unsupported, match="use /infer"):
        decode({"parameters": {}}, spec("parameters"))


def test_values_to_choose_a_version_by() -> None:
    keys = parse_generate(b'{"user": "a", "x": [1], "parameters": {"n": 1, "z": null}}', LIMITS)
    assert plain_values(keys) == {"user": "a", "n": 1}


def test_answers_are_flat() -> None:
    outputs = [
        Tensor("text", DATATYPES["BYTES"], (1, 1), array=np.array([[b"h\xc3\xa9\n"]], object)),
        Tensor("many", DATATYPES["INT64"], (1, 3), array=np.array([[1, 2, 3]])),
        Tensor("none", DATATYPES["FP32"], (0,), array=np.zeros(0, np.float32)),
        Tensor("long", DATATYPES["FP32"], (300,), array=np.zeros(300, np.float32)),
        Tensor("true", DATATYPES["BOOL"], (), array=np.array(True)),
    ]
    response = InferenceResponse("m", "2", outputs, id="7", parameters={"cost": 3, "id": "x"})
    body = encode_generate(response)
    assert b"\n" not in body
    found = json.loads(body)
    assert found.pop("long") == [0.0] * 300
    assert found == {
        "model_name": "m", "model_version": "2", "id": "7", "cost": 3,
        "text": "h\u00e9\n", "many": [1, 2, 3], "none": [], "true": True,
    }  # fmt: skip
    assert encode_event(body) == b"data: " + body + b"\n\n"


def test_outputs_that_have_no_flat_form() -> None:
    for name in ("model_name", "model_version", "id"):
        tensor = Tensor(name, DATATYPES["INT64"], (1,), array=np.array([1]))
        with pytest.raises(Unsupported, match=name):
            encode_generate(InferenceResponse("m", "1", [tensor]))
    tensor = Tensor("b", DATATYPES["BYTES"], (1,), array=np.array([b"\xff"], object))
    with pytest.raises(Unsupported, match="not UTF-8"):
        encode_generate(InferenceResponse("m", "1", [tensor]))
