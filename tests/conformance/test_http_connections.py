"""HTTP/1.1 on the wire: what connections, pipelining and odd bodies do."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conformance.slow import SlowModel
from tests.support.gateway import GatewayProcess, wait_until


class Connection:
    """A raw connection. `read` takes one answer off it."""

    def __init__(self, gateway: GatewayProcess) -> None:
        url = urlsplit(gateway.http)
        assert url.hostname is not None and url.port is not None
        self.socket = socket.create_connection((url.hostname, url.port), timeout=30)
        self.file = self.socket.makefile("rb")

    def send(self, *requests: bytes) -> None:
        self.socket.sendall(b"".join(requests))

    def read(self, method: str = "GET") -> tuple[int, dict[str, str], Any]:
        """Status, headers and body, JSON parsed."""
        answer = HTTPResponse(Kept(self.file), method=method)  # type: ignore[arg-type]
        answer.begin()
        body: Any = answer.read()
        headers = {key.lower(): value for key, value in answer.getheaders()}
        if headers.get("content-type") == "application/json" and body:
            body = json.loads(body)
        return answer.status, headers, body

    def closed(self) -> bool:
        """Whether the gateway closes, now that everything is read."""
        return self.file.read(1) == b""

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Kept:
    """Lets several HTTPResponses read one after another from a file."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def makefile(self, mode: str) -> Kept:
        return self

    def close(self) -> None: ...

    def flush(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def connection(http_gateway: GatewayProcess) -> Iterator[Connection]:
    connection = Connection(http_gateway)
    yield connection
    connection.close()


def body_of(value: float, request_id: str = "") -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value] * 4}
    return json.dumps({"id": request_id, "inputs": [tensor]}).encode()


def infer(body: bytes, *headers: str, model: str = "add", version: str = "1.1") -> bytes:
    lines = [
        f"POST /v2/models/{model}/infer HTTP/{version}", "Host: here",
        f"Content-Length: {len(body)}", *headers, "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + body


def get(path: str, *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: here", *headers, "", ""]).encode()


def check(answer: tuple[int, dict[str, str], Any], value: float, request_id: str = "") -> None:
    status, _, body = answer
    assert status == 200, body
    assert body.get("id", "") == request_id
    assert body["outputs"][0]["data"] == [value + 1] * 4


# --- keep-alive


def test_many_requests_on_one_connection(connection: Connection) -> None:
    for value in range(50):
        connection.send(infer(body_of(value)))
        check(connection.read(), value)
        connection.send(get("/v2/health/live"))
        assert connection.read()[2] == {"live": True}


def test_connection_close(connection: Connection) -> None:
    connection.send(infer(body_of(1), "Connection: close"))
    answer = connection.read()
    check(answer, 1)
    assert answer[1]["connection"] == "close"
    assert connection.closed()


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)])
def test_http_1_0(connection: Connection, headers: tuple[str, ...]) -> None:
    """The connection ends with the answer, whatever is asked for."""
    connection.send(infer(body_of(1), *headers, version="1.0"))
    check(connection.read(), 1)
    assert connection.closed()


def test_http_1_0_elsewhere(connection: Connection) -> None:
    connection.send(get("/v2/health/live", version="1.0"))
    assert connection.read()[2] == {"live": True}
    assert connection.closed()


def test_an_error_keeps_the_connection(connection: Connection) -> None:
    for body in (b"{", b"[]", b"", b'{"inputs": []}'):
        connection.send(infer(body))
        status, _, answer = connection.read()
        assert status == 400 and answer["error"]
    connection.send(infer(body_of(1), model="nothing"))
    assert connection.read()[0] == 404
    connection.send(infer(body_of(1)))
    check(connection.read(), 1)


def test_absolute_target(connection: Connection) -> None:
    """Every server has to take it (RFC 9112, 3.2.2)."""
    connection.send(infer(body_of(3)).replace(b"POST /", b"POST http://here:80/"))
    check(connection.read(), 3)
    connection.send(get("http://here/v2/health/live"))
    assert connection.read()[2] == {"live": True}


# --- bodies


def test_expect_100_continue(connection: Connection) -> None:
    request = infer(body_of(1), "Expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    connection.send(head + b"\r\n\r\n")
    assert connection.file.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert connection.file.readline() == b"\r\n"
    connection.send(body)
    check(connection.read(), 1)


def test_expect_100_continue_elsewhere(connection: Connection) -> None:
    body = b'{"x": [[1, 2, 3, 4]]}'
    connection.send(
        b"POST /v2/models/add/generate HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    assert connection.file.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert connection.file.readline() == b"\r\n"
    connection.send(body)
    assert connection.read()[2]["y"] == [2, 3, 4, 5]


def chunked(body: bytes, size: int, path: str = "/v2/models/add/infer", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: here", "Transfer-Encoding: chunked", *headers, "", ""]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return "\r\n".join(lines).encode() + b"".join(
        b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""]
    )


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunked_body(connection: Connection, size: int) -> None:
    connection.send(chunked(body_of(5, "me"), size))
    check(connection.read(), 5, "me")
    connection.send(chunked(b'{"instances": [[1, 2, 3, 4]]}', size, "/v1/models/add:predict"))
    assert connection.read()[2] == {"predictions": [[2, 3, 4, 5]]}
    connection.send(chunked(b'{"x": [[1, 2, 3, 4]]}', size, "/v2/models/add/generate"))
    assert connection.read()[2]["y"] == [2, 3, 4, 5]


def test_chunked_binary_body(connection: Connection) -> None:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [1, 4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 16},
                }
            ]
        }
    ).encode()
    body = head + struct.pack("<4f", 1, 2, 3, 4)
    header = f"Inference-Header-Content-Length: {len(head)}"
    connection.send(chunked(body, 10, "/v2/models/add/infer", header))
    status, _, answer = connection.read()
    assert status == 200
    assert answer["outputs"][0]["data"] == [2, 3, 4, 5]


def test_body_byte_by_byte(connection: Connection) -> None:
    for byte in infer(body_of(2)):
        connection.send(bytes([byte]))
    check(connection.read(), 2)


# --- pipelining


def test_pipelined_answers_are_in_order(connection: Connection) -> None:
    requests = []
    for value in range(100):
        requests.append(infer(body_of(value, f"r{value}")))
        if value % 7 == 0:
            requests.append(get("/v2/models/add/ready"))
        if value % 11 == 0:
            requests.append(infer(b"{"))
    connection.send(*requests)
    for value in range(100):
        check(connection.read(), value, f"r{value}")
        if value % 7 == 0:
            assert connection.read()[2] == {"name": "add", "ready": True}
        if value % 11 == 0:
            assert connection.read()[0] == 400


def test_pipelined_behind_a_slow_one(slow_http: SlowModel) -> None:
    """The quick ones wait: an answer cannot overtake another on one connection."""
    connection = Connection(slow_http.gateway)
    loops = json.dumps(slow_http.body(slow_http.loops(0.3))).encode()
    connection.send(
        infer(loops, model=slow_http.name),
        get("/v2/health/live"),
        infer(body_of(1)),
        infer(body_of(2), model="nothing"),
        get("/nothing"),
        infer(body_of(3)),
    )
    assert connection.read()[2]["model_name"] == slow_http.name
    assert connection.read()[2] == {"live": True}
    check(connection.read(), 1)
    assert connection.read()[0] == connection.read()[0] == 404
    check(connection.read(), 3)
    connection.close()


def test_thousands_of_bad_requests_behind_a_slow_one(slow_http: SlowModel) -> None:
    """They are answered on the spot, one after the other, which must not nest."""
    connection = Connection(slow_http.gateway)
    loops = json.dumps(slow_http.body(slow_http.loops(0.2))).encode()
    bad = infer(b"{}") * 3000
    connection.send(infer(loops, model=slow_http.name) + bad)
    assert connection.read()[0] == 200
    assert {connection.read()[0] for _ in range(3000)} == {400}
    connection.close()


def test_broken_request_behind_good_ones(connection: Connection) -> None:
    """What came before it is answered first; then the connection ends."""
    connection.send(infer(body_of(1)), infer(body_of(2)), b"NONSENSE\r\n\r\n")
    check(connection.read(), 1)
    check(connection.read(), 2)
    status, headers, body = connection.read()
    assert status == 400 and body["error"]
    assert headers["connection"] == "close"
    assert connection.closed()


# --- clients that go away


def test_queued_requests_of_a_lost_connection_are_not_executed(slow_http: SlowModel) -> None:
    busy = slow_http.occupy(0.4)
    body = json.dumps(slow_http.body(1)).encode()
    connections = [Connection(slow_http.gateway) for _ in range(5)]
    for each in connections:
        each.send(infer(body, model=slow_http.name))
    slow_http.wait_pending(6)
    for each in connections:
        each.close()
    slow_http.wait_pending(1)
    busy.join()
    assert slow_http.executions() == 1


@pytest.mark.parametrize("behind", ["infer", "get"])
def test_pipelined_requests_of_a_lost_connection_are_not_executed(
    slow_http: SlowModel, behind: str
) -> None:
    """The one that waits in the model's queue is not the last of its connection."""
    busy = slow_http.occupy(0.4)
    body = json.dumps(slow_http.body(1)).encode()
    one = infer(body, model=slow_http.name)
    connection = Connection(slow_http.gateway)
    connection.send(one, one, one if behind == "infer" else get("/v2/health/live"))
    slow_http.wait_pending(2)
    connection.close()
    slow_http.wait_pending(1)
    busy.join()
    time.sleep(0.1)
    assert slow_http.executions() == 1


def test_generate_request_of_a_lost_connection_is_not_executed(slow_http: SlowModel) -> None:
    busy = slow_http.occupy(0.4)
    body = b'{"loops": [1]}'
    connection = Connection(slow_http.gateway)
    connection.send(
        f"POST /v2/models/{slow_http.name}/generate HTTP/1.1\r\nHost: here\r\n".encode()
        + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    slow_http.wait_pending(2)
    connection.close()
    slow_http.wait_pending(1)
    busy.join()
    assert slow_http.executions() == 1


def test_running_request_of_a_lost_connection_harms_nobody(slow_http: SlowModel) -> None:
    connection = Connection(slow_http.gateway)
    loops = json.dumps(slow_http.body(slow_http.loops(0.3))).encode()
    connection.send(infer(loops, model=slow_http.name))
    slow_http.wait_pending(1)
    connection.close()
    slow_http.request(1)
    assert slow_http.executions() == 2


def test_lost_connections_are_counted_as_cancelled(slow_http: SlowModel) -> None:
    busy = slow_http.occupy(0.4)
    body = json.dumps(slow_http.body(1)).encode()
    connection = Connection(slow_http.gateway)
    connection.send(infer(body, model=slow_http.name))
    slow_http.wait_pending(2)
    connection.close()
    busy.join()
    line = (
        f'nv_inference_request_failure{{model="{slow_http.name}",reason="CANCELED",version="1"}} 1'
    )
    wait_until(lambda: line in slow_http.gateway.get("/metrics"), "the cancellation to be counted")


def test_nothing_is_left_in_flight(http_gateway: GatewayProcess) -> None:
    """After all that was done to it."""
    wait_until(lambda: http_gateway.get("/admin/v1/status")["in_flight"] == 0, "no requests", 5)
