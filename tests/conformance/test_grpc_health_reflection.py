"""gRPC's health protocol and server reflection, on both servers."""

from __future__ import annotations

import queue
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.conformance.models import add, save
from tests.support.gateway import GatewayProcess, wait_until

SERVICE = "inference.GRPCInferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
RPCS = {
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "ModelInfer", "ModelStreamInfer", "RepositoryIndex",
}  # fmt: skip


@pytest.fixture
def channel(gateway: GatewayProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.grpc) as channel:
        yield channel


# --- health


def check(channel: grpc.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
    return status


@pytest.mark.parametrize("service", ["", SERVICE, "add", "digits"])
def test_check(channel: grpc.Channel, service: str) -> None:
    assert check(channel, service) == SERVING


def test_check_of_an_unknown_name(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "nothing")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_watch(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service, status in (("", SERVING), ("add", SERVING), ("nothing", UNKNOWN)):
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert next(watch).status == status
        watch.cancel()


@pytest.mark.parametrize("server", ["native", "grpcio"])
def test_changes_are_seen(tmp_path: Path, server: str) -> None:
    """Nothing, then a model, a broken one beside it, a second version, and nothing again."""
    models = tmp_path / "models"
    models.mkdir()
    save(tmp_path / "made", add(1.0), add(2.0))
    settings = {"registry.poll_seconds": 0.2}
    running = GatewayProcess(tmp_path, [models], grpc_server=server, settings=settings, ready=False)
    # A broken model is an error in the log, so this gateway may complain.
    try:
        with grpc.insecure_channel(running.grpc) as channel:
            seen = {name: watch(channel, name) for name in ("", "one")}
            assert seen[""].get(timeout=10) == NOT_SERVING
            assert seen["one"].get(timeout=10) == UNKNOWN
            assert check(channel, SERVICE) == NOT_SERVING

            (models / "one").mkdir()
            shutil.copytree(tmp_path / "made" / "1", models / "one" / "1")
            assert until(seen["one"], SERVING) <= {UNKNOWN, NOT_SERVING}
            assert until(seen[""], SERVING) <= {NOT_SERVING}
            assert check(channel, SERVICE) == SERVING

            (models / "broken" / "1").mkdir(parents=True)
            (models / "broken" / "1" / "model.onnx").write_bytes(b"nothing like a model")
            wait_until(lambda: known(channel, "broken"), "the broken model to be known")
            wait_until(lambda: "broken/1" in failed(running), "the cause")
            assert check(channel, "broken") == NOT_SERVING
            assert check(channel, "") == check(channel, "one") == SERVING

            shutil.copytree(tmp_path / "made" / "2", models / "one" / "2")
            wait_until(lambda: ready_versions(running, "one") == ["2"], "the second version")
            # Nothing that happened took anything back.
            assert seen[""].empty() and seen["one"].empty()

            shutil.rmtree(models / "one")
            assert until(seen["one"], UNKNOWN) <= {NOT_SERVING}
            assert until(seen[""], NOT_SERVING) == set()
    finally:
        assert running.stop() == 0
    assert "Traceback" not in running.log()


def watch(channel: grpc.Channel, service: str) -> queue.Queue[int]:
    """Every status that Watch tells, as it comes."""
    found: queue.Queue[int] = queue.Queue()
    answers = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(service=service)
    )

    def listen() -> None:
        try:
            for answer in answers:
                found.put(answer.status)
        except grpc.RpcError:
            pass  # the channel is closed

    threading.Thread(target=listen, daemon=True).start()
    return found


def until(statuses: queue.Queue[int], wanted: int) -> set[int]:
    """Waits for a status and returns those that came before it."""
    before = set()
    while (status := statuses.get(timeout=15)) != wanted:
        before.add(status)
    return before


def known(channel: grpc.Channel, service: str) -> bool:
    try:
        return check(channel, service) in (SERVING, NOT_SERVING)
    except grpc.RpcError:
        return False


def failed(gateway: GatewayProcess) -> dict[str, str]:
    found: dict[str, str] = gateway.get("/v2/health/ready").get("failed", {})
    return found


def ready_versions(gateway: GatewayProcess, model: str) -> list[str]:
    found: list[str] = gateway.get(f"/v2/models/{model}")["versions"]
    return found


# --- reflection


def test_services_are_listed(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= {*database.get_services()}


def test_service_is_described(channel: grpc.Channel) -> None:
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service = pool.FindServiceByName(SERVICE)
    assert {method.name for method in service.methods} >= RPCS
    stream = service.methods_by_name["ModelStreamInfer"]
    assert stream.client_streaming and stream.server_streaming
    health = pool.FindServiceByName("grpc.health.v1.Health")
    assert {method.name for method in health.methods} >= {"Check", "Watch"}


def test_inference_by_reflection_alone(channel: grpc.Channel) -> None:
    """As grpcurl does it: nothing is known here but the names."""
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    infer = pool.FindServiceByName(SERVICE).methods_by_name["ModelInfer"]
    request = message_factory.GetMessageClass(infer.input_type)(model_name="add", id="reflected")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend([1, 2, 3, 4])
    response = call(channel, infer, request)
    assert response.id == "reflected"
    assert list(response.outputs[0].contents.fp32_contents) == [2, 3, 4, 5]

    del tensor.contents.fp32_contents[:]
    tensor.ClearField("contents")
    request.raw_input_contents.append(struct.pack("<4f", 1, 2, 3, 4))
    response = call(channel, infer, request)
    assert struct.unpack("<4f", response.raw_output_contents[0]) == (2, 3, 4, 5)


def call(channel: grpc.Channel, method: Any, request: Any) -> Any:
    service = method.containing_service.full_name
    answer = message_factory.GetMessageClass(method.output_type)
    rpc = channel.unary_unary(
        f"/{service}/{method.name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    return rpc(request, timeout=10)


@pytest.mark.parametrize(
    "asked",
    [
        {"file_containing_symbol": "inference.ModelInferRequest.InferInputTensor"},
        {"file_containing_symbol": "inference.GRPCInferenceService"},
        {"file_containing_symbol": "grpc.health.v1.HealthCheckRequest"},
        {"file_containing_symbol": "inference.ModelConfig"},
    ],
    ids=lambda asked: next(iter(asked.values())),
)
def test_symbols_are_found(channel: grpc.Channel, asked: dict[str, str]) -> None:
    answer = reflect(channel, reflection_pb2.ServerReflectionRequest(**asked))
    files = answer.file_descriptor_response.file_descriptor_proto
    assert files
    for file in files:
        descriptor_pb2.FileDescriptorProto.FromString(file)


def test_unknown_symbol(channel: grpc.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.Nothing")
    error = reflect(channel, request).error_response
    assert error.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def reflect(channel: grpc.Channel, request: Any) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    return next(stub.ServerReflectionInfo(iter([request]), timeout=10))


def test_unknown_method(channel: grpc.Channel) -> None:
    for method in (f"/{SERVICE}/Nothing", "/no.Service/Nothing"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
