"""MLServer with a custom runtime that calls onnxruntime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loadtests.compare.peers import oip
from loadtests.compare.peers.base import Peer
from loadtests.compare.peers.launch import Launch, launched

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

BATCHED: Final = ("mlp", "embedding")
"""Models whose rows cost less in a batch."""
BATCHING: Final = {"max_batch_size": 64, "max_batch_time": 0.001}
SERVE: Final = Path(__file__).with_name("serve.py")


def model_settings(model: Model, threads: int) -> dict[str, Any]:
    """The ``model-settings.json`` of one model."""
    return {
        "name": model.name,
        "implementation": "serve.OnnxModel",
        "inputs": [{"name": "x", "datatype": model.datatype, "shape": [-1, *model.row_shape]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, *model.output_shape]}],
        "parameters": {"extra": {"path": str(model.path), "threads": threads}},
        **(BATCHING if model.name in BATCHED else {}),
    }


def write_folder(folder: Path, models: Sequence[Model], threads: int, ports: Sequence[int]) -> None:
    """What ``mlserver start`` is given: its settings, and a folder for each model."""
    from loadtests.kernel import cores

    http, grpc, metrics = ports
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "metrics_dir": str(folder / "metrics"),
        "parallel_workers": cores(),
        "environments_dir": str(folder / "environments"),
        "grpc_max_message_length": -1,
        "use_structured_logging": False,
    }
    (folder / "metrics").mkdir()
    (folder / "settings.json").write_text(json.dumps(settings))
    for model in models:
        target = folder / "models" / model.name
        target.mkdir(parents=True)
        (target / "model-settings.json").write_text(json.dumps(model_settings(model, threads)))
        shutil.copy(SERVE, target / "serve.py")


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One server, all models."""
    from loadtests.compare.processes import free_port

    ports = [free_port() for _ in range(3)]
    write_folder(work, models, threads, ports)
    launch = Launch(
        label="mlserver",
        command=[str(environment / "bin" / "mlserver"), "start", str(work)],
        ready_path="/v2/health/ready",
        http=ports[0],
        grpc=ports[1],
        settings={},
        files={},
        route=None,
    )
    with launched(launch, models, work, threads) as server:
        yield server


PEER = Peer(
    name="mlserver",
    routes=(oip.GRPC, oip.JSON),
    best=("grpc",),
    serve=serve,
    packages=("mlserver", "onnxruntime", "numpy", "uvicorn", "grpcio"),
)
