"""TorchServe, its frontend in Java and a handler that calls onnxruntime. See NOTES.md."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtests.compare.peers.base import HEAVY, Peer
from loadtests.compare.peers.launch import (
    HERE,
    Launch,
    json_route,
    launched,
    raw_route,
    socket_folder,
)
from loadtests.errors import BenchError

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

MAX_BATCH: Final = 64
ALONE: Final = ("echo",)
"""Models whose requests are not joined: with batches of 4 MiB tensors a run did not end."""
MAX_BATCH_DELAY_MS: Final = 1
LARGEST: Final = 1 << 30
"""Bytes of a request, and of answers (6.5 MB by default, with which `echo` was not answered)."""
FOLDER: Final = Path(__file__).parent
JSON: Final = json_route("/predictions/{}")
RAW: Final = raw_route("/predictions/{}")


def archive(environment: Path, model: Model, work: Path, threads: int) -> None:
    """Makes a model archive (unpacked) in ``work/store``, with TorchServe's own tool."""
    from loadtests.kernel import cores

    workers = cores() if model.name in HEAVY else 1
    config = {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": 1 if model.name in ALONE else MAX_BATCH,
        "maxBatchDelay": MAX_BATCH_DELAY_MS,
        "responseTimeout": 60,
        "deviceType": "cpu",
        "onnx": {"path": str(model.path), "threads": threads},
    }
    file = work / f"{model.name}.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    command = [str(environment / "bin" / "torch-model-archiver"), "--model-name", model.name]
    command += ["--version", "1.0", "--handler", str(FOLDER / "handler.py")]
    command += ["--extra-files", str(HERE / "onnx_serving.py"), "--config-file", str(file)]
    command += ["--archive-format", "no-archive", "--export-path", str(work / "store")]
    said = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, cwd=work
    )
    if said.returncode:
        raise BenchError(f"torch-model-archiver: {said.stderr.strip()[-300:]}")


def properties(ports: Mapping[str, int], store: Path) -> str:
    """``config.properties``."""
    lines = [
        *(f"{name}_address=http://127.0.0.1:{ports[name]}" for name in ("inference", "management")),
        f"metrics_address=http://127.0.0.1:{ports['metrics']}",
        *(f"grpc_{name}_address=127.0.0.1" for name in ("inference", "management")),
        *(f"grpc_{name}_port={ports[f'grpc_{name}']}" for name in ("inference", "management")),
        f"model_store={store}",
        "load_models=all",
        "disable_token_authorization=true",
        "disable_system_metrics=true",
        "async_logging=true",
        "number_of_gpu=0",
        "job_queue_size=1000",
        f"max_request_size={LARGEST}",
        f"max_response_size={LARGEST}",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One server, all models."""
    from loadtests.compare.processes import free_port

    (work / "store").mkdir()
    for model in models:
        archive(environment, model, work, threads)
    names = ("inference", "management", "metrics", "grpc_inference", "grpc_management")
    ports = {name: free_port() for name in names}
    (work / "config.properties").write_text(properties(ports, work / "store"))
    command = [str(environment / "bin" / "torchserve"), "--start", "--foreground", "--ncs"]
    command += ["--disable-token-auth", "--ts-config", "config.properties"]
    with socket_folder(work) as sockets:
        launch = Launch(
            label="torchserve",
            command=[*command, "--log-config", "log4j2.xml"],
            ready_path="/ping",
            http=ports["inference"],
            grpc=ports["grpc_inference"],
            settings={},
            files={"log4j2.xml": FOLDER / "log4j2.xml"},
            route=RAW,
            env={
                "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
                "LOG_LOCATION": str(work / "logs"),
                "METRICS_LOCATION": str(work / "logs"),
                "TEMP": str(sockets),
                "TMPDIR": str(sockets),
            },
        )
        with launched(launch, models, work, threads) as server:
            yield server


def lacking() -> str:
    """Java is no Python package."""
    if os.environ.get("JAVA_HOME") or shutil.which("java"):
        return ""
    return "TorchServe needs Java 17: apt install openjdk-17-jre-headless"


PEER = Peer(
    name="torchserve",
    routes=(JSON, RAW),
    best=("native",),
    warm_s=2.0,  # its frontend is compiled as it runs
    serve=serve,
    packages=("torchserve", "torch", "onnxruntime", "numpy"),
    extra=lacking,
)
