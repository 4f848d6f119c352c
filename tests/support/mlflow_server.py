"""A real MLflow server for tests: sqlite, artifacts served, on loopback; and models logged in it.

Import it after `runtimes.mlflow_library`, which keeps mlflow quiet.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import runtimes.mlflow_library  # noqa: F401
from tests.support.environments import environment, python

PATIENCE = 240.0
URIS = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow
    import mlflow.onnx
    import mlflow.pytorch
    import mlflow.sklearn
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature, infer_signature


class MlflowServer:
    """``mlflow server`` below `folder`; it can be killed, and started again at the same place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "mlflow.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.source = f"mlflow+{self.url}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        command = [
            interpreter(), "-m", "mlflow", "server",
            "--backend-store-uri", f"sqlite:///{self.database}",
            "--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts",
            "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
        ]  # fmt: skip
        own = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_WEBHOOK_CACHE_TTL": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **own},
                cwd=self.folder,
                start_new_session=True,
            )
        end = time.monotonic() + PATIENCE
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError((self.folder / "server.log").read_text(errors="replace"))
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, for the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def client(self) -> MlflowClient:
        """MLflow's own client."""
        return MlflowClient(tracking_uri=self.url, registry_uri=self.url)


def interpreter() -> str:
    """The python that has the whole of mlflow."""
    if importlib.util.find_spec("flask") and importlib.util.find_spec("alembic"):
        return sys.executable
    return str(python(environment("mlflow")))


@contextmanager
def logging_to(url: str) -> Iterator[None]:
    """mlflow logs models there, and says nothing."""
    before = {name: os.environ.pop(name, None) for name in URIS}
    mlflow.set_tracking_uri(url)
    mlflow.set_registry_uri(url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        # mlflow hands them on to the processes that we start.
        mlflow.set_tracking_uri("")
        mlflow.set_registry_uri("")
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def log_adder(url: str, name: str, added: float) -> str:
    """Registers ``y = x + added``, FP32 [-1, 4], as an ONNX model; returns the version."""
    import onnx
    from onnx import TensorProto as T
    from onnx import helper as h

    x, y = (h.make_tensor_value_info(each, T.FLOAT, ["N", 4]) for each in "xy")
    graph = h.make_graph(
        [h.make_node("Add", ["x", "c"], ["y"])],
        "g", [x], [y], [h.make_tensor("c", T.FLOAT, [1], [added])],
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    ones = {"x": np.ones((2, 4), np.float32)}
    with logging_to(url):
        logged = mlflow.onnx.log_model(
            model,
            name=name,
            signature=infer_signature(ones, {"y": ones["x"]}),
            input_example=ones,
            pip_requirements=[],
            registered_model_name=name,
        )
    return str(logged.registered_model_version)


def log_iris(url: str, name: str) -> tuple[str, Any, Any]:
    """Registers a logistic regression on iris: version, model, data."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    data, target = load_iris(return_X_y=True, as_frame=True)
    with logging_to(url):
        model = LogisticRegression(max_iter=500).fit(data, target)
        logged = mlflow.sklearn.log_model(
            model,
            name=name,
            signature=infer_signature(data, model.predict(data)),
            input_example=data.head(3),
            pip_requirements=[],
            registered_model_name=name,
            serialization_format="cloudpickle",
        )
    return str(logged.registered_model_version), model, data


def log_twice(url: str, name: str) -> str:
    """Registers ``y = 2 x``, FP32 [-1, 3], as TorchScript; returns the version."""
    import torch
    from mlflow.types import Schema, TensorSpec

    class Twice(torch.nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x * 2

    kind = Schema([TensorSpec(np.dtype("float32"), (-1, 3))])
    with logging_to(url):
        module = torch.jit.trace(Twice().eval(), torch.ones(2, 3))
        logged = mlflow.pytorch.log_model(
            module,
            name=name,
            signature=ModelSignature(inputs=kind, outputs=kind),
            input_example=np.ones((2, 3), np.float32),
            pip_requirements=[],
            registered_model_name=name,
            serialization_format="pickle",
        )
    return str(logged.registered_model_version)
