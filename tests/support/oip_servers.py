"""Other people's inference servers, started for a test: KServe's and MLServer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.support.environments import environment, python
from tests.support.gateway import ROOT

PATIENCE = 180.0

MLSERVER_MODEL = """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import MLServerError
from mlserver.types import InferenceResponse


class Add(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        if x.ravel()[0] < -1e6:
            raise MLServerError("x is far too small", status_code=422)
        y = NumpyCodec.encode_output("y", (x + 1).astype("float32"))
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[y])
"""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class OtherServer:
    """A server in a process of its own that has opened its ports."""

    def __init__(self, command: list[str], http: int, grpc: int, log: Path, cwd: Path) -> None:
        self.urls = {"grpc": f"grpc://127.0.0.1:{grpc}", "http": f"http://127.0.0.1:{http}"}
        self.log_path = log
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd, env=environ,
                start_new_session=True,
            )  # fmt: skip
        try:
            for port in (http, grpc):
                self._wait_for(port)
        except BaseException:
            self.stop()
            raise

    def _wait_for(self, port: int) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > end:
                    text = self.log_path.read_text()
                    raise AssertionError(f"the server did not start:\n{text}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Ends it at once, with the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def kserve(folder: Path) -> OtherServer:
    """KServe's server with `kserve_server`'s models; it notes what it sees in ``notes``."""
    http, grpc = free_ports(2)
    script = str(Path(__file__).with_name("kserve_server.py"))
    command = [sys.executable, script, str(http), str(grpc), str(folder / "notes")]
    (folder / "notes").touch()
    return OtherServer(command, http, grpc, folder / "kserve.log", ROOT)


def mlserver(folder: Path) -> OtherServer:
    """MLServer with a model ``add``, in its own environment."""
    http, grpc = free_ports(2)
    settings = {
        "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_endpoint": None,
        "parallel_workers": 0, "use_structured_logging": False,
    }  # fmt: skip
    tensor = {"datatype": "FP32", "shape": [-1, 4]}
    model = {
        "name": "add", "implementation": "adder.Add",
        "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}],
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    (folder / "adder.py").write_text(MLSERVER_MODEL)
    interpreter = str(python(environment("mlserver")))
    command = [str(Path(interpreter).with_name("mlserver")), "start", str(folder)]
    return OtherServer(command, http, grpc, folder / "mlserver.log", folder)
