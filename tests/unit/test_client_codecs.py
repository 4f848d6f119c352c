"""The client codecs in particular cases: metadata, streams, and answers that make no sense."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gateway.codecs import client_grpc, client_rest
from gateway.codecs.messages import (
    METHODS,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataResponse,
    ModelStreamInferResponse,
)
from gateway.errors import InferenceFailed, InvalidRequest, Unsupported
from gateway.tensors import DATATYPES, InferenceRequest, Parameter, Tensor, objects


def request_of(
    array: np.ndarray, kind: str, parameters: dict[str, Parameter] | None = None
) -> InferenceRequest:
    tensor = Tensor("x", DATATYPES[kind], array.shape, array=array)
    return InferenceRequest("ours", "1", (tensor,), parameters=parameters)


def answer(**fields: Any) -> Any:
    message = ModelInferResponse(model_name="theirs", model_version="9")
    raws = fields.pop("raws", [])
    message.outputs.add(name="y", **fields)
    message.raw_output_contents.extend(raws)
    return message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"datatype": "FP99", "shape": [1], "raws": [b"abcd"]}, "unknown datatype 'FP99'"),
        ({"datatype": "FP32", "shape": [-1], "raws": [b"abcd"]}, "output 'y': dimension -1"),
        ({"datatype": "FP32", "shape": [2], "raws": [b"abcd"]}, "output 'y' has 4 bytes"),
        ({"datatype": "FP32", "shape": [1], "raws": [b"abcd"] * 2}, "2 raw_output_contents for 1"),
        ({"datatype": "BYTES", "shape": [1], "raws": [b"\x09\0\0\0a"]}, "ends inside element 0"),
        ({"datatype": "BOOL", "shape": [1], "raws": [b"\x02"]}, "bytes above 1"),
        ({"datatype": "FP32", "shape": [3]}, "0 elements in fp32_contents"),
        ({"datatype": "FP16", "shape": [3]}, "no typed contents"),
    ],
)
def test_malformed_answers(fields: dict[str, Any], says: str) -> None:
    payload = answer(**fields).SerializeToString()
    with pytest.raises(InferenceFailed, match=says) as told:
        client_grpc.decode_response(payload, "ours", "1", wire=False)
    assert "input" not in str(told.value)


def test_large_answers_that_break_off() -> None:
    payload = answer(datatype="UINT8", shape=[100_000], raws=[bytes(100_000)]).SerializeToString()
    with pytest.raises(InferenceFailed, match=r"not a ModelInferResponse: it is truncated"):
        client_grpc.decode_response(payload[:-1], "ours", "1", wire=False)


def test_what_only_http_knows_is_not_sent_by_grpc() -> None:
    request = request_of(np.zeros(1, "f4"), "FP32", {"binary_data_output": True, "a": 1})
    message = ModelInferRequest.FromString(client_grpc.encode_request(request, "m", ""))
    assert list(message.parameters) == ["a"]


def test_parameters_beyond_64_bits_are_refused() -> None:
    request = request_of(np.zeros(1, "f4"), "FP32", {"a": 2**64})
    with pytest.raises(InvalidRequest, match=r"parameter 'a' is 18446744073709551616"):
        client_grpc.encode_request(request, "m", "")


def test_requests_after_thousands_of_shapes_are_still_right() -> None:
    for rows in range(client_grpc.MAX_HEADS + 3):
        array = np.zeros(rows % 5000, "u1")
        payload = client_grpc.encode_request(request_of(array, "UINT8"), "m", "")
    assert len(client_grpc._heads) <= client_grpc.MAX_HEADS
    assert ModelInferRequest.FromString(payload).inputs[0].shape == [rows]


# --- streams


def streamed(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


def test_stream_answers() -> None:
    message = ModelStreamInferResponse(
        infer_response=answer(datatype="UINT8", shape=[1], raws=[b"a"])
    )
    response, error, final = client_grpc.decode_stream_response(streamed(message), "ours", "1")
    assert response is not None
    assert (response.model, response.version, error, final) == ("ours", "1", "", False)
    message.infer_response.parameters["triton_final_response"].bool_param = False
    assert client_grpc.decode_stream_response(streamed(message), "o", "1")[2] is False
    message.infer_response.parameters["triton_final_response"].bool_param = True
    response, _, final = client_grpc.decode_stream_response(streamed(message), "o", "1")
    assert response is not None
    assert response.parameters == {}
    assert final


def test_the_empty_last_word_of_a_stream_is_no_answer() -> None:
    message = ModelStreamInferResponse(infer_response=ModelInferResponse(model_name="m"))
    message.infer_response.parameters["triton_final_response"].bool_param = True
    assert client_grpc.decode_stream_response(streamed(message), "m", "1") == (None, "", True)


def test_errors_of_a_stream() -> None:
    message = ModelStreamInferResponse(error_message="no such model")
    found = client_grpc.decode_stream_response(streamed(message), "m", "1")
    assert found == (None, "no such model", True)
    with pytest.raises(InferenceFailed, match="malformed"):
        client_grpc.decode_stream_response(b"\x12\x05abc", "m", "1")


# --- JSON


@pytest.mark.parametrize(
    ("body", "length", "says"),
    [
        (b"<html>", None, "not JSON"),
        (b"[]", None, "must be a JSON object"),
        (b"{}", None, "'outputs' is not a list"),
        (b'{"outputs": [1]}', None, "'outputs' is not a list of objects"),
        (b'{"outputs": [{}]}', None, "needs a 'name'"),
        (b'{"outputs": [{"name": "y", "shape": [1], "datatype": "X"}]}', None, "unknown datatype"),
        (b'{"outputs": [{"name": "y", "shape": [1], "datatype": "FP32"}]}', None, "must be a list"),
        (
            b'{"outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "data": [1]}]}',
            None,
            "output 'y': data of shape",
        ),
        (b'{"outputs": []}', 99, "is 99, but the body has 15"),
        (b'{"outputs": []}', -1, "is -1, but the body has 15"),
        (b'{"outputs": []}x', 15, "1 bytes more"),
        (
            b'{"outputs": [{"name": "y", "shape": [2], "datatype": "UINT8", "parameters": '
            b'{"binary_data_size": 3}}]}ab',
            None,
            "not JSON",
        ),
    ],
)
def test_malformed_json_answers(body: bytes, length: int | None, says: str) -> None:
    with pytest.raises(InferenceFailed, match=says):
        client_rest.decode_response(body, length, "m", "1")


def test_null_is_nan_where_a_number_was_expected() -> None:
    body = b'{"outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "data": [null, 1.5]}]}'
    got = client_rest.decode_response(body, None, "m", "1").outputs[0].array
    assert np.isnan(got[0])
    assert got[1] == 1.5
    with pytest.raises(InferenceFailed, match="null"):
        client_rest.decode_response(body.replace(b"FP32", b"INT8"), None, "m", "1")


def test_what_other_servers_add_to_their_answers_does_not_matter() -> None:
    tree = {
        "model_name": "m",
        "id": None,
        "parameters": {"content_type": None, "headers": {"a": 1}, "ok": 1},
        "outputs": [
            {
                "name": "y",
                "shape": [1],
                "datatype": "INT8",
                "data": [1],
                "parameters": {"content_type": "np"},
            }
        ],
    }
    got = client_rest.decode_response(json.dumps(tree).encode(), None, "ours", "1")
    assert (got.id, got.parameters, got.model) == ("", {"ok": 1}, "ours")


@pytest.mark.parametrize(
    ("array", "kind", "says"),
    [
        (np.zeros(1, "f2"), "FP16", "'x' is FP16"),
        (np.array([np.inf], "f8"), "FP64", "'x' holds NaN or an infinity"),
        (objects([b"\xff"], (1,)), "BYTES", "'x' holds bytes that are not UTF-8"),
    ],
)
def test_what_json_cannot_say_is_refused(array: np.ndarray, kind: str, says: str) -> None:
    with pytest.raises(Unsupported, match=f"input {says}.*grpc://"):
        client_rest.encode_request(request_of(array, kind), binary=False)
    client_rest.encode_request(request_of(array, kind), binary=True)


# --- readiness and metadata


def test_control_messages() -> None:
    assert METHODS["ServerReady"].request.FromString(client_grpc.server_ready_request()) is not None
    assert client_grpc.parse_server_ready(
        METHODS["ServerReady"].response(ready=True).SerializeToString()
    )
    assert not client_grpc.parse_server_ready(b"")
    ready = METHODS["ModelReady"]
    asked = ready.request.FromString(client_grpc.model_ready_request("m", "2"))
    assert (asked.name, asked.version) == ("m", "2")
    assert client_grpc.parse_model_ready(ready.response(ready=True).SerializeToString())
    said = METHODS["ServerMetadata"].response(name="triton", version="2", extensions=["a", "b"])
    found = client_grpc.parse_server_metadata(said.SerializeToString())
    assert found == ("triton", "2", ("a", "b"))
    asked = METHODS["ModelMetadata"].request.FromString(client_grpc.model_metadata_request("m", ""))
    assert (asked.name, asked.version) == ("m", "")
    with pytest.raises(InferenceFailed, match="malformed"):
        client_grpc.parse_model_ready(b"\xff")


def metadata_message(datatype: str = "FP32", shape: tuple[int, ...] = (-1, 4)) -> Any:
    message = ModelMetadataResponse(name="m", versions=["1", "2"], platform="onnx")
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    message.outputs.add(name="y", datatype="BYTES", shape=[-1])
    return message


def test_metadata_by_both_protocols() -> None:
    found = client_grpc.parse_model_metadata(metadata_message().SerializeToString())
    tree = {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1], "parameters": {"a": {}}}],
    }
    by_rest = client_rest.parse_metadata(json.dumps(tree).encode())
    for each in (found, by_rest):
        assert each[:3] == ("m", ("1", "2"), "onnx")
        assert list(map(repr, each.inputs)) == ["x FP32 [-1, 4]"]
        assert list(map(repr, each.outputs)) == ["y BYTES [-1]"]


def test_metadata_that_makes_no_sense() -> None:
    for message in (metadata_message("TEXT"), metadata_message(shape=(-2,))):
        with pytest.raises(InferenceFailed, match="malformed"):
            client_grpc.parse_model_metadata(message.SerializeToString())
    for body in (
        b'{"inputs": 1}',
        b'{"inputs": [{"name": "x", "shape": [null], "datatype": "FP32"}]}',
        b"x",
    ):
        with pytest.raises(InferenceFailed, match="malformed"):
            client_rest.parse_metadata(body)
