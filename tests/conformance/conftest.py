"""Gateways that the conformance tests share, one for each gRPC server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conformance.models import write_models
from tests.conformance.slow import SlowModel
from tests.support.gateway import ROOT, GatewayProcess


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def running(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory, server: str
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp(server)
    gateway = GatewayProcess(
        folder, [model_folder, ROOT / "examples" / "models"], grpc_server=server
    )
    with gateway:
        yield gateway


@pytest.fixture(scope="session")
def native(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    pytest.importorskip("pygrpc_native")
    yield from running(model_folder, tmp_path_factory, "native")


@pytest.fixture(scope="session")
def grpcio(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    yield from running(model_folder, tmp_path_factory, "grpcio")


@pytest.fixture(scope="session", params=["native", "grpcio"])
def gateway(request: pytest.FixtureRequest) -> GatewayProcess:
    """Every test that speaks gRPC runs once with each server."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, GatewayProcess)
    return found


@pytest.fixture(scope="session")
def http_gateway(grpcio: GatewayProcess) -> GatewayProcess:
    """For tests that speak HTTP alone: the gRPC server makes no difference."""
    return grpcio


@pytest.fixture
def http(http_gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=http_gateway.http, timeout=30) as client:
        yield client


@pytest.fixture
def slow(gateway: GatewayProcess) -> SlowModel:
    """A fresh slow model on each gRPC server."""
    return SlowModel(gateway)


@pytest.fixture
def slow_http(http_gateway: GatewayProcess) -> SlowModel:
    """A fresh slow model for a test that speaks HTTP alone."""
    return SlowModel(http_gateway)
