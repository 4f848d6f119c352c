"""BI-10, bodies over HTTP: too large, packed, in crumbs."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import zlib
from functools import cache

import pytest

from tests.bad_inputs.attack import (
    ADD,
    LIMIT,
    MIB,
    Answers,
    Served,
    chunked,
    connected,
    http,
    http_bytes,
    infer_json,
    raw,
    refused,
    send,
    tensor,
)
from tests.support.gateway import wait_until

GOOD = json.dumps({"inputs": [tensor()]}).encode()
V1 = "/v1/models/add:predict"
TARGETS = [ADD, V1, "/v2/repository/index"]


def packed(body: bytes, encoding: str) -> bytes:
    return gzip.compress(body) if encoding == "gzip" else zlib.compress(body)


@cache
def bomb(size: int, encoding: str = "gzip") -> bytes:
    """`size` zeros, a thousandth of that on the wire; made in pieces."""
    engine = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    parts = [engine.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join(parts) + engine.flush()


@pytest.mark.parametrize("target", [ADD, V1])
@pytest.mark.parametrize("size", [LIMIT + 1, 2**31, 2**63 - 1])
def test_bi10a_too_large_by_content_length(gateway: Served, target: str, size: int) -> None:
    """Refused before a byte of the body came."""
    data = http_bytes(target, headers={"content-length": str(size)}, length=False)
    refused(raw(gateway, data)[0], 413, "max_message_bytes")


@pytest.mark.parametrize("target", TARGETS)
def test_bi10b_too_large_in_chunks(gateway: Served, target: str) -> None:
    gateway.ask("reset")
    before = gateway.ask()["memory"]
    data = http_bytes(target, headers={"transfer-encoding": "chunked"}, length=False)
    with connected(gateway) as sock:
        send(sock, data)
        piece = b"%x\r\n%s\r\n" % (MIB, bytes(MIB))
        for _ in range(LIMIT // MIB + 1):
            send(sock, piece)
        reply = Answers(sock).next()
    assert reply is not None
    refused(reply, 413, "max_message_bytes")
    assert gateway.ask()["peak"] - before < 4 * LIMIT


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bi10c_bombs(gateway: Served, target: str, encoding: str) -> None:
    gateway.ask("reset")
    before = gateway.ask()["memory"]
    body = bomb(256 * MIB, encoding)
    assert len(body) < MIB
    refused(http(gateway, target, body, {"content-encoding": encoding}), 413, "max_message_bytes")
    assert gateway.ask()["peak"] - before < 6 * LIMIT


@pytest.mark.parametrize(
    "encoding",
    ["gzip, gzip", "gzip,deflate", "deflate, gzip", "identity, gzip", "br", "zstd", "compress",
    "x-gzip",
     "gzip;q=1", "x" * 1000, ",", "\xff"],
)  # fmt: skip
def test_bi10d_encodings_that_are_stacked_or_unknown(gateway: Served, encoding: str) -> None:
    body = gzip.compress(gzip.compress(GOOD))
    for target in TARGETS:
        reply = http(gateway, target, body, {"content-encoding": encoding})
        refused(reply, 501, "Content-Encoding")


def test_bi10e_encoding_given_twice(gateway: Served) -> None:
    headers = [("content-encoding", "gzip"), ("content-encoding", "gzip")]
    body = gzip.compress(gzip.compress(GOOD))
    for target in (ADD, V1):
        refused(http(gateway, target, body, headers), 400, "more than once")
    refused(http(gateway, TARGETS[2], body, headers), 400)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bi10f_packed_and_broken(gateway: Served, encoding: str) -> None:
    whole = packed(GOOD, encoding)
    wrong_sum = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    broken = [
        b"",
        whole[:1],
        whole[:10],
        whole[:-1],
        whole + b"\0",
        whole + whole,
        GOOD,
        wrong_sum,
        b"\0" * 50,
    ]
    for body in broken:
        refused(http(gateway, ADD, body, {"content-encoding": encoding}), 400)
    assert http(gateway, ADD, whole, {"content-encoding": encoding}).ok


def test_bi10g_a_large_packed_body_that_is_cut_off(gateway: Served) -> None:
    """Large ones are unpacked in a thread; errors come back from there too."""
    import random

    noise = random.Random(1).randbytes(MIB)
    refused(http(gateway, ADD, gzip.compress(noise, 1)[:-9], {"content-encoding": "gzip"}), 400)
    refused(http(gateway, ADD, gzip.compress(noise, 1), {"content-encoding": "gzip"}), 400, "JSON")


def test_bi10h_a_hundred_thousand_chunks_of_one_byte(gateway: Served) -> None:
    body = b" " * 100_000 + GOOD
    data = http_bytes(ADD, headers={"transfer-encoding": "chunked"}, length=False)
    gateway.ask("reset")
    before = gateway.ask()["memory"]
    (reply,) = raw(gateway, data + chunked(body, 1))
    assert reply.ok
    assert gateway.ask()["peak"] - before < 32 * MIB


def test_bi10i_every_byte_in_a_packet_of_its_own(gateway: Served) -> None:
    data = http_bytes(ADD, GOOD)
    with connected(gateway) as sock:
        for at in range(len(data)):
            sock.sendall(data[at : at + 1])
        reply = Answers(sock).next()
    assert reply is not None and reply.ok


@pytest.mark.parametrize(
    "chunk", [b"zz\r\n", b"-1\r\n", b"+5\r\n", b"1" * 20 + b"\r\n", b"5\r\nabc\r\n", b"\r\n"]
)
@pytest.mark.parametrize("target", TARGETS)
def test_bi10j_chunks_that_are_none(gateway: Served, target: str, chunk: bytes) -> None:
    data = http_bytes(target, headers={"transfer-encoding": "chunked"}, length=False)
    refused(raw(gateway, data + chunk + b"0\r\n\r\n" * 3)[0], 400)


@pytest.mark.parametrize("target", TARGETS)
def test_bi10ac_a_chunk_without_an_end(gateway: Served, target: str) -> None:
    data = http_bytes(target, headers={"transfer-encoding": "chunked"}, length=False)
    refused(raw(gateway, data + b"ffffffffffffff\r\n" + bytes(LIMIT + 1))[0], 413)


def test_bi10k_expectations(gateway: Served) -> None:
    """The answer to too much comes in place of 100-continue."""
    headers = {"expect": "100-continue", "content-length": str(LIMIT + 1)}
    refused(raw(gateway, http_bytes(ADD, headers=headers, length=False))[0], 413)
    with connected(gateway) as sock:
        send(
            sock,
            http_bytes(
                ADD,
                headers={"expect": "100-continue", "content-length": str(len(GOOD))},
                length=False,
            ),
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        send(sock, GOOD)
        reply = Answers(sock).next()
    assert reply is not None and reply.ok


STAGES = [1, 20, 60, -len(GOOD) - 1, -len(GOOD), -len(GOOD) + 5, -1, None]


@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_bi10l_closed_early_at_every_stage(gateway: Served, stage: int | None, reset: bool) -> None:
    for data in (
        http_bytes(ADD, GOOD),
        http_bytes("/v1/models/slow:predict", b'{"instances":[[0.05,0,0,0]]}'),
        http_bytes("/v2/models/slow/generate", b'{"x":[[0.05,0,0,0]]}'),
        http_bytes(
            "/v2/models/slow/infer", json.dumps({"inputs": [tensor([0.05, 0, 0, 0])]}).encode()
        ),
        http_bytes(ADD, gzip.compress(bytes(100_000)), {"content-encoding": "gzip"}),
        http_bytes(ADD, headers={"transfer-encoding": "chunked"}, length=False) + chunked(GOOD, 7),
    ):
        with connected(gateway) as sock:
            send(sock, data[:stage])
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("target", [ADD, V1])
def test_bi10m_bodies_cut_off_do_not_fill_the_gateway(gateway: Served, target: str) -> None:
    """What was received of a body that never ends is given back."""
    data = http_bytes(target, headers={"content-length": str(LIMIT)}, length=False) + bytes(MIB)
    with connected(gateway) as sock:
        send(sock, data)
        wait_until(lambda: gateway.ask()["body_bytes"] == MIB, "the bytes to be counted")
    for _ in range(20):
        with connected(gateway) as sock:
            send(sock, data)
    assert gateway.quiet()["body_bytes"] == 0
    gateway.ask("reset")
    before = gateway.ask()["memory"]
    for _ in range(20):
        head = http_bytes(target, headers={"transfer-encoding": "chunked"}, length=False)
        refused(raw(gateway, head + b"%x\r\n" % MIB + bytes(MIB) + b"\r\nzz\r\n")[0], 400)
    assert gateway.quiet()["body_bytes"] == 0
    assert gateway.ask()["peak"] - before < 32 * MIB


def test_bi10n_a_body_for_a_route_that_wants_none(gateway: Served) -> None:
    data = http_bytes("/v2/health/live", bytes(MIB), method="GET")
    (reply,) = raw(gateway, data)
    assert reply.ok
    assert infer_json(gateway, GOOD).ok
