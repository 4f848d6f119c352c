"""KServe's Python server: ``kserve.ModelServer`` with a model that calls onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtests.compare.peers import oip
from loadtests.compare.peers.base import Peer
from loadtests.compare.peers.launch import Launch, launched

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

SERVE: Final = Path(__file__).with_name("serve.py")
LOG: Final = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {
        name: {"level": "WARNING"}
        for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.access", "uvicorn.error")
    },
}
"""By default three lines are written for every request."""
LARGEST: Final = 1 << 30
"""Bytes of a gRPC message; 8 MiB by default."""


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One server, all models."""
    from loadtests.compare.processes import free_port
    from loadtests.kernel import cores

    http, grpc = free_port(), free_port()
    (work / "log.json").write_text(json.dumps(LOG))
    command = [str(environment / "bin" / "python"), "kserve_models.py"]
    command += ["--log_config_file", str(work / "log.json")]
    for way in ("send", "receive"):
        command += [f"--grpc_max_{way}_message_length", str(LARGEST)]
    launch = Launch(
        label="kserve",
        command=command,
        ready_path="/v2/health/ready",
        http=http,
        grpc=grpc,
        settings={
            "http": http,
            "grpc": grpc,
            "workers": cores(),
        },
        files={"kserve_models.py": SERVE},
        route=None,
    )
    with launched(launch, models, work, threads) as server:
        yield server


PEER = Peer(
    name="kserve",
    routes=oip.ALL,
    best=("grpc", "cnn/binary", "embedding/binary", "echo/binary"),
    serve=serve,
    packages=("kserve", "onnxruntime", "numpy", "uvicorn", "grpcio"),
)
