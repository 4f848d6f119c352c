"""BI-07: the lengths of binary bodies."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from tests.bad_inputs.attack import ADD, Served, http, http_bytes, raw, refused, tensor

FOUR = struct.pack("<4f", 1, 2, 3, 4)
HEADER = "inference-header-content-length"


def head(size: Any = 16, **more: Any) -> bytes:
    return json.dumps({"inputs": [tensor(parameters={"binary_data_size": size})], **more}).encode()


def binary(gateway: Served, text: bytes, data: bytes, length: Any = None) -> Any:
    return http(gateway, ADD, text + data, {HEADER: str(len(text) if length is None else length)})


@pytest.mark.parametrize(
    "length",
    ["-1", "-0", "+5", "abc", "", "1.5", "0x10", "1e2", "1_0", "9" * 18, "9" * 19, "9" * 5000,
     "5, 5", "5;", "\u0663", " ", "NaN"],
    ids=lambda t: ascii(t)[:12],
)  # fmt: skip
def test_bi07a_header_that_is_no_length(gateway: Served, length: str) -> None:
    raw_length = length.encode().decode("latin-1")
    refused(binary(gateway, head(), FOUR, raw_length), 400, "Inference-Header-Content-Length")


@pytest.mark.parametrize("more", [1, 17, 100_000, 2**31, 2**63 // 100])
def test_bi07b_header_larger_than_the_body(gateway: Served, more: int) -> None:
    text = head()
    refused(binary(gateway, text, FOUR, len(text) + 16 + more), 400, "only")


@pytest.mark.parametrize("less", [1, 10])
def test_bi07c_header_that_cuts_the_json(gateway: Served, less: int) -> None:
    text = head()
    refused(binary(gateway, text, FOUR, len(text) - less), 400, "not JSON")


@pytest.mark.parametrize("second", ["same", "1", "0"])
def test_bi07d_header_twice(gateway: Served, second: str) -> None:
    text = head()
    length = str(len(text))
    headers = [(HEADER, length), (HEADER.title(), length if second == "same" else second)]
    refused(http(gateway, ADD, text + FOUR, headers), 400, "more than once")


@pytest.mark.parametrize(
    "size", [-1, -(2**63), True, False, "16", 16.0, None, [16], {}, 2**64], ids=repr
)
def test_bi07e_binary_data_size_that_is_none(gateway: Served, size: Any) -> None:
    refused(binary(gateway, head(size), FOUR), 400)


@pytest.mark.parametrize("size", [0, 1, 15, 17, 32, 2**31, 2**63])
def test_bi07f_binary_data_size_that_does_not_fit(gateway: Served, size: int) -> None:
    refused(binary(gateway, head(size), FOUR), 400)


def test_bi07g_bytes_behind_the_last_tensor(gateway: Served) -> None:
    for _ in range(2):  # the second time the head is known
        refused(binary(gateway, head(), FOUR + b"\0"), 400, "1 bytes more")
        assert binary(gateway, head(), FOUR).ok
    refused(binary(gateway, head(), FOUR[:-1]), 400)


def test_bi07h_binary_size_without_the_header(gateway: Served) -> None:
    refused(http(gateway, ADD, head() + FOUR), 400)
    refused(http(gateway, ADD, head()), 400, "0 bytes")


def test_bi07i_sizes_shared_out_wrongly(gateway: Served) -> None:
    a = tensor(shape=[1, 2], name="a", parameters={"binary_data_size": 16})
    b = tensor(shape=[1, 2], name="b", datatype="INT64", parameters={"binary_data_size": 8})
    text = json.dumps({"inputs": [a, b]}).encode()
    reply = http(gateway, "/v2/models/pair/infer", text + bytes(24), {HEADER: str(len(text))})
    refused(reply, 400, "bytes")


@pytest.mark.parametrize("size", [0, 1, 15, 17])
def test_bi07j_raw_body_of_another_size(gateway: Served, size: int) -> None:
    refused(http(gateway, ADD, bytes(size), {HEADER: "0"}), 400)


def test_bi07k_raw_body_for_several_inputs(gateway: Served) -> None:
    refused(http(gateway, "/v2/models/pair/infer", bytes(24), {HEADER: "0"}), 400, "only input")


@pytest.mark.parametrize("value", [1, "true", None, [], 0.0], ids=repr)
def test_bi07l_binary_output_flags_that_are_none(gateway: Served, value: Any) -> None:
    body = {"inputs": [tensor()], "parameters": {"binary_data_output": value}}
    refused(http(gateway, ADD, json.dumps(body).encode()), 400)
    body = {"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"binary_data": value}}]}
    refused(http(gateway, ADD, json.dumps(body).encode()), 400)


def test_bi07m_known_head_with_other_data_is_checked_again(gateway: Served) -> None:
    text = head()
    assert binary(gateway, text, FOUR).ok
    request = http_bytes(ADD, text + FOUR[:8], {HEADER: str(len(text))})
    refused(raw(gateway, request)[0], 400)


@pytest.mark.parametrize("data", [b"\0\2", b"\xff\0"])
def test_bi07n_booleans_are_0_or_1(gateway: Served, data: bytes) -> None:
    one = tensor(shape=[1, 2], datatype="BOOL", parameters={"binary_data_size": 2})
    text = json.dumps({"inputs": [one]}).encode()
    headers = {HEADER: str(len(text))}
    assert http(gateway, "/v2/models/echo_bool/infer", text + b"\0\1", headers).ok
    refused(http(gateway, "/v2/models/echo_bool/infer", text + data, headers), 400, "BOOL")
