"""BI-01: names that are none."""

from __future__ import annotations

import json

import pytest

from gateway.codecs.messages import METHODS
from tests.bad_inputs.attack import Door, Served, call, http, raw_input, refused, tensor

NAMES = [
    "../etc", "a/../b", "..", ".", "/etc/passwd", "m/", " add", "add ", "\tadd", "add\0", "\0",
    "%2e%2e", "add%00", "..\\..\\boot.ini", "add\r\nx-evil: 1", "\u202eadd", "x" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda n: ascii(n)[:20])
def test_bi01a_model_names(door: Door, name: str) -> None:
    if door.is_http and len(name) > 50_000:
        pytest.skip("too long for a request target: BI-10q")
    refused(door.infer([tensor()], model=name), 404, "Request for unknown model")


def test_bi01b_empty_model_name(door: Door) -> None:
    reply = door.infer([tensor()], model="")
    refused(reply, 404)


@pytest.mark.parametrize(
    "version", [v for v in NAMES if len(v) < 1000] + ["-1", "1e0", "01", "x" * 9000]
)
def test_bi01c_versions_and_labels(door: Door, version: str) -> None:
    refused(door.infer([tensor()], version=version), 404, "has no version or label")


@pytest.mark.parametrize(
    "target",
    [
        "/v2/models//infer", "/v2/models/../infer", "/v2/models/../../etc/passwd/infer",
        "/v2/models/a/../b/infer", "/v2/models/add/versions//infer", "/v2/models/add/../add/infer",
        "/v2/models/%2e%2e/infer", "/v2/models/%2e%2e%2fetc/infer", "/v2/models/%00/infer",
        "/v2/models/add%00/infer", "/v2/models/%ff%fe/infer", "/v2/models/%/infer",
        "/v2/models/%zz/infer", "/v2/models/add%2finfer", "//v2/models/add/infer",
        "/v2/models/%20add/infer", "/%2e%2e/%2e%2e/etc/passwd", "/v2/models/add;x=1/infer",
        "/v2/models/add/infer/../infer", "/v2/models/add/versions/%2e%2e/infer",
        "/v1/models/../etc:predict", "/v1/models/%2e%2e%2fetc:predict", "/v1/models/%00:predict",
    ],
)  # fmt: skip
def test_bi01d_request_targets(gateway: Served, target: str) -> None:
    body = json.dumps({"inputs": [tensor()]}).encode()
    refused(http(gateway, target, body), 404)


@pytest.mark.parametrize("target", [b"/v2/models/\xff\xfe/infer", b"/v2/models/\xc3\xa9/infer"])
def test_bi01e_names_that_are_not_utf8(gateway: Served, target: bytes) -> None:
    reply = http(gateway, target, b"{}")
    refused(reply, 404 if reply.status == 404 else 400)


@pytest.mark.parametrize("route", ["", "/ready", "/config", "/stats"])
@pytest.mark.parametrize("name", ["%2e%2e", "..%2fetc", "%00", "%ff", "nobody", "x" * 5000])
def test_bi01f_metadata_routes(gateway: Served, route: str, name: str) -> None:
    refused(http(gateway, f"/v2/models/{name}{route}", method="GET"), 404)
    refused(http(gateway, f"/v2/models/add/versions/{name}{route}", method="GET"), 404)


@pytest.mark.parametrize(
    "method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"]
)
@pytest.mark.parametrize("name", ["..", "/etc/passwd", "\0", "x" * 50_000])
def test_bi01g_metadata_calls(grpc_gateway: Served, method: str, name: str) -> None:
    request = METHODS[method].request
    refused(call(grpc_gateway, request(name=name).SerializeToString(), method), 404)
    refused(call(grpc_gateway, request(name="add", version=name).SerializeToString(), method), 404)


def test_bi01h_name_that_is_not_utf8_in_protobuf(grpc_gateway: Served) -> None:
    refused(call(grpc_gateway, b"\x0a\x02\xff\xfe"), 400, "not a ModelInferRequest")
    refused(call(grpc_gateway, b"\x0a\x02\xff\xfe", "ModelMetadata"), 400)


@pytest.mark.parametrize("name", ["..", "\0", "y" * 100_000, "<script>", "x\nERROR forged"])
def test_bi01i_tensor_names(door: Door, name: str) -> None:
    refused(door.infer([tensor(name=name)]), 400, "has no input")
    refused(door.infer([tensor()], outputs=[name]), 400, "has no output")


def test_bi01j_model_that_did_not_load_tells_no_path(door: Door) -> None:
    refused(door.infer([raw_input(b"\0" * 16)], model="broken"), 503, "broken")


def test_bi01k_nor_do_index_and_readiness(gateway: Served) -> None:
    for method, target in (("POST", "/v2/repository/index"), ("GET", "/v2/health/ready")):
        reply = http(gateway, target, method=method)
        assert "model.test" in reply.body.decode()
        assert "/models/" not in reply.body.decode()
