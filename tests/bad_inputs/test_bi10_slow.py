"""BI-10, those who take their time: slow senders, slow readers, idle ones."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest

from tests.bad_inputs.attack import (
    ADD,
    MIB,
    Answers,
    Served,
    connected,
    good_http,
    http_bytes,
    refused,
    send,
    tensor,
)

GOOD = json.dumps({"inputs": [tensor()]}).encode()
GENERATE = "/v2/models/add/generate"


def drip(served: Served, start: bytes, piece: Callable[[int], bytes]) -> tuple[float, list[int]]:
    """Sends a little at a time until the gateway has had enough; seconds and statuses."""
    began = time.monotonic()
    with connected(served) as sock:
        send(sock, start)
        sock.settimeout(0.1)
        for turn in range(100):
            send(sock, piece(turn))
            try:
                if sock.recv(1, socket.MSG_PEEK) is not None:
                    break
            except TimeoutError:
                pass
        sock.settimeout(10)
        replies = Answers(sock).all()
    for reply in replies:
        refused(reply, 408, "did not arrive within")
    return time.monotonic() - began, [reply.status for reply in replies]


@pytest.mark.parametrize("target", [ADD, GENERATE])
def test_bi10ba_slow_heads(hasty: Served, target: str) -> None:
    start = b"POST " + target.encode() + b" HTTP/1.1\r\nhost: a\r\n"
    seconds, statuses = drip(hasty, start, lambda n: b"x-%d: 1\r\n" % n)
    assert 0.9 < seconds < 5
    assert statuses == [408]


@pytest.mark.parametrize("target", [ADD, GENERATE])
@pytest.mark.parametrize("chunked", [False, True])
def test_bi10bb_slow_bodies(hasty: Served, target: str, chunked: bool) -> None:
    headers = {"transfer-encoding": "chunked"} if chunked else {"content-length": "1000"}
    start = http_bytes(target, headers=headers, length=False)
    seconds, statuses = drip(hasty, start, lambda n: b"1\r\n \r\n" if chunked else b" ")
    assert 0.9 < seconds < 5
    assert statuses == [408]


def test_bi10bc_many_slow_senders_hinder_nobody(hasty: Served) -> None:
    socks = [socket.create_connection(hasty.http, 10) for _ in range(60)]
    try:
        for sock in socks:
            send(sock, b"POST /v2/models/add/infer HTTP/1.1\r\ncontent-length: 100\r\n")
        began = time.monotonic()
        for _ in range(20):
            assert good_http(hasty) == 200
        assert time.monotonic() - began < 3
    finally:
        for sock in socks:
            sock.close()


def test_bi10bd_idle_connections_are_closed(hasty: Served) -> None:
    with connected(hasty) as sock:
        began = time.monotonic()
        assert sock.recv(1) == b""
        assert 0.4 < time.monotonic() - began < 5
    with connected(hasty) as sock:
        send(sock, http_bytes(ADD, GOOD))
        answers = Answers(sock)
        assert answers.next() is not None
        assert answers.next() is None


def grow(megabytes: int, headers: dict[str, str] | None = None) -> bytes:
    """A request whose answer is binary and that large."""
    one = {"name": "x", "shape": [1], "datatype": "INT32", "data": [megabytes]}
    body = {"inputs": [one], "parameters": {"binary_data_output": True}}
    return http_bytes("/v2/models/grow/infer", json.dumps(body).encode(), headers or {})


def small_window(served: Served) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(20)
    sock.connect(served.http)
    return sock


def wait_for_connections(served: Served, count: int) -> None:
    end = time.monotonic() + 10
    while served.ask()["connections"] > count:
        assert time.monotonic() < end, served.ask()
        time.sleep(0.05)


@pytest.mark.parametrize("headers", [{}, {"connection": "close"}], ids=["keep-alive", "close"])
def test_bi10be_answers_that_nobody_reads(hasty: Served, headers: dict[str, str]) -> None:
    """The connection is closed after the same patience as with slow senders."""
    hasty.quiet()
    wait_for_connections(hasty, 0)
    before = hasty.ask()["memory"]
    socks = [small_window(hasty) for _ in range(4)]
    try:
        for sock in socks:
            send(sock, grow(16, headers))
        time.sleep(0.5)
        assert hasty.ask()["connections"] == 4
        wait_for_connections(hasty, 0)
        hasty.quiet()
        assert hasty.ask()["memory"] - before < 48 * MIB
    finally:
        for sock in socks:
            sock.close()


def test_bi10bf_small_answers_that_nobody_reads(hasty: Served) -> None:
    """Too small to fill any buffer of ours, and yet they do not stay for ever."""
    wait_for_connections(hasty, 0)
    socks = [small_window(hasty) for _ in range(10)]
    try:
        for sock in socks:
            send(sock, http_bytes(ADD, GOOD) * 20)
        wait_for_connections(hasty, 0)
    finally:
        for sock in socks:
            sock.close()


def test_bi10bg_large_answers_pipelined_and_not_read(hasty: Served) -> None:
    """A few kilobytes ask for gigabytes: the next is not begun while one waits to be read."""
    hasty.ask("reset")
    before = hasty.ask()["memory"]
    executed = hasty.ask()["executions"]["grow"]
    with small_window(hasty) as sock:
        send(sock, grow(8) * 200)
        time.sleep(0.7)
        state = hasty.ask()
        assert state["peak"] - before < 64 * MIB
        assert state["executions"]["grow"] - executed <= 3
    wait_for_connections(hasty, 0)


def test_bi10bh_large_answers_pipelined_and_read(hasty: Served) -> None:
    with connected(hasty) as sock:
        send(sock, grow(4) * 30)
        answers = Answers(sock)
        for _ in range(30):
            reply = answers.next()
            assert reply is not None and len(reply.body) > 4 * MIB
            time.sleep(0.01)


def test_bi10bi_too_many_connections(hasty: Served) -> None:
    wait_for_connections(hasty, 0)
    socks = [socket.create_connection(hasty.http, 10) for _ in range(100)]
    try:
        with connected(hasty) as sock:
            send(sock, http_bytes(ADD, GOOD))
            try:
                reply = Answers(sock).next()
            except ConnectionResetError:
                reply = None
            if reply is not None:
                refused(reply, 429, "max_connections")
    finally:
        for sock in socks:
            sock.close()
    wait_for_connections(hasty, 0)
