"""BI-08: gRPC messages whose parts contradict each other, and bytes that are no message."""

from __future__ import annotations

import random
import struct
from typing import Any

import grpc
import pytest

from gateway.codecs.messages import METHODS
from tests.bad_inputs.attack import (
    MIB,
    SERVICE,
    Served,
    call,
    good_message,
    message,
    raw_input,
    refused,
)

FOUR = struct.pack("<4f", 1, 2, 3, 4)
TYPED = {"name": "x", "datatype": "FP32", "shape": [1, 4]}


@pytest.mark.parametrize("count", [0, 2, 3, 1000])
def test_bi08a_number_of_raw_contents(grpc_gateway: Served, count: int) -> None:
    def change(made: Any) -> None:
        del made.raw_input_contents[:]
        made.raw_input_contents.extend([FOUR] * count)

    refused(call(grpc_gateway, message([raw_input(FOUR)], change=change)), 400)


def test_bi08b_fewer_raw_contents_than_inputs(grpc_gateway: Served) -> None:
    a = raw_input(FOUR[:8], [1, 2], name="a")
    b = {"name": "b", "datatype": "INT64", "shape": [1, 2]}
    refused(call(grpc_gateway, message([a, b], model="pair")), 400, "1 entries for 2 inputs")


def test_bi08c_raw_and_typed_mixed(grpc_gateway: Served) -> None:
    both = {**raw_input(FOUR), "contents": {"fp32_contents": [1, 2, 3, 4]}}
    refused(call(grpc_gateway, message([both])), 400, "beside raw_input_contents")
    a = {"name": "a", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}}
    b = raw_input(bytes(16), [1, 2], "INT64", "b")
    refused(call(grpc_gateway, message([a, b], model="pair")), 400)


@pytest.mark.parametrize(
    "field",
    ["bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents",
     "fp64_contents", "bytes_contents"],
)  # fmt: skip
def test_bi08d_typed_contents_of_the_wrong_type(grpc_gateway: Served, field: str) -> None:
    values: list[Any] = [b"a"] * 4 if field == "bytes_contents" else [1] * 4
    refused(
        call(grpc_gateway, message([{**TYPED, "contents": {field: values}}])), 400, "fp32_contents"
    )
    two = {"fp32_contents": [1, 2, 3, 4], field: values[:1]}
    refused(call(grpc_gateway, message([{**TYPED, "contents": two}])), 400, field)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 10_000])
def test_bi08e_number_of_typed_contents(grpc_gateway: Served, count: int) -> None:
    one = {**TYPED, "contents": {"fp32_contents": [1.0] * count}}
    refused(call(grpc_gateway, message([one])), 400, "elements in fp32_contents")


@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_bi08f_types_that_have_no_typed_contents(grpc_gateway: Served, kind: str) -> None:
    one = {"name": "x", "datatype": kind, "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}}
    refused(
        call(grpc_gateway, message([one], model=f"echo_{kind.lower()}")), 400, "raw_input_contents"
    )


GARBAGE = {
    "one byte": b"\xff",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "json": b'{"inputs": []}',
    "field 0": b"\x00\x00",
    "group": b"\x0b\x0c",
    "open group": b"\x0b" * 200,
    "long varint": b"\x08" + b"\xff" * 11,
    "length beyond": b"\x0a\xff\xff\xff\xff\x0f",
    "length of 2**63": b"\x3a" + b"\xff" * 9 + b"\x01",
    "wrong wire type": b"\x08\x01",
    "nested nonsense": b"\x2a\x03\xff\xff\xff",
    "nulls": bytes(1000),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_bi08g_garbage(grpc_gateway: Served, name: str) -> None:
    refused(call(grpc_gateway, GARBAGE[name]), 400)


def test_bi08h_truncated_anywhere(grpc_gateway: Served) -> None:
    whole = good_message()
    for size in range(len(whole)):
        reply = call(grpc_gateway, whole[:size])
        assert reply.status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), reply


def test_bi08i_bits_flipped_anywhere(grpc_gateway: Served) -> None:
    whole = good_message()
    chance = random.Random(4711)
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            broken[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        reply = call(grpc_gateway, bytes(broken))
        if not reply.ok:
            assert reply.status in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.UNIMPLEMENTED,
            ), reply
            assert reply.message


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("ModelInfer", "ModelStreamInfer")]
)
def test_bi08j_garbage_in_every_other_call(grpc_gateway: Served, method: str) -> None:
    for garbage in (b"\xff", b"\x0a\xff\xff", b"\x0b" * 200, b"\x0a\x02\xff\xfe"):
        reply = call(grpc_gateway, garbage, method)
        if not reply.ok:
            # Who may not load anything is told so before anybody looks into the message.
            refused(reply, 403 if method.endswith(("ModelLoad", "ModelUnload")) else 400)


def test_bi08k_parameters_without_a_value(grpc_gateway: Served) -> None:
    def on_request(made: Any) -> None:
        made.parameters["empty"].SetInParent()

    def on_input(made: Any) -> None:
        made.inputs[0].parameters["empty"].SetInParent()

    def on_output(made: Any) -> None:
        made.outputs.add(name="y").parameters["empty"].SetInParent()

    for change in (on_request, on_input, on_output):
        refused(call(grpc_gateway, message([raw_input(FOUR)], change=change)), 400, "has no value")


def test_bi08l_a_million_tiny_fields_are_refused_soon(grpc_gateway: Served) -> None:
    """Each would cost a microsecond and a hundred bytes."""
    grpc_gateway.ask("reset")
    before = grpc_gateway.ask()["memory"]
    for field in (b"\x3a\x00", b"\x2a\x00", b"\x32\x00", b"\x22\x00", b"\x90\x03\x01"):
        refused(call(grpc_gateway, field * (2 * MIB // len(field))), 400, "fields")
    assert grpc_gateway.ask()["peak"] - before < 100 * MIB


def test_bi08m_garbage_on_a_stream_fails_that_request_alone(grpc_gateway: Served) -> None:
    from gateway.codecs.messages import ModelStreamInferResponse

    stream = grpc_gateway.channel.stream_stream(SERVICE + "ModelStreamInfer")
    sent = [good_message(), b"\xff", message([raw_input(FOUR)], model="nobody"), good_message()]
    answers = [ModelStreamInferResponse.FromString(a) for a in stream(iter(sent), timeout=20)]
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]


def test_bi08n_unknown_methods_and_services(grpc_gateway: Served) -> None:
    for path in (SERVICE + "Nothing", "/other.Service/ModelInfer", SERVICE + "../ModelInfer", "/"):
        rpc = grpc_gateway.channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            rpc(b"", timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_bi08o_what_is_off_or_not_there(grpc_gateway: Served) -> None:
    for method, code in (
        ("RepositoryModelLoad", grpc.StatusCode.PERMISSION_DENIED),
        ("RepositoryModelUnload", grpc.StatusCode.PERMISSION_DENIED),
        ("SystemSharedMemoryRegister", grpc.StatusCode.UNIMPLEMENTED),
    ):
        rpc = grpc_gateway.channel.unary_unary(SERVICE + method)
        with pytest.raises(grpc.RpcError) as caught:
            rpc(b"", timeout=20)
        assert caught.value.code() == code  # type: ignore[attr-defined]


def test_bi08p_empty_message(grpc_gateway: Served) -> None:
    refused(call(grpc_gateway, b""), 400, "no inputs")
