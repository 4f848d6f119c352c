"""BI-14: streams of answers: odd bodies, callers that leave or do not read, models that fail."""

from __future__ import annotations

import gzip
import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from gateway.codecs.messages import ModelStreamInferResponse
from tests.bad_inputs.attack import (
    LIMIT,
    MIB,
    SERVICE,
    Door,
    Reply,
    Served,
    call,
    connected,
    good_message,
    http,
    http_bytes,
    message,
    raw_input,
    refused,
)

WAYS = ("generate", "generate_stream")
FOR_EVER = 2**40


def generate(
    served: Served, body: Any, model: str = "ticks", way: str = "generate", **headers: str
) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http(served, f"/v2/models/{model}/{way}", data, named)


def ask(n: int, **parameters: Any) -> bytes:
    """A request to `ticks` as gRPC has it."""
    n_input = raw_input(struct.pack("<q", n), (1,), "INT64", "n")
    return message([n_input], model="ticks", parameters=parameters)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"1", b"null", b'"n"', b'{"n": 1} x', b"\xff\xfe{", b'{"n": 1, "n": 2}',
        b'{"n": 1, "parameters": {"a": 1, "a": 2}}', b'{"n": NaN}',
        b'{"n": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)  # fmt: skip
def test_bi14a_bodies_that_are_none(gateway: Served, way: str, body: bytes) -> None:
    refused(generate(gateway, body, way=way))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "value", ["many", "", True, 1.5, 2**70, -(2**63) - 1, None, {}, {"a": 1}, [], [1, 2], [[1], 2]]
)
def test_bi14b_values_that_the_input_cannot_be(gateway: Served, way: str, value: Any) -> None:
    refused(generate(gateway, {"n": value}, way=way))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "more", [{"a": None}, {"a": [1]}, {"a": {"b": 1}}, {"parameters": 1}, {"parameters": {"n": 2}}]
)
def test_bi14c_keys_that_are_nothing(gateway: Served, way: str, more: dict[str, Any]) -> None:
    refused(generate(gateway, {"n": 1, **more}, way=way))


@pytest.mark.parametrize("way", WAYS)
def test_bi14d_reserved_names(gateway: Served, way: str) -> None:
    for name in ("triton_final_response", "triton_enable_empty_final_response"):
        refused(generate(gateway, {"n": 1, name: True}, way=way), 400, "reserved")
    refused(generate(gateway, {"n": 1, "binary_data_output": True}, way=way), 501)
    refused(generate(gateway, {"n": 1, "sequence_id": 7}, way=way), 501, "sequence_id")
    refused(generate(gateway, {"n": 1, "timeout": "soon"}, way=way), 400, "timeout")
    refused(generate(gateway, {"n": 1, "id": 7}, way=way), 400, "id")


@pytest.mark.parametrize("count", [0, 2, FOR_EVER])
def test_bi14e_generate_without_exactly_one_answer(gateway: Served, count: int) -> None:
    refused(generate(gateway, {"n": count}), 501, "exactly 1 response")


def test_bi14f_one_answer_of_a_model_that_gives_many(door: Door) -> None:
    n_input = raw_input(struct.pack("<q", 3), (1,), "INT64", "n")
    refused(door.infer([n_input], model="ticks"), 501, "ModelStreamInfer")


@pytest.mark.parametrize("way", WAYS)
def test_bi14g_bodies_above_the_limit(gateway: Served, way: str) -> None:
    large = b'{"n": 1, "a": "' + b"x" * (LIMIT + 1) + b'"}'
    refused(generate(gateway, large, way=way), 413)
    packed = gzip.compress(b'{"n": 1, "a": "' + b"x" * (32 * MIB) + b'"}')
    refused(generate(gateway, packed, way=way, content_encoding="gzip"), 413)


@pytest.mark.parametrize("way", WAYS)
def test_bi14h_callers_that_leave_at_any_moment(gateway: Served, way: str) -> None:
    request = http_bytes(f"/v2/models/ticks/{way}", b'{"n": %d, "pad": 99}' % FOR_EVER)

    def leave(moment: int) -> None:
        with connected(gateway) as sock:
            sock.sendall(request[: len(request) - 20 * (moment % 3 == 2)])
            if moment % 3 == 1 and way == "generate_stream":
                assert sock.recv(1000 * (moment % 7 + 1))
            time.sleep(moment % 5 / 1000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(60)))
    assert gateway.quiet()["pending"] == 0


def test_bi14i_callers_that_do_not_read(grpc_gateway: Served) -> None:
    request = http_bytes("/v2/models/ticks/generate_stream", b'{"n": %d, "pad": 25000}' % FOR_EVER)
    grpc_gateway.ask("reset")
    before = grpc_gateway.ask()["memory"]
    channel = grpc.insecure_channel("{}:{}".format(*grpc_gateway.grpc))
    rpc = channel.stream_stream(SERVICE + "ModelStreamInfer")
    with connected(grpc_gateway) as one, connected(grpc_gateway) as two:
        for sock in (one, two):
            sock.sendall(request)
        calls = [rpc(iter([ask(FOR_EVER, pad=25000)])) for _ in range(2)]
        for each in calls:
            next(each)
        time.sleep(1.5)  # as fast as they can they would make gigabytes
        assert grpc_gateway.ask()["peak"] - before < 128 * MIB
        for each in calls:
            each.cancel()
    channel.close()
    grpc_gateway.quiet()


def test_bi14j_a_model_that_fails_between_answers(grpc_gateway: Served) -> None:
    body = {"n": 5, "fail_at": 2}
    reply = generate(grpc_gateway, body, way="generate_stream")
    assert reply.ok
    *good, bad = [json.loads(each[6:]) for each in reply.body.decode().split("\n\n") if each]
    assert [each["y"] for each in good] == [0, 1]
    error = bad.pop("error")
    assert not bad
    refused(Reply(grpc.StatusCode.INTERNAL, error), 500, "FileNotFoundError: no weights in weights")
    refused(generate(grpc_gateway, {"n": 5, "fail_at": 0}, way="generate_stream"), 500)
    stream = grpc_gateway.channel.stream_stream(SERVICE + "ModelStreamInfer")
    answers = [
        ModelStreamInferResponse.FromString(each) for each in stream(iter([ask(5, fail_at=2)]))
    ]
    assert [bool(each.error_message) for each in answers] == [False, False, True]
    refused(Reply(grpc.StatusCode.INTERNAL, answers[-1].error_message), 500)


def test_bi14k_garbage_between_requests(grpc_gateway: Served) -> None:
    stream = grpc_gateway.channel.stream_stream(SERVICE + "ModelStreamInfer")
    sent = [
        ask(2), b"\xff" * 20, b"", good_message(), ask(1, triton_enable_empty_final_response=7),
        message([], model="ticks"), ask(3),
    ]  # fmt: skip
    answers = [ModelStreamInferResponse.FromString(each) for each in stream(iter(sent), timeout=20)]
    errors = [each.error_message for each in answers if each.error_message]
    assert len(errors) == 4 and len(answers) == 4 + 2 + 1 + 3
    for each in errors:
        refused(Reply(grpc.StatusCode.INVALID_ARGUMENT, each))


def test_bi14l_deadlines_of_no_time(gateway: Served) -> None:
    for way in WAYS:
        refused(generate(gateway, {"n": FOR_EVER, "timeout": 1}, way=way), 504)
        refused(generate(gateway, {"n": 1}, way=way, x_request_timeout_ms="0"), 400)
    refused(call(gateway, ask(1)), 501)
