"""Requests that are passed on undecoded: nobody looks into their tensors on the way, and what
was not looked into does no harm where it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import gateway.tensors
from gateway.batching.clock import LoopClock
from gateway.codecs import client_grpc
from gateway.codecs.messages import ModelInferRequest, ModelInferResponse
from gateway.codecs.oip_grpc import MAX_BESIDE, GrpcCodec
from gateway.codecs.oip_rest import RestCodec
from gateway.codecs.wire import field
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.dispatch import Dispatcher
from gateway.errors import InvalidRequest
from gateway.lifecycle.dispatchers import contract_of, make_dispatcher
from gateway.lifecycle.probe import Findings
from gateway.model_settings import ModelSettings
from gateway.pipeline import AwaitableCall
from gateway.tensors import (
    DATATYPES,
    Array,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Tensor,
    TensorSpec,
    objects,
)
from runtimes.interface import ForwardingModel, Headers, Model

LIMITS = LimitsConfig()
TEXT = objects([b"a", b"\xff" * 9], (2,))
TRUTH = np.array([True, False])
SPECS = (
    TensorSpec("t", DATATYPES["BYTES"], (-1,)),
    TensorSpec("b", DATATYPES["BOOL"], (-1,)),
)


def message(text: bytes | None = None, truth: bytes = b"\1\0", **fields: Any) -> bytes:
    tensors = (
        Tensor("t", DATATYPES["BYTES"], (2,), data=text, array=TEXT if text is None else None),
        Tensor("b", DATATYPES["BOOL"], (2,), data=truth),
    )
    request = InferenceRequest("m", "", tensors, **fields)
    return client_grpc.encode_request(request, "m", "")


class Elsewhere(ForwardingModel):
    """Answers what it was sent, as another server would: bytes in, bytes out."""

    inputs = outputs = SPECS
    probed = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.sent: list[bytes] = []

    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        payload = client_grpc.encode_request(request, "theirs", "9")
        self.sent.append(payload)
        return client_grpc.decode_response(echo(payload), "m", "1", wire=request.wire is not None)

    async def forward_stream(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> AsyncIterator[InferenceResponse]:
        yield await self.forward(request, deadline, headers)

    async def infer_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        raise AssertionError("whole requests go there")


def echo(payload: bytes) -> bytes:
    """The answer of a server that gives back what it gets."""
    request = ModelInferRequest.FromString(payload)
    answer = ModelInferResponse(model_name="theirs", model_version="9", id=request.id)
    for tensor in request.inputs:
        answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    answer.raw_output_contents.extend(request.raw_input_contents)
    encoded: bytes = answer.SerializeToString()
    return encoded


class Here(Model):
    """Answers what it was sent, in this process, and must see no broken tensor."""

    inputs = outputs = SPECS
    batch_dimension = True

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        assert set(np.unique(inputs["b"].view(np.uint8))) <= {0, 1}
        return inputs


def dispatcher_of(model: Model, most: int) -> Dispatcher:
    findings = Findings(most)
    contract = contract_of(model, findings)
    clock = LoopClock(asyncio.get_running_loop())
    return make_dispatcher("m", "1", model, findings, contract, ModelSettings(), clock, 0.0)


async def ask(dispatcher: Dispatcher, codec: GrpcCodec, payload: bytes) -> bytes:
    request, typed = codec.decode(payload)
    call = AwaitableCall(request, dispatcher.now())
    dispatcher.submit(call)
    return codec.encode(await call.future, typed=typed)


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks into a tensor fails the test."""

    def looked(*_: object) -> None:
        raise AssertionError("somebody looked into a tensor")

    monkeypatch.setattr(Tensor, "array", property(looked))
    monkeypatch.setattr(Tensor, "data", property(looked))
    monkeypatch.setattr(Tensor, "check_data", looked)
    monkeypatch.setattr(gateway.tensors, "decode_bytes_elements", looked)
    monkeypatch.setattr(gateway.tensors, "to_wire", looked)


@pytest.mark.parametrize("most", [0, 8])
def test_forwarded_requests_are_never_decoded(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [message(id=name) for name in ("", "", "the id")]
    blind(monkeypatch)

    async def test() -> None:
        model = Elsewhere(asyncio.get_running_loop())
        dispatcher, codec = dispatcher_of(model, most), GrpcCodec(LIMITS)
        for payload in payloads:
            answer = ModelInferResponse.FromString(await ask(dispatcher, codec, payload))
            asked = ModelInferRequest.FromString(payload)
            assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", asked.id)
            assert answer.raw_output_contents == asked.raw_input_contents
            sent = ModelInferRequest.FromString(model.sent[-1])
            assert (sent.model_name, sent.model_version) == ("theirs", "9")
        dispatcher.close()

    asyncio.run(test())


def test_streams_of_other_servers_are_not_decoded_on_the_way_there() -> None:
    broken = message(text=b"\x09\0\0\0", truth=b"\7\7")

    async def test() -> None:
        model = Elsewhere(asyncio.get_running_loop())
        model.decoupled = True
        dispatcher, codec = dispatcher_of(model, 0), GrpcCodec(LIMITS)
        request, _ = codec.decode(broken)
        call = AwaitableCall(request, dispatcher.now())
        answers = [answer async for answer in dispatcher.stream(call)]
        assert len(answers) == 1
        assert model.sent[0].startswith(broken)
        dispatcher.close()

    asyncio.run(test())


@pytest.mark.parametrize("most", [0, 8])
@pytest.mark.parametrize(
    ("text", "truth", "says"),
    [
        (b"\x09\0\0\0aaaa", b"\1\1", "input 't': BYTES data ends inside element 0"),
        (b"\0\0\0\0\0\0\0\0x", b"\1\1", "input 't': shape .* goes on for 1 bytes"),
        (b"\0" * 8, b"\1\2", "input 'b' is BOOL, but has bytes above 1"),
    ],
)
def test_broken_tensors_are_refused_where_a_batch_would_be_made(
    most: int, text: bytes, truth: bytes, says: str
) -> None:
    async def test() -> None:
        dispatcher, codec = dispatcher_of(Here(), most), GrpcCodec(LIMITS)
        good = [asyncio.ensure_future(ask(dispatcher, codec, message())) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(2):  # the second time by the known form, if there is one
            with pytest.raises(InvalidRequest, match=says):
                await ask(dispatcher, codec, message(text=text, truth=truth))
        for answer in await asyncio.gather(*good):
            outputs = client_grpc.decode_response(answer, "m", "1", wire=False).outputs
            assert outputs[0].array.tolist() == TEXT.tolist()
            assert outputs[1].array.tolist() == TRUTH.tolist()
        assert dispatcher.pending == 0
        dispatcher.close()

    asyncio.run(test())


def test_a_broken_tensor_of_a_form_that_was_fine_before_is_refused() -> None:
    codec = GrpcCodec(LIMITS)
    for text, truth, fine in (
        (b"\x04\0\0\0aaaa\0\0\0\0", b"\1\0", True),
        (b"\x04\0\0\0aaaa\0\0\0\1", b"\1\0", False),
        (b"\x04\0\0\0bbbb\0\0\0\0", b"\1\2", False),
        (b"\0\0\0\0\x04\0\0\0cccc", b"\0\0", True),
    ):
        request, _ = codec.decode(message(text=text, truth=truth))
        assert request.unchecked
        if fine:
            request.check_data()
            assert not request.unchecked
        else:
            with pytest.raises(InvalidRequest):
                request.check_data()


def test_numbers_are_checked_when_they_are_decoded() -> None:
    tensor = Tensor("x", DATATYPES["FP32"], (2,), b"\0" * 7)
    payload = client_grpc.encode_request(InferenceRequest("m", "", (tensor,)), "m", "")
    with pytest.raises(InvalidRequest, match="'x' has 7 bytes"):
        GrpcCodec(LIMITS).decode(payload)


def test_what_was_no_raw_grpc_request_has_no_wire() -> None:
    typed = ModelInferRequest(model_name="m")
    tensor = typed.inputs.add(name="b", datatype="BOOL", shape=[1])
    tensor.contents.bool_contents.append(True)
    request, _ = GrpcCodec(LIMITS).decode(typed.SerializeToString())
    assert (request.wire, request.unchecked) == (None, False)
    body = b'{"inputs":[{"name":"b","shape":[1],"datatype":"BOOL","data":[true]}]}'
    request, _ = RestCodec(LIMITS).decode("m", "", body, None)
    assert (request.wire, request.unchecked) == (None, False)


def test_bytes_behind_json_are_looked_into_later() -> None:
    head = (
        b'{"inputs":[{"name":"b","shape":[2],"datatype":"BOOL",'
        b'"parameters":{"binary_data_size":2}}]}'
    )
    codec = RestCodec(LIMITS)
    for data, fine in ((b"\0\1", True), (b"\0\2", False), (b"\1\1", True)):
        request, _ = codec.decode("m", "", head + data, len(head))
        assert request.unchecked
        if fine:
            request.check_data()
        else:
            with pytest.raises(InvalidRequest, match="above 1"):
                request.check_data()
    contract = Contract(SPECS[1:], (), batched=False)
    request, _ = codec.decode_raw("m", "", b"\7", contract)
    with pytest.raises(InvalidRequest, match="above 1"):
        request.check_data()


def test_a_payload_that_is_mostly_something_else_is_not_kept() -> None:
    unknown = field(99, b"x" * (MAX_BESIDE + 1))
    request, _ = GrpcCodec(LIMITS).decode(message() + unknown)
    assert request.wire is None
    request, _ = GrpcCodec(LIMITS).decode(message() + field(99, b"x"))
    assert request.wire is not None


def test_what_waits_in_line_keeps_no_second_copy() -> None:
    async def test() -> None:
        dispatcher = dispatcher_of(Here(), 8)
        request, _ = GrpcCodec(LIMITS).decode(message())
        call = AwaitableCall(request, dispatcher.now())
        dispatcher.submit(call)
        assert request.wire is None
        await call.future
        dispatcher.close()

    asyncio.run(test())
