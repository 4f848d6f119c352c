"""``/metrics``: it parses, it counts, and no label comes from a client."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import tritonclient.grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.conformance.models import add, save
from tests.support.gateway import GatewayProcess

TRITON = {
    "nv_inference_request_success": "counter",
    "nv_inference_request_failure": "counter",
    "nv_inference_count": "counter",
    "nv_inference_exec_count": "counter",
    "nv_inference_request_duration_us": "counter",
    "nv_inference_queue_duration_us": "counter",
    "nv_inference_compute_input_duration_us": "counter",
    "nv_inference_compute_infer_duration_us": "counter",
    "nv_inference_compute_output_duration_us": "counter",
    "nv_inference_pending_request_count": "gauge",
}
OWN = {
    "sluice_requests": "counter",
    "sluice_request_seconds": "histogram",
    "sluice_queue_seconds": "histogram",
    "sluice_execute_seconds": "histogram",
    "sluice_batch_rows": "histogram",
    "sluice_batches": "counter",
    "sluice_queue_requests": "gauge",
    "sluice_queue_rows": "gauge",
    "sluice_in_flight_requests": "gauge",
    "sluice_loads": "counter",
    "sluice_version_memory_bytes": "gauge",
    "sluice_evictions": "counter",
    "sluice_loads_waiting_for_memory": "gauge",
    "sluice_fetches_running": "gauge",
    "sluice_fetched_bytes": "counter",
    "sluice_version_held_back": "gauge",
    "sluice_on_demand_waiting_requests": "gauge",
    "sluice_on_demand_waited_requests": "counter",
    "sluice_source_reachable": "gauge",
    "sluice_refused_requests": "counter",
    "sluice_version_state": "gauge",
    "sluice_build_info": "gauge",
}
URL = "/v2/models/counted/infer"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(params=["native", "grpcio"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway that has served nothing yet."""
    save(tmp_path / "models" / "counted", add())
    with GatewayProcess(tmp_path, [tmp_path / "models"], grpc_server=request.param) as gateway:
        yield gateway


def scrape(gateway: GatewayProcess) -> Samples:
    text = gateway.get("/metrics")
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    if TRITON.get(name) == "counter":
        name += "_total"  # which the parser adds by itself
    return samples.get((name, frozenset(labels.items())), 0.0)


def body(rows: int = 1, columns: int = 4) -> dict[str, object]:
    data = [1.0] * rows * columns
    return {"inputs": [{"name": "x", "shape": [rows, columns], "datatype": "FP32", "data": data}]}


def test_types(http_gateway: GatewayProcess) -> None:
    text = http_gateway.get("/metrics")
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert {**TRITON, **OWN}.items() <= types.items()
    for name in TRITON:
        # Triton's dashboards ask for these very names.
        assert f"\n{name}{{" in text
        assert f"{name}_total" not in text


def test_answer_is_prometheus_text(http_gateway: GatewayProcess) -> None:
    answer = httpx.get(http_gateway.http + "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")


def test_counters(fresh: GatewayProcess) -> None:
    model = {"model": "counted", "version": "1"}
    before = scrape(fresh)
    assert value(before, "nv_inference_request_success", **model) == 0
    with httpx.Client(base_url=fresh.http) as http:
        for _ in range(3):
            assert http.post(URL, json=body(rows=2)).status_code == 200
        assert http.post(URL, json=body(columns=3)).status_code == 400
        assert http.post(
            "/v1/models/counted:predict", json={"instances": [[1, 2, 3, 4]]}
        ).is_success
    stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub
    request = tritonclient.grpc.service_pb2.ModelInferRequest(model_name="counted")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(struct.pack("<4f", 1, 2, 3, 4))
    with grpc.insecure_channel(fresh.grpc) as channel:
        for _ in range(2):
            stub(channel).ModelInfer(request, timeout=10)
        list(stub(channel).ModelStreamInfer(iter([request]), timeout=10))
        request.inputs[0].shape[1] = 5
        with pytest.raises(grpc.RpcError):
            stub(channel).ModelInfer(request, timeout=10)
    after = scrape(fresh)

    def rise(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert rise("nv_inference_request_success", **model) == 7
    assert rise("nv_inference_count", **model) == 10
    assert rise("nv_inference_exec_count", **model) == 7
    assert rise("nv_inference_request_failure", **model, reason="OTHER") >= 1
    assert rise("nv_inference_compute_infer_duration_us", **model) > 0
    assert rise("nv_inference_request_duration_us", **model) >= rise(
        "nv_inference_compute_infer_duration_us", **model
    )
    for protocol, count in (("http", 3), ("v1", 1), ("grpc", 3)):
        assert rise("sluice_requests_total", **model, protocol=protocol, code="ok") == count
        assert rise("sluice_request_seconds_count", **model, protocol=protocol) >= count
    assert rise("sluice_requests_total", **model, protocol="http", code="invalid_request") == 1
    assert rise("sluice_execute_seconds_count", **model) == 7
    assert rise("sluice_queue_seconds_count", **model) == 7
    assert rise("sluice_batch_rows_count", **model) == 7
    assert rise("sluice_batch_rows_sum", **model) == 10
    assert sum(v for (n, _), v in after.items() if n == "sluice_batches_total") == 7
    assert value(after, "sluice_version_state", **model, state="ready") == 1
    assert value(after, "sluice_loads_total", outcome="ok") >= 1
    assert value(after, "sluice_version_memory_bytes", **model) > 0
    assert value(after, "sluice_in_flight_requests") == 0


def test_buckets_add_up(gateway: GatewayProcess) -> None:
    for _ in range(5):
        assert httpx.post(gateway.http + "/v2/models/add/infer", json=body()).is_success
    text = gateway.get("/metrics")
    for family in text_string_to_metric_families(text):
        if family.type != "histogram":
            continue
        series: dict[frozenset[tuple[str, str]], list[float]] = {}
        counts: dict[frozenset[tuple[str, str]], float] = {}
        for sample in family.samples:
            labels = frozenset((k, v) for k, v in sample.labels.items() if k != "le")
            if sample.name.endswith("_bucket"):
                series.setdefault(labels, []).append(sample.value)
            elif sample.name.endswith("_count"):
                counts[labels] = sample.value
        for labels, buckets in series.items():
            assert buckets == sorted(buckets)
            assert buckets[-1] == counts[labels]


def refusals(gateway: GatewayProcess) -> dict[str, float]:
    """Code → how many requests over HTTP were refused with it."""
    return {
        dict(labels)["code"]: count
        for (name, labels), count in scrape(gateway).items()
        if name == "sluice_refused_requests_total" and dict(labels)["protocol"] == "http"
    }


def test_no_label_comes_from_a_client(gateway: GatewayProcess) -> None:
    strange = "strange-name-from-a-client"
    before = refusals(gateway)
    url = "/v2/models/add/infer"
    with httpx.Client(base_url=gateway.http) as http:
        http.post(f"/v2/models/{strange}/infer", json=body())
        http.post(f"/v2/models/add/versions/{strange}/infer", json=body())
        http.post(f"/v1/models/{strange}:predict", json={"instances": [1]})
        http.post(url, json=body(), headers={"x-sluice-key": strange, "x-request-id": strange})
        http.post(url, json={**body(), "id": strange, "parameters": {strange: strange}})
        http.get(f"/{strange}")
        http.request(strange.replace("-", "").upper(), "/v2")
    stub = tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub
    request = tritonclient.grpc.service_pb2.ModelInferRequest(model_name=strange, id=strange)
    request.inputs.add(name=strange, datatype=strange, shape=[1])
    with grpc.insecure_channel(gateway.grpc) as channel, pytest.raises(grpc.RpcError):
        stub(channel).ModelInfer(request, timeout=10)
    text = gateway.get("/metrics")
    assert "strange" not in text.lower()
    more = {code: count - before.get(code, 0) for code, count in refusals(gateway).items()}
    assert {code: count for code, count in more.items() if count} == {
        "unknown_model": 1,
        "unknown_version": 1,
    }


def test_metrics_on_a_port_of_their_own(tmp_path: Path) -> None:
    save(tmp_path / "models" / "counted", add())
    settings = {"telemetry.metrics_address": "127.0.0.1:0"}
    with GatewayProcess(tmp_path, [tmp_path / "models"], settings=settings) as gateway:
        url = gateway.get("/admin/v1/status")["addresses"]["metrics"]
        assert url != f"{gateway.http}/metrics"
        assert "nv_inference_count{" in httpx.get(url).text
