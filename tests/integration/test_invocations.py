"""MLflow's scoring protocol: by a real gateway, beside MLflow's own scoring server."""

from __future__ import annotations

import gzip
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import httpx
import numpy as np
import pandas as pd
import pytest

from tests.support import mlflow_models
from tests.support.gateway import GatewayProcess
from tests.support.mlflow_models import columns, save_function, save_sklearn, tensors
from tests.support.onnx_models import write_adding
from tests.support.scoring_server import ScoringServer

IRIS = {
    "sepal length (cm)": 5.1,
    "sepal width (cm)": 3.5,
    "petal length (cm)": 1.4,
    "petal width (cm)": 0.2,
}
NAMES, VALUES = list(IRIS), list(IRIS.values())


class Servers(NamedTuple):
    gateway: str
    mlflow: str


def mixed(data: Any, params: Any) -> Any:
    factor = (params or {}).get("factor", 1.0)
    return pd.DataFrame({"s": (data["a"] + data["b"]) * factor, "t": data["c"]})


def twice(data: Any, params: Any) -> Any:
    return data * 2


def added(data: Any, params: Any) -> Any:
    return {"y": data["a"] + data["b"]}


def save_models(folder: Path) -> dict[str, Path]:
    """One model of each kind of signature."""
    two = (-1, 2)
    return {
        "iris": save_sklearn(folder / "iris" / "1")[0],
        "mixed": save_function(
            folder / "mixed" / "1",
            mixed,
            columns(a="double", b="long", c="string"),
            columns(s="double", t="string"),
            params=[("factor", "double", 1.0)],
        ),
        "one": save_function(
            folder / "one" / "1",
            twice,
            tensors((None, "float32", two)),
            tensors((None, "float32", two)),
        ),
        "two": save_function(
            folder / "two" / "1",
            added,
            tensors(("a", "float32", two), ("b", "float32", two)),
            tensors(("y", "float32", two)),
        ),
    }


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("invocations")
    # MLflow's own environment has none of the tests' modules.
    modules = [sys.modules[__name__], mlflow_models]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        models = save_models(folder / "models")
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    write_adding(folder / "models", "add", 1.0)
    with (
        ScoringServer(folder, models) as mlflow,
        GatewayProcess(folder, [folder / "models"]) as gateway,
    ):
        yield Servers(gateway.http, mlflow.url)


def ask(servers: Servers, model: str, body: str, content_type: str) -> tuple[Any, Any]:
    """The answers of both: of the gateway first."""
    headers = {"content-type": content_type}
    ours = httpx.post(
        f"{servers.gateway}/models/{model}/invocations", content=body, headers=headers, timeout=60
    )
    theirs = httpx.post(
        f"{servers.mlflow}/{model}/invocations", content=body, headers=headers, timeout=60
    )
    return ours, theirs


SAME: list[tuple[str, Any]] = [
    ("iris", {"dataframe_split": {"columns": NAMES, "data": [VALUES, VALUES]}}),
    ("iris", {"dataframe_split": {"columns": NAMES[::-1], "data": [VALUES[::-1]]}}),
    ("iris", {"dataframe_split": {"columns": NAMES, "index": [7], "data": [[5, 3, 1, 0]]}}),
    ("iris", {"dataframe_records": [IRIS, IRIS]}),
    ("iris", {"dataframe_records": [IRIS | {"target": 1}]}),
    ("iris", {"instances": [IRIS]}),
    ("iris", {"inputs": [IRIS]}),
    ("iris", {"inputs": IRIS}),
    ("iris", {"inputs": {name: [value] for name, value in IRIS.items()}}),
    ("mixed", {"dataframe_records": [{"a": 1, "b": 2, "c": "x"}]}),
    ("mixed", {"dataframe_records": [{"a": 1.5, "b": 2.0, "c": "ü€"}, {"a": 2, "b": 3, "c": ""}]}),
    ("mixed", {"inputs": [{"a": 1.5, "b": 1, "c": "s"}], "params": {"factor": 3.0}}),
    ("mixed", {"inputs": [{"a": 1.5, "b": 1, "c": "s"}], "params": {"unknown": 3.0}}),
    ("one", {"inputs": [[1, 2], [3, 4]]}),
    ("one", {"instances": [[1.5, 2e-3]]}),
    ("one", {"dataframe_split": {"columns": ["p", "q"], "data": [[1, 2]]}}),
    ("one", {"dataframe_split": {"data": [[0.1, 2]]}}),
    ("one", {"dataframe_records": [{"p": 1, "q": 2}]}),
    ("two", {"inputs": {"a": [[1, 2]], "b": [[1, 2]]}}),
    ("two", {"inputs": {"a": [[1, 2]], "b": [[1, 2]], "more": [1]}}),
    ("two", {"instances": [{"a": [1, 2], "b": [3, 4]}, {"a": [5, 6], "b": [7, 8]}]}),
    ("two", {"dataframe_split": {"columns": ["a", "b"], "data": [[[1, 2], [1, 2]]]}}),
]
REFUSED: list[tuple[str, Any]] = [
    ("iris", {"dataframe_split": {"data": [VALUES]}}),
    ("iris", {"dataframe_split": {"columns": NAMES, "data": [VALUES[:3]]}}),
    ("iris", {"dataframe_split": {"columns": [*NAMES, NAMES[0]], "data": [[*VALUES, 1]]}}),
    ("iris", {"dataframe_split": {"columns": NAMES, "data": [["x", *VALUES[1:]]]}}),
    ("iris", {"dataframe_split": [VALUES]}),
    ("iris", {"dataframe_records": [{"a": 1}]}),
    ("iris", {"dataframe_records": []}),
    ("iris", {"dataframe_records": IRIS}),
    ("iris", {"instances": [VALUES]}),
    ("iris", {"inputs": [VALUES]}),
    ("iris", {}),
    ("iris", {"data": [VALUES]}),
    ("iris", {"inputs": IRIS, "instances": [IRIS]}),
    ("iris", [VALUES]),
    ("mixed", {"dataframe_records": [{"a": 1, "b": None, "c": "x"}]}),
    ("mixed", {"dataframe_records": [{"a": 1, "b": 1, "c": "x"}, {"a": 1, "c": "x"}]}),
    ("mixed", {"dataframe_records": [{"a": 1, "b": 2**70, "c": "x"}]}),
    ("mixed", {"inputs": {"a": [1.0, 2.0], "b": [1], "c": ["x"]}}),
    ("mixed", {"inputs": [{"a": 1.5, "b": 1, "c": "s"}], "params": {"factor": "much"}}),
    ("one", {"inputs": [[1, 2], [3]]}),
    ("one", {"inputs": []}),
    ("one", {"inputs": {"x": [[1, 2]]}}),
    ("one", {"inputs": [["a", 2]]}),
    ("one", {"dataframe_split": {"data": [[1, 2, 3]]}}),
    ("two", {"inputs": [[1, 2]]}),
    ("two", {"inputs": {"a": [[1, 2]]}}),
]


@pytest.mark.parametrize(("model", "body"), SAME, ids=range(len(SAME)))
def test_answers_as_mlflow_does(servers: Servers, model: str, body: Any) -> None:
    ours, theirs = ask(servers, model, json.dumps(body), "application/json")
    assert (ours.status_code, theirs.status_code) == (200, 200), (ours.text, theirs.text)
    assert ours.json() == theirs.json()
    assert ours.headers["content-type"] == theirs.headers["content-type"]


@pytest.mark.parametrize(("model", "body"), REFUSED, ids=range(len(REFUSED)))
def test_refuses_what_mlflow_refuses(servers: Servers, model: str, body: Any) -> None:
    ours, theirs = ask(servers, model, json.dumps(body), "application/json")
    assert (ours.status_code, theirs.status_code) == (400, 400), (ours.text, theirs.text)
    assert ours.json()["error_code"] == "BAD_REQUEST" and ours.json()["message"]
    assert "\n" not in ours.json()["message"]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("iris", ",".join(NAMES) + "\n5.1,3.5,1.4,0.2\n6,3,5,2\n"),
        ("mixed", 'c,a,b\r\n"x, ""quoted""\nline",1.5,2\r\n\r\ny,2,3.0\r\n'),
        ("mixed", "a,b,c,extra\n1,2,x,9\n"),
    ],
)
def test_csv_as_mlflow_reads_it(servers: Servers, model: str, text: str) -> None:
    ours, theirs = ask(servers, model, text, "text/csv")
    assert (ours.status_code, theirs.status_code) == (200, 200), (ours.text, theirs.text)
    assert ours.json() == theirs.json()


@pytest.mark.parametrize("text", ["", "a,b,c\n1,,x\n", "a,b,c\nx,1,x\n", "a,b\n1,2\n"])
def test_csv_that_both_refuse(servers: Servers, text: str) -> None:
    ours, theirs = ask(servers, "mixed", text, "text/csv")
    assert (ours.status_code, theirs.status_code) == (400, 400), (ours.text, theirs.text)


def test_missing_numbers_reach_the_model(servers: Servers) -> None:
    # As pandas writes them; MLflow answers with the same word, which is no JSON.
    body = '{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[NaN, 1, "x"]]}}'
    ours, theirs = ask(servers, "mixed", body, "application/json; charset=utf-8")
    assert ours.json() == {"predictions": [{"s": None, "t": "x"}]}
    assert theirs.text == '{"predictions": [{"s": NaN, "t": "x"}]}'
    csv, _ = ask(servers, "mixed", "a,b,c\n,1,x\n", "text/csv")
    assert csv.json() == ours.json()


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/json; charset=latin-1", "application/json; version=1", "image/png"],
)
def test_other_types_of_bodies(servers: Servers, content_type: str) -> None:
    ours, theirs = ask(servers, "one", "{}", content_type)
    assert (ours.status_code, theirs.status_code) == (415, 415)
    assert ours.json()["error_code"] == "BAD_REQUEST"


DIFFERENT: list[tuple[str, Any, int, int]] = [
    # deliberate, and written down in docs/mlflow-clients.md
    ("mixed", {"dataframe_records": [{"a": "1.5", "b": 1, "c": "x"}]}, 400, 200),
    ("mixed", {"dataframe_records": [{"a": 1, "b": 2.5, "c": "x"}]}, 400, 200),
    ("mixed", {"dataframe_records": [{"a": 1, "b": True, "c": "x"}]}, 400, 200),
    ("mixed", {"dataframe_records": [{"a": 1, "b": 1, "c": None}]}, 400, 200),
    ("mixed", {"dataframe_records": [{"a": 1, "b": 1, "c": 5}]}, 400, 200),
    ("one", {"inputs": [[True, 2]]}, 400, 200),
    ("one", {"inputs": [[1, 2]], "more": 1}, 400, 200),
    ("iris", {"inputs": [dict.fromkeys(NAMES)]}, 500, 400),
]


@pytest.mark.parametrize(("model", "body", "ours", "theirs"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_deliberate_differences(
    servers: Servers, model: str, body: Any, ours: int, theirs: int
) -> None:
    answer, other = ask(servers, model, json.dumps(body), "application/json")
    assert (answer.status_code, other.status_code) == (ours, theirs), (answer.text, other.text)


def test_health_and_version(servers: Servers) -> None:
    for path in ("/ping", "/health", "/version"):
        ours, theirs = httpx.get(servers.gateway + path), httpx.get(f"{servers.mlflow}/one{path}")
        assert (ours.status_code, ours.text) == (theirs.status_code, theirs.text)


def test_which_model_is_meant(servers: Servers) -> None:
    body = {"inputs": [[1, 2, 3, 4]]}
    url = servers.gateway + "/invocations"
    several = httpx.post(url, json=body)
    assert several.status_code == 400
    assert "several models (add, iris, mixed, one, two)" in several.json()["message"]
    named = httpx.post(url, json=body, headers={"x-sluice-model": "add"})
    assert named.json() == {"predictions": {"y": [[2.0, 3.0, 4.0, 5.0]]}}
    assert named.headers["x-sluice-version"] == "1"
    versioned = httpx.post(servers.gateway + "/models/add/versions/1/invocations", json=body)
    assert versioned.json() == named.json()
    assert versioned.headers["x-sluice-route"] == "version"
    for path, code in (("/models/nope", 404), ("/models/add/versions/7", 404)):
        missing = httpx.post(f"{servers.gateway}{path}/invocations", json=body)
        assert missing.status_code == code
        assert missing.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    late = httpx.post(
        servers.gateway + "/models/add/invocations",
        json=body,
        headers={"x-request-timeout-ms": "-1"},
    )
    assert late.status_code == 400


def test_large_bodies_and_answers(servers: Servers) -> None:
    rows = np.arange(100_000, dtype=np.float32).reshape(-1, 2)
    body = json.dumps({"inputs": rows.tolist()})
    assert len(body) > 262_144
    answer = httpx.post(f"{servers.gateway}/models/one/invocations", content=body, timeout=60)
    assert np.array_equal(np.array(answer.json()["predictions"]), rows * 2)
    answer = httpx.post(f"{servers.gateway}/models/one/invocations", content=body[:-3], timeout=60)
    assert answer.status_code == 400 and "not JSON" in answer.json()["message"]


def test_errors_before_the_body_is_whole_have_the_same_form(servers: Servers) -> None:
    host, port = servers.gateway.removeprefix("http://").split(":")
    for extra, status in (
        ("content-length: 99999999999", 413),
        ("content-length: 2\r\nx-request-timeout-ms: 1\r\nx-request-timeout-ms: 2", 400),
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = f"POST /models/add/invocations HTTP/1.1\r\nhost: x\r\n{extra}\r\n\r\n"
            connection.sendall(head.encode())
            answer = b"".join(iter(lambda c=connection: c.recv(65536), b""))
        first, _, body = answer.partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(body)["error_code"] == "BAD_REQUEST" and json.loads(body)["message"]


def test_requests_share_a_connection_with_others(servers: Servers) -> None:
    """Pipelined, compressed, in chunks, with a query, among requests of other kinds."""
    host, port = servers.gateway.removeprefix("http://").split(":")
    body = b'{"inputs": [[1, 2, 3, 4]]}'
    packed = gzip.compress(body)

    def post(path: str, body: bytes, extra: str = "") -> bytes:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
        return head.encode() + body

    url = "/models/add/invocations"
    requests = [
        post(url, body),
        post(url + "?a=b", packed, "content-encoding: gzip\r\n"),
        post("/v1/models/add:predict", b'{"instances": [[1, 2, 3, 4]]}'),
        post(url, b"{}"),
        b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (url.encode(), len(body), body),
        b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % url.encode(),
        post(url, body, "x-request-id: seven\r\nconnection: close\r\n"),
    ]
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"".join(requests))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    parts = [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:]]
    assert parts == [200, 200, 200, 400, 200, 405, 200]
    assert answer.count(b'{"predictions":{"y":[[2.0,3.0,4.0,5.0]]}}') == 4
    assert b"x-request-id: seven\r\n" in answer
