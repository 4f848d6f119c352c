"""KServe V1 on the wire: ``:predict`` among other requests of its connection, and its refusals."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.conformance.slow import SlowModel
from tests.conformance.test_http_connections import Connection, body_of, check, chunked, get, infer
from tests.support.gateway import GatewayProcess, wait_until

ADD = "/v1/models/add:predict"
ROW = b'{"instances": [[1, 2, 3, 4]]}'
SUMS = {"predictions": [[2, 3, 4, 5]]}


@pytest.fixture
def connection(http_gateway: GatewayProcess) -> Iterator[Connection]:
    connection = Connection(http_gateway)
    yield connection
    connection.close()


def predict(body: bytes, *headers: str, path: str = ADD, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_pipelined_with_requests_of_all_kinds(connection: Connection) -> None:
    kinds = [
        (predict(ROW), 200),
        (infer(body_of(1)), 200),
        (predict(gzip.compress(ROW), "Content-Encoding: gzip"), 200),
        (predict(b"{"), 400),
        (get("/v2/health/live"), 200),
        (chunked(ROW, 3, ADD), 200),
        (chunked(gzip.compress(ROW), 3, ADD, "Content-Encoding: gzip"), 200),
        (predict(ROW[:-1], "Content-Encoding: gzip"), 400),
        (predict(ROW, "x-request-timeout-ms: soon"), 400),
        (predict(ROW, path="/v1/models/nothing:predict"), 404),
        (predict(b" " * 300_000 + ROW), 200),
    ]
    for _ in range(3):
        connection.send(*[data for data, _ in kinds])
        answers = [connection.read() for _ in kinds]
        assert [status for status, _, _ in answers] == [status for _, status in kinds]
        check(answers.pop(1), 1)
        answers.pop(3)
        for status, headers, body in answers:
            if status == 200:
                assert body == SUMS
                assert headers["x-sluice-version"] == "1"
            else:
                assert body.keys() == {"error"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/%61dd:predict", "/v1/models/add%3Apredict", "/v1/models/add%3a%70redict",
        ADD + "?a=b", "http://here:80" + ADD,
    ],
)  # fmt: skip
def test_paths_that_mean_the_same(connection: Connection, path: str) -> None:
    connection.send(predict(ROW, path=path))
    assert connection.read()[2] == SUMS


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/add:predict:predict", 404),
        ("/v1/models/:predict", 405),
        ("/v1/models/a%2Fb:predict", 404),
        ("/v1/models/add:explain", 405),
        ("/v1/models/add:predictor", 405),
        ("/v1/models/add", 405),
        ("/v1/models/add/versions/1:predict", 404),
        ("/v1/models/add:predict/", 307),
    ],
)
def test_paths_that_mean_something_else(connection: Connection, path: str, status: int) -> None:
    connection.send(predict(ROW, path=path), predict(ROW))
    assert connection.read()[0] == status
    assert connection.read()[2] == SUMS


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_other_methods(connection: Connection, method: str) -> None:
    connection.send(predict(ROW, method=method), predict(ROW))
    status, headers, body = connection.read()
    assert status == 405 and method in body["error"]
    assert headers["allow"] == "POST"
    assert connection.read()[2] == SUMS


def test_headers_of_an_answer(connection: Connection) -> None:
    connection.send(
        predict(ROW, "x-request-id: seven"),
        predict(b"{}", "x-request-id: eight"),
        predict(ROW, "Connection: close"),
    )
    assert connection.read()[1]["x-request-id"] == "seven"
    assert connection.read()[1]["x-request-id"] == "eight"
    assert connection.read()[1]["connection"] == "close"
    assert connection.closed()


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        (("Content-Length: 99999999999",), 413, "limits.max_message_bytes"),
        (("Content-Length: 99999999999", "Expect: 100-continue"), 413, "max_message_bytes"),
        (("Content-Length: 9", "x-request-timeout-ms: 1", "x-request-timeout-ms: 2"), 400, "once"),
        (("Content-Length: 9", "Content-Encoding: gzip", "Content-Encoding: gzip"), 400, "once"),
    ],
)
def test_refused_before_the_body_is_whole(
    connection: Connection, headers: tuple[str, ...], status: int, says: str
) -> None:
    """Behind what was asked before, and then the connection ends."""
    lines = [f"POST {ADD} HTTP/1.1", "Host: here", *headers, "", ""]
    connection.send(predict(ROW), "\r\n".join(lines).encode())
    assert connection.read()[2] == SUMS
    found, given, body = connection.read()
    assert (found, given["connection"]) == (status, "close")
    assert says in body["error"]
    assert connection.closed()


def test_answers_are_compressed_on_request(http: httpx.Client) -> None:
    rows = [[float(value)] * 4 for value in range(2000)]
    for asked, given in (("gzip", "gzip"), ("br", None)):
        answer = http.post(ADD, json={"instances": rows}, headers={"accept-encoding": asked})
        assert answer.headers.get("content-encoding") == given
        assert answer.json()["predictions"] == [[value + 1 for value in row] for row in rows]


def test_quick_ones_wait_behind_a_slow_one(slow_http: SlowModel) -> None:
    connection = Connection(slow_http.gateway)
    loops = slow_http.loops(0.1)
    body = json.dumps({"instances": [loops]}).encode()
    connection.send(
        predict(body, path=f"/v1/models/{slow_http.name}:predict"), predict(ROW), infer(b"{}")
    )
    assert connection.read()[2] == {"predictions": [loops]}
    assert connection.read()[2] == SUMS
    assert connection.read()[0] == 400
    connection.close()


def test_pipelined_ones_of_a_lost_connection_are_not_executed(slow_http: SlowModel) -> None:
    busy = slow_http.occupy(0.3)
    one = predict(b'{"inputs": [1]}', path=f"/v1/models/{slow_http.name}:predict")
    connection = Connection(slow_http.gateway)
    connection.send(one, one, get("/v2/health/live"), one)
    slow_http.wait_pending(2)
    connection.close()
    slow_http.wait_pending(1)
    busy.join()
    gateway = slow_http.gateway
    wait_until(lambda: gateway.get("/admin/v1/status")["in_flight"] == 0, "no requests")
    assert slow_http.executions() == 1
