"""MLflow's server: ``mlflow models serve`` of a model of its ONNX flavour."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from loadtests.compare.peers.base import Peer, Route
from loadtests.compare.peers.launch import START_S, Launch, launched
from loadtests.compare.wire import Floats, HttpRequest, Rows
from loadtests.errors import BenchError

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

SAVE: Final = Path(__file__).with_name("save.py")


def encode(model: str, rows: Rows) -> HttpRequest:
    """``/invocations``; a server holds one model, so its name is not sent."""
    body = json.dumps({"inputs": {"x": rows.tolist()}}, separators=(",", ":")).encode()
    return HttpRequest("/invocations", body, {"Content-Type": "application/json"})


def decode(body: bytes, headers: Mapping[str, str]) -> Floats:
    """``{"predictions": {"y": [[...]]}}``."""
    try:
        return np.array(json.loads(body)["predictions"]["y"], np.float32)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no predictions of y in {body[:200]!r}") from error


NATIVE: Final = Route("native", encode, decode, like="invocations")


def save(environment: Path, model: Model, threads: int) -> Path:
    """The model as MLflow keeps it, beside its file; written once."""
    folder = model.path.parent / "mlflow" / f"{model.name}-{threads}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        python = str(environment / "bin" / "python")
        said = subprocess.run(
            [python, str(SAVE), str(model.path), str(folder), str(threads)],
            check=False,
            capture_output=True,
            text=True,
            cwd=folder.parent,
            timeout=START_S,
        )
        if said.returncode:
            why = said.stderr.strip().splitlines()[-1:]
            raise BenchError(f"MLflow does not save {model.name}: {why}")
    return folder


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One server, the one model."""
    from loadtests.compare.processes import free_port
    from loadtests.kernel import cores

    (model,) = models
    folder = save(environment, model, threads)
    port = free_port()
    command = [str(environment / "bin" / "mlflow"), "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    launch = Launch(
        label="mlflow",
        command=[*command, "--workers", str(cores())],
        ready_path="/ping",
        http=port,
        settings={},
        files={},
        route=NATIVE,
        env={
            "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "UVICORN_LOG_LEVEL": "warning",  # otherwise a line for every request
        },
    )
    with launched(launch, models, work, threads) as server:
        yield server


PEER = Peer(
    name="mlflow",
    routes=(NATIVE,),
    serve=serve,
    packages=("mlflow", "onnxruntime", "numpy", "uvicorn"),
    one_model=True,
)
