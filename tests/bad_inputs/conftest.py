"""The gateways under attack, and the look at them after every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.attack import Door, Served

SETTINGS: dict[str, dict[str, object]] = {
    "native": {"grpc.server": "native"},
    "grpcio": {"grpc.server": "grpcio"},
    # Callers may load, with files of their own.
    "loading": {
        "grpc.server": "native",
        "control.enabled": True,
        "control.files": True,
        "control.load_seconds": 20.0,
        "state_dir": "state-loading",
    },
    "loading-grpcio": {
        "grpc.server": "grpcio",
        "control.enabled": True,
        "control.files": True,
        "control.load_seconds": 20.0,
        "state_dir": "state-loading-grpcio",
    },
    # Little patience, for those who take their time.
    "hasty": {
        "grpc.server": "native",
        "http.request_timeout": 1.0,
        "http.keep_alive": 1.0,
        "limits.max_connections": 100,
    },
}


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Served]]:
    """Gives the gateway of a name; it is started when first asked for."""
    folder: Path = tmp_path_factory.mktemp("bad_inputs")
    running: dict[str, Served] = {}

    def get(name: str) -> Served:
        if name not in running:
            running[name] = Served(folder, name, **SETTINGS[name])
        return running[name]

    yield get
    codes = {name: served.stop() for name, served in running.items()}
    assert set(codes.values()) <= {0}, codes


@pytest.fixture
def used() -> list[Served]:
    """The gateways that a test has touched."""
    return []


@pytest.fixture(autouse=True)
def unharmed(used: list[Served]) -> Iterator[None]:
    """After each test the gateway answers, has nothing in flight and has not complained."""
    yield
    for served in used:
        served.check_unharmed()


@pytest.fixture
def gateway(start: Callable[[str], Served], used: list[Served]) -> Served:
    """For what concerns HTTP alone."""
    used.append(start("native"))
    return used[-1]


@pytest.fixture
def hasty(start: Callable[[str], Served], used: list[Served]) -> Served:
    used.append(start("hasty"))
    return used[-1]


@pytest.fixture(params=["native", "grpcio"])
def grpc_gateway(
    request: pytest.FixtureRequest, start: Callable[[str], Served], used: list[Served]
) -> Served:
    """For what concerns gRPC alone, on both servers."""
    used.append(start(request.param))
    return used[-1]


@pytest.fixture(params=["http", "native", "grpcio"])
def door(
    request: pytest.FixtureRequest, start: Callable[[str], Served], used: list[Served]
) -> Door:
    """For what concerns both protocols: each way in."""
    name: str = request.param
    used.append(start("native" if name == "http" else name))
    return Door(name, used[-1])
