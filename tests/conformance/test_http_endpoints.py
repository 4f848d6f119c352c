"""Every REST endpoint, as a plain HTTP client sees it."""

from __future__ import annotations

import re
import struct
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc

from tests.conformance.slow import SlowModel
from tests.support.gateway import GatewayProcess

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def post(http: httpx.Client, path: str, body: Any = BODY, **options: Any) -> httpx.Response:
    return http.post(path, json=body, **options)


def error_of(answer: httpx.Response) -> str:
    """The text of an error, which has the same shape everywhere."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"error"}
    assert isinstance(body["error"], str) and body["error"]
    return str(body["error"])


# --- one by one


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", {"status": "alive"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/add/ready", {"name": "add", "ready": True}),
        ("/v2/models/versions/versions/3/ready", {"name": "versions", "ready": True}),
        ("/v2/models/versions/versions/canary/ready", {"name": "versions", "ready": True}),
        ("/v1/models/add", {"name": "add", "ready": True}),
    ],
)
def test_small_answers(http: httpx.Client, path: str, body: object) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == body


def test_server_metadata(http: httpx.Client) -> None:
    for path in ("/v2", "/v2/"):
        found = http.get(path).json()
        assert found.keys() == {"name", "version", "extensions"}


def test_lists_of_models(http: httpx.Client) -> None:
    for path in ("/v2/models", "/v1/models"):
        assert {"add", "digits", "identity_fp16"} <= {*http.get(path).json()["models"]}


@pytest.mark.parametrize("version", ["", "/versions/1", "/versions/stable"])
def test_model_metadata(http: httpx.Client, version: str) -> None:
    found = http.get(f"/v2/models/versions{version}").json()
    assert found == {
        "name": "versions",
        "versions": ["1"] if version else ["1", "2", "3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }


@pytest.mark.parametrize("version", ["", "/versions/1", "/versions/canary"])
def test_config(http: httpx.Client, version: str) -> None:
    found = http.get(f"/v2/models/versions{version}/config").json()
    assert found["name"] == "versions"
    assert found["max_batch_size"] == 64
    assert "dynamic_batching" in found
    assert [t["name"] for t in found["input"]] == ["x"]
    assert found["input"][0]["data_type"] == "TYPE_FP32"
    assert [int(d) for d in found["output"][0]["dims"]] == [4]


def test_statistics(http: httpx.Client) -> None:
    every = http.get("/v2/models/stats").json()["model_stats"]
    assert {"add", "digits"} <= {each["name"] for each in every}
    three = http.get("/v2/models/versions/stats").json()["model_stats"]
    assert sorted(each["version"] for each in three) == ["1", "2", "3"]
    (one,) = http.get("/v2/models/versions/versions/2/stats").json()["model_stats"]
    assert (one["name"], one["version"]) == ("versions", "2")
    assert one["inference_stats"].keys() == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
        "cache_hit", "cache_miss",
    }  # fmt: skip
    assert all(each.keys() == {"count", "ns"} for each in one["inference_stats"].values())


def test_failures_are_counted(http: httpx.Client) -> None:
    def failed() -> int:
        (one,) = http.get("/v2/models/raw/stats").json()["model_stats"]
        return int(one["inference_stats"]["fail"]["count"])

    before = failed()
    wrong = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    assert post(http, "/v2/models/raw/infer", wrong).status_code == 400
    assert failed() == before + 1


def test_repository_index(http: httpx.Client) -> None:
    for answer in (
        http.post("/v2/repository/index"),
        http.post("/v2/repository/index", json={}),
        http.post("/v2/repository/index", json={"ready": True}),
        http.get("/v2/repository/index"),
    ):
        found = {(e["name"], e["version"]): e["state"] for e in answer.json()}
        assert found["versions", "1"] == found["versions", "3"] == "READY"
    assert http.post("/v2/repository/index", json={"ready": 1}).status_code == 400


# --- inference


@pytest.mark.parametrize(
    ("path", "version", "route"),
    [
        ("/v2/models/add/infer", "1", "split"),
        ("/v2/models/add/versions/1/infer", "1", "version"),
        ("/v2/models/versions/versions/2/infer", "2", "version"),
        ("/v2/models/versions/versions/stable/infer", "1", "label"),
        ("/v2/models/versions/versions/canary/infer", "2", "label"),
        ("/v2/models/versions/versions/newest/infer", "3", "label"),
        ("/v2/models/add/infer/", "1", "split"),
        ("/v2/models/add/infer?a=b&c", "1", "split"),
        ("/v2/models/%61dd/infer", "1", "split"),
    ],
)
def test_infer(http: httpx.Client, path: str, version: str, route: str) -> None:
    answer = post(http, path)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["model_version"] == answer.headers["x-sluice-version"] == version
    assert answer.headers["x-sluice-route"] == route
    amount = int(version) if found["model_name"] == "versions" else 1
    assert found["outputs"] == [
        {
            "name": "y",
            "datatype": "FP32",
            "shape": [1, 4],
            "data": [1.0 + amount, 2.0 + amount, 3.0 + amount, 4.0 + amount],
        }
    ]
    assert "id" not in found and "parameters" not in found


def test_split_serves_both_versions(http: httpx.Client) -> None:
    versions = {
        post(http, "/v2/models/versions/infer").headers["x-sluice-version"] for _ in range(60)
    }
    assert versions == {"1", "2"}


def test_sticky_key_is_the_same_on_both_protocols(gateway: GatewayProcess) -> None:
    stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub
    request = tritonclient.grpc.service_pb2.ModelInferRequest(model_name="versions")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(struct.pack("<4f", 1, 2, 3, 4))
    chosen = {}
    with (
        httpx.Client(base_url=gateway.http, timeout=30) as http,
        grpc.insecure_channel(gateway.grpc) as channel,
    ):
        for key in map(str, range(20)):
            seen = set()
            for _ in range(3):
                answer = post(http, "/v2/models/versions/infer", headers={"X-Sluice-Key": key})
                assert answer.headers["x-sluice-route"] == "sticky"
                seen.add(answer.headers["x-sluice-version"])
                response, call = stub(channel).ModelInfer.with_call(
                    request, metadata=[("x-sluice-key", key)], timeout=10
                )
                trailers = dict(call.trailing_metadata())
                assert trailers["x-sluice-route"] == "sticky"
                assert trailers["x-sluice-version"] == response.model_version
                seen.add(response.model_version)
            (chosen[key],) = seen
        answer = post(
            http, "/v1/models/versions:predict", {"instances": [[1, 2, 3, 4]]},
            headers={"x-sluice-key": "3"},
        )  # fmt: skip
        assert answer.headers["x-sluice-version"] == chosen["3"]
    assert {*chosen.values()} == {"1", "2"}


def test_trailing_metadata(gateway: GatewayProcess) -> None:
    service = tritonclient.grpc.service_pb2
    stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub
    request = service.ModelInferRequest(model_name="versions")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(struct.pack("<4f", 1, 2, 3, 4))
    with grpc.insecure_channel(gateway.grpc) as channel:
        for asked, served, route in (("2", "2", "version"), ("newest", "3", "label")):
            request.model_version = asked
            _, call = stub(channel).ModelInfer.with_call(request, timeout=10)
            trailers = dict(call.trailing_metadata())
            assert trailers["x-sluice-version"] == served
            assert trailers["x-sluice-route"] == route


def test_id_and_request_id_are_echoed(http: httpx.Client) -> None:
    answer = post(http, "/v2/models/add/infer", {**BODY, "id": "me"}, headers={"x-request-id": "q"})
    assert answer.json()["id"] == "me"
    assert answer.headers["x-request-id"] == "q"


def test_kserve_body_keys(http: httpx.Client) -> None:
    """kserve's client writes the model's name into the body, and an empty id."""
    answer = post(http, "/v2/models/add/infer", {**BODY, "model_name": "add", "id": ""})
    assert answer.status_code == 200


def test_nested_data(http: httpx.Client) -> None:
    body = {
        "inputs": [{**BODY["inputs"][0], "shape": [2, 4], "data": [[1, 2, 3, 4], [5, 6, 7, 8]]}]
    }
    found = post(http, "/v2/models/add/infer", body).json()["outputs"][0]
    assert found["shape"] == [2, 4]
    assert found["data"] == [2, 3, 4, 5, 6, 7, 8, 9]


def test_raw_body(http: httpx.Client) -> None:
    """``Inference-Header-Content-Length: 0``: the body is the only input."""
    data = struct.pack("<4f", 1, 2, 3, 4)
    for path in ("/v2/models/raw/infer", "/v2/models/raw/versions/1/infer"):
        answer = http.post(path, content=data, headers={"Inference-Header-Content-Length": "0"})
        assert answer.status_code == 200, answer.text
        head = int(answer.headers["inference-header-content-length"])
        assert answer.headers["content-type"] == "application/octet-stream"
        assert struct.unpack("<4f", answer.content[head:]) == (2, 3, 4, 5)


def test_raw_body_of_text(http: httpx.Client) -> None:
    answer = http.post(
        "/v2/models/text/infer",
        content=b"def f(x): return x",
        headers={"Inference-Header-Content-Length": "0"},
    )
    assert answer.status_code == 200, answer.text
    assert b"\x04\0\0\0code" in answer.content


def test_raw_body_for_two_inputs(http: httpx.Client) -> None:
    answer = http.post(
        "/v2/models/pair/infer", content=b"1234", headers={"Inference-Header-Content-Length": "0"}
    )
    assert answer.status_code == 400
    assert "2" in error_of(answer)


def test_answer_is_compressed_on_request(http: httpx.Client) -> None:
    zeros = [0] * 5000
    body = {"inputs": [{"name": "x", "shape": [1, 5000], "datatype": "FP32", "data": zeros}]}
    for asked, given in (
        ("gzip", "gzip"), ("deflate", "deflate"), ("gzip;q=0.1, deflate;q=0.9", "deflate"),
        ("br", None), ("gzip;q=0", None), ("", None),
    ):  # fmt: skip
        answer = post(
            http, "/v2/models/identity_fp32/infer", body, headers={"accept-encoding": asked}
        )
        assert answer.headers.get("content-encoding") == given, asked
        assert len(answer.json()["outputs"][0]["data"]) == 5000


def test_half_floats_as_json(http: httpx.Client) -> None:
    for kind in ("FP16", "BF16"):
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": kind, "data": [0.5, 2]}]}
        answer = post(http, f"/v2/models/identity_{kind.lower()}/infer", body)
        assert answer.json()["outputs"][0]["data"] == [0.5, 2]


# --- V1


def test_v1_predict(http: httpx.Client) -> None:
    answer = post(http, "/v1/models/add:predict", {"instances": [[1, 2, 3, 4], [5, 6, 7, 8]]})
    assert answer.json() == {"predictions": [[2, 3, 4, 5], [6, 7, 8, 9]]}
    assert answer.headers["x-sluice-version"] == "1"
    assert answer.headers["x-sluice-route"] == "split"


def test_v1_predict_rows_of_objects(http: httpx.Client) -> None:
    rows = [{"sepal": [5.1, 3.5], "petal": [1.4, 0.2]}, {"sepal": [6.3, 3.3], "petal": [6.0, 2.5]}]
    found = post(http, "/v1/models/iris:predict", {"instances": rows}).json()["predictions"]
    assert [row["species"] for row in found] == ["setosa", "virginica"]


def test_v1_predict_pictures(http: httpx.Client) -> None:
    pictures = np.zeros((2, 1, 8, 8)).tolist()
    found = post(http, "/v1/models/digits:predict", {"instances": pictures}).json()["predictions"]
    assert len(found) == 2
    assert found[0].keys() == {"probabilities", "label"}
    assert len(found[0]["probabilities"]) == 10


# --- what does not exist, or not like this


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/v2/nothing", "/v2/models/add/nothing", "/v2/models/add/versions",
        "/v2/models//infer", "/v3", "/docs/nothing", "/admin/v1/nothing", "/v2/models/a/b/infer",
        "/v2/health", "/%2e%2e/etc", "/docs/..%2f..%2fetc",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_paths(http: httpx.Client, path: str, method: str) -> None:
    answer = http.request(method, path, json=BODY if method == "POST" else None)
    assert answer.status_code in (404, 405)
    error_of(answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/add/infer"),
        ("PUT", "/v2/models/add/infer"),
        ("DELETE", "/v2/models/add/versions/1/infer"),
        ("POST", "/v2"),
        ("POST", "/v2/health/live"),
        ("PUT", "/v2/models/add"),
        ("PATCH", "/v2/models/add/ready"),
        ("POST", "/metrics"),
        ("GET", "/admin/v1/models/add/split"),
    ],
)
def test_wrong_method(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 405, answer.text
    assert method in error_of(answer)
    assert "allow" in answer.headers


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/health/ready", "/v2/models/add", "/metrics"])
def test_head(http: httpx.Client, path: str) -> None:
    answer = http.head(path)
    assert answer.status_code == 200
    assert not answer.content
    if path != "/metrics":
        assert answer.headers["content-length"] == http.get(path).headers["content-length"]


def test_query_strings_are_ignored(http: httpx.Client) -> None:
    for path in ("/v2", "/v2/health/ready", "/v2/models/add", "/v2/models/add/config"):
        assert http.get(path, params={"a": "b"}).json() == http.get(path).json()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/{}"),
        ("GET", "/v2/models/{}/ready"),
        ("GET", "/v2/models/{}/config"),
        ("GET", "/v2/models/{}/stats"),
        ("POST", "/v2/models/{}/infer"),
        ("GET", "/v1/models/{}"),
        ("POST", "/v1/models/{}:predict"),
        ("GET", "/admin/v1/models/{}"),
    ],
)
def test_unknown_model(http: httpx.Client, method: str, path: str) -> None:
    body = {"instances": [[1, 2, 3, 4]]} if "predict" in path else BODY
    options = {"json": body} if method == "POST" else {}
    answer = http.request(method, path.format("nothing"), **options)
    assert answer.status_code == 404
    assert error_of(answer).startswith("Request for unknown model")
    if path.startswith("/v2"):
        answer = http.request(method, path.format("add/versions/9"), **options)
        assert answer.status_code == 404
        assert "version" in error_of(answer)


def test_similar_name_is_suggested(http: httpx.Client) -> None:
    answer = post(http, "/v2/models/digit/infer")
    assert "did you mean 'digits'?" in error_of(answer)


# --- deadlines


def test_deadline_header_while_waiting(slow_http: SlowModel, http: httpx.Client) -> None:
    limit = slow_http.limit(0.1)
    busy = slow_http.occupy(3 * limit)
    headers = {"x-request-timeout-ms": f"{limit * 1e3:.0f}"}
    answer = post(http, slow_http.path, slow_http.body(1), headers=headers)
    assert answer.status_code == 504
    assert "deadline" in error_of(answer)
    answer = post(http, f"/v1/models/{slow_http.name}:predict", {"inputs": [1]}, headers=headers)
    assert answer.status_code == 504
    busy.join()
    assert slow_http.executions() == 1


def test_deadline_that_cannot_be_met(slow_http: SlowModel, http: httpx.Client) -> None:
    slow_http.request(slow_http.loops(0.2))  # so that it is known what it costs
    busy = slow_http.occupy(0.4)
    answer = post(http, slow_http.path, slow_http.body(1), headers={"x-request-timeout-ms": "50"})
    assert answer.status_code == 429
    assert "deadline" in error_of(answer)
    assert int(answer.headers["retry-after"]) >= 1
    busy.join()
    assert slow_http.executions() == 2


def test_deadline_that_cannot_be_met_on_grpc(slow: SlowModel) -> None:
    slow.request(slow.loops(0.4))
    request = tritonclient.grpc.service_pb2.ModelInferRequest(model_name=slow.name)
    request.inputs.add(name="loops", datatype="INT64", shape=[1])
    request.raw_input_contents.append(struct.pack("<q", 1))
    request.parameters["timeout"].int64_param = 50_000
    stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub
    with grpc.insecure_channel(slow.gateway.grpc) as channel:
        # Connected before, so that most of the work ahead is still to be done.
        grpc.channel_ready_future(channel).result(30)
        busy = slow.occupy(0.4)
        with pytest.raises(grpc.RpcError) as caught:
            stub(channel).ModelInfer(request, timeout=10)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(error.trailing_metadata())["retry-after"]) >= 1
    busy.join()
    assert slow.executions() == 2


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", ""])
def test_deadline_header_that_makes_no_sense(http: httpx.Client, value: str) -> None:
    answer = post(http, "/v2/models/add/infer", headers={"x-request-timeout-ms": value})
    assert answer.status_code == 400
    assert "x-request-timeout-ms" in error_of(answer)


# --- documentation


def paths_of_routes() -> set[tuple[str, str]]:
    """(method, path) of everything that the application routes, but for the pages."""
    from types import SimpleNamespace

    from gateway.servers.admin import Admin
    from gateway.servers.deployments import Deployments
    from gateway.servers.generate import Generate
    from gateway.servers.history import HistoryApi
    from gateway.servers.http_app import HttpApp
    from gateway.servers.invocations import Invocations
    from gateway.servers.metrics_page import MetricsPage
    from gateway.servers.repository import RepositoryRoutes

    shared: Any = SimpleNamespace(facts=None)
    admin: Any = Admin(*[None] * 4)  # type: ignore[arg-type]
    found = set()
    routes: list[Any] = [*HttpApp(shared).routes(), *Generate(shared).routes(), *admin.routes()]
    routes += HistoryApi(*[None] * 3).routes()  # type: ignore[arg-type]
    routes += RepositoryRoutes(shared, None).routes()  # type: ignore[arg-type]
    routes += Invocations(shared).routes()
    routes += Deployments(*[None] * 2).routes()  # type: ignore[arg-type]
    routes.append(MetricsPage(lambda out: (None for _ in out)).route())
    for route in routes:
        path = "/v2" if route.path == "/v2/" else route.path
        found |= {(method, path) for method in route.methods - {"HEAD"}}
    return found


def test_openapi_document_has_every_route_and_no_other(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    described = {
        (method.upper(), path) for path, each in document["paths"].items() for method in each
    }
    assert described == paths_of_routes()


def test_openapi_paths_answer(http: httpx.Client) -> None:
    """Whatever is described is there: no path of it is unknown."""
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for path, operations in document["paths"].items():
        for method in operations:
            url = path.format(model="add", version="1", name="none")
            answer = http.request(method, url, content=b"{" if method != "get" else None)
            # Loading and unloading are off unless enabled.
            fine = (403,) if re.search(r"/v2/repository/.*load$", url) else (200, 400)
            fine += (404,) if url.endswith("/deployments/none") else ()
            assert answer.status_code in fine, (method, url, answer.text)


def test_openapi_references_exist(http: httpx.Client) -> None:
    answer = http.get("/openapi.json")
    schemas = answer.json()["components"]["schemas"]
    used = re.findall(r'"#/components/schemas/(\w+)"', answer.text)
    assert used and {*used} <= schemas.keys()
    ids = [
        (path, method)
        for path, operations in answer.json()["paths"].items()
        for method, operation in operations.items()
        if {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        != {*re.findall(r"{(\w+)}", path)}
    ]
    assert not ids


def test_docs_page_works_offline(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) >= 3
    kinds = {"css": "text/css", "js": "javascript", "png": "image/png"}
    for asset in [*assets, *re.findall(r'url: "([^"]+)"', page.text)]:
        assert not urlsplit(asset).netloc, asset
        answer = http.get(asset)
        assert answer.status_code == 200 and answer.content
        kind = kinds.get(asset.rpartition(".")[2])
        assert kind is None or kind in answer.headers["content-type"]
        if asset.endswith(".css"):
            assert not re.search(rb"url\(\s*['\"]?(https?:)?//", answer.content)
            assert b"@import" not in answer.content
    assert not re.search(r"(src|href)=\"(https?:)?//", page.text)


def test_docs_with_a_slash(http: httpx.Client) -> None:
    answer = http.get("/docs/", follow_redirects=True)
    assert answer.status_code == 200
    assert "swagger-ui" in answer.text
