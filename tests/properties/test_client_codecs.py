"""The client codecs and the server codecs are inverse to each other; garbage is told as such."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.codecs import client_grpc, client_rest
from gateway.codecs.messages import ModelInferRequest, ModelInferResponse
from gateway.codecs.oip_grpc import GrpcCodec
from gateway.codecs.oip_rest import BINARY_ANSWER, JSON_ANSWER, AnswerForm, RestCodec
from gateway.config import LimitsConfig
from gateway.errors import InferenceFailed, Unsupported
from gateway.tensors import InferenceRequest, InferenceResponse, Tensor, datatype_of, to_wire

from .test_codecs import IDS, NAMES, arrays, mutated, quiet, response_of, same

LIMITS = LimitsConfig()
TYPED_NAMES = tuple(name for name in NAMES if name not in ("FP16", "BF16"))
PARAMETERS = st.dictionaries(
    st.sampled_from(["a", "b", "timeout", "priority", "sequence_id", "ключ"]),
    st.one_of(st.integers(0, 2**63), st.just("7")),
    max_size=3,
)
MORE_PARAMETERS = st.dictionaries(
    st.sampled_from(["c", "d", "e"]),
    st.one_of(
        st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(), st.floats(allow_nan=False)
    ),
    max_size=3,
)
OUTPUTS = st.sampled_from([(), ("y",), ("z", "y")])


def request_of(found: list[np.ndarray], as_bytes: bool, **fields: Any) -> InferenceRequest:
    """A request over arrays, each as such or as the bytes of one."""
    inputs = []
    for index, array in enumerate(found):
        kind = datatype_of(array)
        if as_bytes:
            inputs.append(Tensor(f"i{index}", kind, array.shape, to_wire(array)))
        else:
            inputs.append(Tensor(f"i{index}", kind, array.shape, array=array))
    return InferenceRequest("ours", "1", tuple(inputs), **fields)


def equal(found: list[np.ndarray], tensors: Any) -> bool:
    return len(found) == len(tensors) and all(
        same(array, tensor) for array, tensor in zip(found, tensors, strict=True)
    )


# --- gRPC


@given(
    st.lists(arrays(), min_size=1, max_size=3), IDS, PARAMETERS, MORE_PARAMETERS, OUTPUTS,
    st.booleans(), st.sampled_from(["", "7"]),
)  # fmt: skip
def test_grpc_requests_arrive_as_they_were(
    found: list[np.ndarray], id: str, reserved: Any, more: Any, outputs: Any, as_bytes: bool,
    version: str,
) -> None:  # fmt: skip
    parameters = {**reserved, **more}
    request = request_of(found, as_bytes, id=id, parameters=parameters, outputs=outputs)
    for _ in range(2):  # the second time from the kept head
        got, typed = GrpcCodec(LIMITS).decode(client_grpc.encode_request(request, "m", version))
        assert not typed
        got.check_data()
        assert (got.model, got.version, got.id, got.outputs) == ("m", version, id, outputs)
        assert (got.parameters or {}) == parameters
        assert equal(found, got.inputs)


@given(
    st.lists(arrays(), min_size=1, max_size=3), IDS, st.sampled_from(["", "1", "canary"]),
    st.sampled_from(["", "7"]),
)  # fmt: skip
def test_grpc_requests_that_came_raw_go_on_undecoded(
    found: list[np.ndarray], id: str, from_version: str, version: str
) -> None:
    request = request_of(found, True, id=id, outputs=("y",), parameters={"a": 1})
    came = client_grpc.encode_request(request, "ours", from_version)
    decoded, _ = GrpcCodec(LIMITS).decode(came)
    assert decoded.wire is came
    sent = client_grpc.encode_request(decoded, "theirs", version)
    assert sent.startswith(came)
    # As Google's own implementation reads it.
    message = ModelInferRequest.FromString(sent)
    assert (message.model_name, message.model_version) == ("theirs", version)
    assert message.id == id
    got, _ = GrpcCodec(LIMITS).decode(sent)
    assert (got.model, got.version, got.outputs) == ("theirs", version, ("y",))
    assert equal(found, got.inputs)


@given(st.lists(arrays(), min_size=1, max_size=3), IDS, MORE_PARAMETERS)
def test_grpc_raw_answers(found: list[np.ndarray], id: str, parameters: Any) -> None:
    answer = response_of(found, id)
    answer.parameters = parameters
    payload = GrpcCodec(LIMITS).encode(answer, typed=False)
    got = client_grpc.decode_response(payload, "ours", "1", wire=False)
    assert (got.model, got.version, got.id, got.wire) == ("ours", "1", id, None)
    assert (got.parameters or {}) == parameters
    assert equal(found, got.outputs)


@given(st.lists(arrays(TYPED_NAMES), min_size=1, max_size=3), IDS)
def test_grpc_typed_answers(found: list[np.ndarray], id: str) -> None:
    found = [quiet(array) if array.dtype.kind == "f" else array for array in found]
    payload = GrpcCodec(LIMITS).encode(response_of(found, id), typed=True)
    got = client_grpc.decode_response(payload, "ours", "1", wire=False)
    assert got.id == id
    assert equal(found, got.outputs)


@given(st.lists(arrays(), min_size=1, max_size=3), IDS)
def test_grpc_answers_go_back_undecoded(found: list[np.ndarray], id: str) -> None:
    codec = GrpcCodec(LIMITS)
    payload = codec.encode(response_of(found, id), typed=False)
    response = client_grpc.decode_response(payload, "ours", "1", wire=True)
    assert response.outputs == ()
    back = codec.encode(response, typed=False)
    assert back.startswith(payload)
    message = ModelInferResponse.FromString(back)
    assert (message.model_name, message.model_version, message.id) == ("ours", "1", id)
    got = client_grpc.decode_response(back, "a", "b", wire=False)
    assert equal(found, got.outputs)
    streamed = codec.encode_for_stream(response, typed=False)
    answer, error, final = client_grpc.decode_stream_response(streamed, "a", "b")
    assert answer is not None
    assert (error, final) == ("", True)
    assert equal(found, answer.outputs)
    assert not answer.parameters


def test_grpc_answers_of_many_megabytes_are_views() -> None:
    array = np.arange(2**16, dtype="f4")
    payload = GrpcCodec(LIMITS).encode(response_of([array, array]), typed=False)
    got = client_grpc.decode_response(payload, "m", "1", wire=False)
    assert equal([array, array], got.outputs)
    assert all(isinstance(tensor.data, memoryview) for tensor in got.outputs)


@given(st.data())
def test_grpc_broken_answers_are_told_as_such(data: st.DataObject) -> None:
    found = data.draw(st.lists(arrays(), min_size=1, max_size=2))
    typed = data.draw(st.booleans())
    payload = GrpcCodec(LIMITS).encode(response_of(found, "id"), typed=typed)
    broken = data.draw(mutated(payload))
    for wrapped in (False, True):
        try:
            if wrapped:
                client_grpc.decode_stream_response(broken, "m", "1")
            else:
                answer = client_grpc.decode_response(broken, "m", "1", wire=False)
                for tensor in answer.outputs:
                    assert tensor.array.shape == tensor.shape
        except InferenceFailed as error:
            assert str(error).startswith("the server's answer is malformed: ")
            assert "\n" not in str(error)


# --- REST


@given(
    st.lists(arrays(), min_size=1, max_size=3), IDS, PARAMETERS, OUTPUTS, st.booleans()
)  # fmt: skip
def test_rest_binary_requests(
    found: list[np.ndarray], id: str, parameters: Any, outputs: Any, as_bytes: bool
) -> None:
    request = request_of(found, as_bytes, id=id, parameters=parameters, outputs=outputs)
    body, headers = client_rest.encode_request(request, binary=True)
    length = int(headers[client_rest.HEADER_LENGTH])
    got, form = RestCodec(LIMITS).decode("m", "2", body, length)
    got.check_data()
    assert (got.id, got.outputs) == (id, outputs)
    assert form.is_binary("y")
    ours = dict(got.parameters or {})
    ours.pop("binary_data_output", None)
    assert ours == parameters
    assert equal(found, got.inputs)


@given(
    st.lists(arrays(TYPED_NAMES, json_able=True), min_size=1, max_size=3), IDS, PARAMETERS, OUTPUTS
)
def test_rest_json_requests(
    found: list[np.ndarray], id: str, parameters: Any, outputs: Any
) -> None:
    request = request_of(found, False, id=id, parameters=parameters, outputs=outputs)
    body, headers = client_rest.encode_request(request, binary=False)
    assert headers == {"content-type": "application/json"}
    got, form = RestCodec(LIMITS).decode("m", "2", body, None)
    assert (got.id, got.outputs) == (id, outputs)
    assert not form.is_binary("y")
    assert (got.parameters or {}) == parameters
    assert equal(found, got.inputs)


@given(st.lists(arrays(), min_size=1, max_size=3), IDS, PARAMETERS)
def test_rest_binary_answers(found: list[np.ndarray], id: str, parameters: Any) -> None:
    answer = response_of(found, id)
    answer.parameters = parameters
    body, length = RestCodec(LIMITS).encode(answer, BINARY_ANSWER)
    got = client_rest.decode_response(body, length, "ours", "1")
    assert (got.model, got.version, got.id) == ("ours", "1", id)
    assert (got.parameters or {}) == parameters
    assert equal(found, got.outputs)


@given(st.lists(arrays(json_able=True), min_size=2, max_size=3), IDS, st.booleans())
def test_rest_json_and_mixed_answers(found: list[np.ndarray], id: str, mixed: bool) -> None:
    form = AnswerForm(named={"o1": True}) if mixed else JSON_ANSWER
    body, length = RestCodec(LIMITS).encode(response_of(found, id), form)
    got = client_rest.decode_response(body, length, "ours", "1")
    assert got.id == id
    assert equal(found, got.outputs)


@given(arrays(("FP16", "BF16", "FP32", "FP64")))
def test_rest_json_refuses_what_it_cannot_say(array: np.ndarray) -> None:
    half = array.dtype.itemsize == 2
    assume(half or not np.isfinite(array).all())
    with pytest.raises(Unsupported, match="FP16|BF16" if half else "NaN"):
        client_rest.encode_request(request_of([array], False), binary=False)


@given(st.data())
def test_rest_broken_answers_are_told_as_such(data: st.DataObject) -> None:
    found = data.draw(st.lists(arrays(json_able=True), min_size=1, max_size=2))
    form = data.draw(st.sampled_from([BINARY_ANSWER, JSON_ANSWER]))
    body, length = RestCodec(LIMITS).encode(response_of(found, "id"), form)
    broken = data.draw(mutated(body))
    if length is not None:
        length += data.draw(st.integers(-5, 5))
    try:
        answer = client_rest.decode_response(broken, length, "m", "1")
    except InferenceFailed as error:
        assert str(error).startswith("the server's answer is malformed: ")
    else:
        assert isinstance(answer, InferenceResponse)
        for tensor in answer.outputs:
            assert tensor.array.shape == tensor.shape


@given(st.lists(arrays(), min_size=1, max_size=3), IDS)
def test_grpc_streamed_answers_go_on_undecoded(found: list[np.ndarray], id: str) -> None:
    response = response_of(found, id)
    codec = GrpcCodec(LIMITS)
    for final in (False, True):
        payload = codec.encode_for_stream(response, typed=False, final=final)
        passed, error, last = client_grpc.decode_stream_response(payload, "ours", "7", wire=True)
        assert passed is not None and passed.wire is not None and not passed.outputs
        assert (error, last) == ("", final)
        again, _, last = client_grpc.decode_stream_response(
            codec.encode_for_stream(passed, typed=False, final=not final), "", ""
        )
        assert again is not None and last is not final
        assert equal(found, again.outputs)
        assert again.id == id
        assert not again.parameters
