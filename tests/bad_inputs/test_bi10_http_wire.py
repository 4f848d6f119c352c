"""BI-10, HTTP/1.1 on the wire: heads, framing, pipelining, other protocols on the port."""

from __future__ import annotations

import json
import struct

import pytest

from tests.bad_inputs.attack import (
    ADD,
    MIB,
    Answers,
    Served,
    connected,
    http,
    http_bytes,
    raw,
    refused,
    send,
    tensor,
)

GOOD = json.dumps({"inputs": [tensor()]}).encode()
BAD = b'{"inputs":[]}'
V1 = "/v1/models/add:predict"
V1_BODY = b'{"instances":[[1,2,3,4]]}'
GENERATE = "/v2/models/add/generate"
GENERATE_BODY = b'{"x":[[1,2,3,4]]}'
TARGETS = [ADD, V1, GENERATE]


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "5"), ("transfer-encoding", "chunked")],
        [("transfer-encoding", "chunked"), ("content-length", "5")],
        [("content-length", "5"), ("content-length", "5")],
        [("content-length", "5"), ("content-length", "6")],
        [("content-length", "5, 5")],
        [("transfer-encoding", "gzip")],
        [("transfer-encoding", "chunked, gzip")],
        [("transfer-encoding", "xchunked")],
    ],
    ids=str,
)
@pytest.mark.parametrize("target", TARGETS)
def test_bi10o_framing_said_twice(
    gateway: Served, target: str, headers: list[tuple[str, str]]
) -> None:
    """What a proxy may read otherwise than we do: request smuggling."""
    data = http_bytes(target, headers=headers, length=False) + b"0\r\n\r\n" + http_bytes(ADD, GOOD)
    replies = raw(gateway, data)
    assert len(replies) == 1
    refused(replies[0], 400)


@pytest.mark.parametrize("length", ["-1", "+5", "abc", "1e2", "0x5", "9" * 30, "5 5", "", "5;"])
@pytest.mark.parametrize("target", TARGETS)
def test_bi10p_content_length_that_is_none(gateway: Served, target: str, length: str) -> None:
    data = http_bytes(target, headers={"content-length": length}, length=False) + GOOD
    refused(raw(gateway, data)[0], 400)


def test_bi10q_giant_targets(gateway: Served) -> None:
    for size in (70_000, MIB):
        refused(raw(gateway, http_bytes("/v2/models/" + "x" * size + "/infer", GOOD))[0], 413)
    reply = http(gateway, "/v2/models/" + "x" * 60_000 + "/infer", GOOD)
    refused(reply, 404)


def test_bi10r_giant_heads(gateway: Served) -> None:
    for headers in (
        [("x-large", "x" * 70_000)],
        [("x" * 70_000, "1")],
        [(f"x-{n}", "1") for n in range(5000)],
        [("a", "")] * 3000,
    ):
        refused(raw(gateway, http_bytes(ADD, GOOD, headers))[0], 413, "max_header_bytes")
        refused(
            raw(gateway, http_bytes(GENERATE, GENERATE_BODY, headers))[0], 413, "max_header_bytes"
        )


POST = b"POST " + ADD.encode() + b" HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "opening",
    [
        b"GET /",
        POST + b"x-endless: ",
        POST + b"x-endless",
        POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx-trailer: ",
    ],
)
def test_bi10s_a_head_without_an_end(gateway: Served, opening: bytes) -> None:
    """One header of any length would be kept by the parser until it is whole."""
    gateway.ask("reset")
    before = gateway.ask()["memory"]
    with connected(gateway) as sock:
        send(sock, opening)
        for _ in range(64):
            send(sock, b"x" * MIB)
        try:
            reply = Answers(sock).next()
        except ConnectionResetError:
            reply = None
    if reply is not None:
        refused(reply, 413)
    assert gateway.ask()["peak"] - before < 16 * MIB
    assert gateway.quiet()


@pytest.mark.parametrize(
    "data",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508),
        b"\0" * 100, b"hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n", b"GET / HTTP/1.1\r\nx: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", b"GET / HTTP/1.1\nhost: a\n\n",
        b"get / http/1.1\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", b"SSH-2.0-x\r\n", b"*1\r\n$4\r\nPING\r\n",
        b"GET http://[::1/ HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET \xff\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
    ids=lambda d: repr(d[:20]),
)  # fmt: skip
def test_bi10t_other_protocols_and_nonsense(gateway: Served, data: bytes) -> None:
    refused(raw(gateway, data)[0], 400)


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize(("target", "body"), [(ADD, GOOD), (GENERATE, GENERATE_BODY)])
def test_bi10u_upgrades(gateway: Served, target: str, body: bytes, protocol: str) -> None:
    """Ignored, as a server may; Java's client sends one with its first request."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": ""}
    data = http_bytes(target, body, headers) + http_bytes(target, body, {"connection": "close"})
    with connected(gateway) as sock:
        send(sock, data)
        assert [reply.status for reply in Answers(sock).all()] == [200, 200]


def test_bi10v_folded_headers_do_not_become_two(gateway: Served) -> None:
    data = POST + b"host: a\r\nx-request-id: a\r\n b: c\r\n"
    data += b"content-length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
    (reply,) = raw(gateway, data)
    assert set(reply.headers) <= {
        "content-type", "content-length", "connection", "x-request-id", "x-sluice-version",
        "x-sluice-route",
    }  # fmt: skip


def test_bi10w_pipelining_keeps_the_order(gateway: Served) -> None:
    """Good and bad, quick and slow, ours and ASGI's: answered one by one, as they came."""
    slow = json.dumps({"inputs": [tensor([0.1, 0, 0, 0])]}).encode()
    kinds = [
        (http_bytes("/v2/models/slow/infer", slow), 200),
        (http_bytes(ADD, BAD), 400),
        (http_bytes(V1, V1_BODY), 200),
        (http_bytes(GENERATE, GENERATE_BODY), 200),
        (http_bytes("/nowhere", method="GET"), 404),
        (http_bytes(ADD, GOOD), 200),
        (http_bytes(ADD, b"{"), 400),
        (http_bytes("/v2/models/nobody/infer", GOOD), 404),
        (http_bytes("/v2/health/live", method="GET"), 200),
    ]
    order = kinds * 3
    with connected(gateway) as sock:
        send(sock, b"".join(data for data, _ in order))
        answers = Answers(sock)
        statuses = []
        for _ in order:
            reply = answers.next()
            assert reply is not None
            statuses.append(reply.status)
    assert statuses == [status for _, status in order]


def test_bi10x_pipelining_with_a_broken_request_in_the_middle(gateway: Served) -> None:
    """Those before it are answered, then the refusal, and nothing behind it."""
    slow = http_bytes(
        "/v2/models/slow/infer", json.dumps({"inputs": [tensor([0.2, 0, 0, 0])]}).encode()
    )
    good = http_bytes(ADD, GOOD)
    for broken in (
        b"NONSENSE\r\n\r\n",
        http_bytes(ADD, headers={"content-length": "x"}, length=False),
    ):
        for first in (slow, http_bytes("/v2/models/slow/generate", b'{"x":[[0.2,0,0,0]]}')):
            with connected(gateway) as sock:
                send(sock, first + good + broken + good * 3)
                replies = Answers(sock).all()
            assert [reply.status for reply in replies] == [200, 200, 400]
            assert replies[-1].headers["connection"] == "close"


def test_bi10y_a_thousand_bad_ones_in_one_go(gateway: Served) -> None:
    """Each is answered at once: they must not pile up as nested calls."""
    first = http_bytes(
        "/v2/models/slow/infer", json.dumps({"inputs": [tensor([0.1, 0, 0, 0])]}).encode()
    )
    with connected(gateway) as sock:
        send(
            sock,
            first + http_bytes(ADD, BAD) * 1000 + http_bytes(ADD, GOOD, {"connection": "close"}),
        )
        replies = Answers(sock).all()
    assert [reply.status for reply in replies] == [200] + [400] * 1000 + [200]


def test_bi10z_pipelined_requests_of_a_client_that_leaves(gateway: Served) -> None:
    before = gateway.ask()["executions"]["slow"]
    slow = http_bytes(
        "/v2/models/slow/infer", json.dumps({"inputs": [tensor([0.2, 0, 0, 0])]}).encode()
    )
    with connected(gateway) as sock:
        send(sock, slow * 50)
        sock.recv(1)
    gateway.quiet()
    assert gateway.ask()["executions"]["slow"] - before <= 4


def test_bi10aa_reset_in_the_middle_of_a_body(gateway: Served) -> None:
    length = {"content-length": str(len(GENERATE_BODY))}
    data = http_bytes(GENERATE, headers=length, length=False)
    with connected(gateway) as sock:
        send(sock, data + GENERATE_BODY[:-3])
        sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: close with a reset


@pytest.mark.parametrize(
    "method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "PURGE"]
)
def test_bi10ab_other_methods(gateway: Served, method: str) -> None:
    with connected(gateway) as sock:
        send(sock, http_bytes(ADD, method=method))
        assert sock.recv(100).split()[1] in (b"404", b"405")
