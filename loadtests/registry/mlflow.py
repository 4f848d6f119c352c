"""A real MLflow server (sqlite, artifacts served), and models registered over REST."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from loadtests.compare.processes import free_port
from loadtests.errors import BenchError

API = "/api/2.0/mlflow/"
START_S = 120.0


class Mlflow:
    """Its address, and what is asked of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.source = f"mlflow+{url}"
        self._http = httpx.Client(base_url=url, timeout=60)

    def post(self, path: str, **document: object) -> Any:
        """The answer to one call. Raises `BenchError`."""
        answer = self._http.post(API + path, json=document)
        if answer.status_code != 200:
            raise BenchError(f"MLflow answered {answer.status_code}: {answer.text[:200]}")
        return answer.json()

    def put(self, path: str, content: bytes) -> None:
        """Stores an artifact. Raises `BenchError`."""
        answer = self._http.put(f"/api/2.0/mlflow-artifacts/artifacts/{path}", content=content)
        if answer.status_code != 200:
            raise BenchError(f"MLflow answered {answer.status_code}: {answer.text[:200]}")

    def register(self, name: str, files: Mapping[str, bytes]) -> str:
        """A new version with these files; returns its number."""
        run = self.post("runs/create", experiment_id="0", start_time=0)["run"]["info"]
        _, _, path = run["artifact_uri"].partition(":/")
        for file, content in files.items():
            self.put(f"{path}/model/{file}", content)
        source = f"runs:/{run['run_id']}/model"
        made = self.post("model-versions/create", name=name, source=source, run_id=run["run_id"])
        return str(made["model_version"]["version"])

    def point(self, name: str, alias: str, version: str) -> None:
        """Moves an alias."""
        self.post("registered-models/alias", name=name, alias=alias, version=version)

    def close(self) -> None:
        """Its connections."""
        self._http.close()


def default_command() -> str:
    """``mlflow`` of the Python that runs this; `BenchError` where only its client is there."""
    if not (importlib.util.find_spec("mlflow") and importlib.util.find_spec("flask")):
        raise BenchError(
            "MLflow's server is missing: pip install mlflow, or give --mlflow 'PYTHON -m mlflow'"
        )
    return shlex.join([sys.executable, "-m", "mlflow"])


@contextmanager
def serve(command: str, work: Path) -> Iterator[Mlflow]:
    """A server with nothing in it; it and its workers end with the block."""
    work.mkdir(parents=True, exist_ok=True)
    port = free_port()
    words = [
        *shlex.split(command), "server",
        "--backend-store-uri", f"sqlite:///{work / 'mlflow.db'}",
        "--artifacts-destination", str(work / "artifacts"), "--serve-artifacts",
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    own = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = work / "mlflow.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **own},
            cwd=work,
            start_new_session=True,
        )
    mlflow = Mlflow(f"http://127.0.0.1:{port}")
    try:
        until = time.monotonic() + START_S
        while not answers(mlflow.url):
            if process.poll() is not None or time.monotonic() > until:
                tail = log.read_text(errors="replace").splitlines()[-5:]
                raise BenchError(f"MLflow's server did not start: {' / '.join(tail)}")
            time.sleep(0.1)
        yield mlflow
    finally:
        mlflow.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
