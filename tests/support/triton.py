"""A real tritonserver with small models in its Python backend, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final, Self

from loadtests.compare.triton import Environment, copy_backend, find
from tests.support.environments import environment
from tests.support.gateway import wait_until

PATIENCE: Final = 90.0
"""Seconds within which a server starts or stops, on a machine that is busy."""

_HEAD = """\
import os, time
import numpy as np
import triton_python_backend_utils as pb

FOLDER = {folder!r}

def note(name):
    open(os.path.join(FOLDER, name), "w").close()

def take(request, name):
    return pb.get_input_tensor_by_name(request, name).as_numpy()

def answer(**arrays):
    return pb.InferenceResponse([pb.Tensor(name, array) for name, array in arrays.items()])

class TritonPythonModel:
"""

_ADD = """
    def execute(self, requests):
        return [answer(y=take(r, "x") + 1) for r in requests]
"""
_TEXT = """
    def execute(self, requests):
        return [answer(echo=take(r, "text")) for r in requests]
"""
_KINDS = """
    def execute(self, requests):
        return [answer(b=~take(r, "b"), h=take(r, "h") * 2) for r in requests]
"""
_SLOW = """
    def execute(self, requests):
        answers = []
        for request in requests:
            note("slow-started")
            until = time.monotonic() + float(take(request, "seconds").max())
            while time.monotonic() < until and not request.is_cancelled():
                time.sleep(0.005)
            if request.is_cancelled():
                note("slow-cancelled")
            answers.append(answer(y=take(request, "seconds")))
        return answers
"""
_REPEAT = """
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            times = int(take(request, "times").ravel()[0])
            for index in range(abs(times)):
                if request.is_cancelled():
                    note("repeat-cancelled")
                    break
                sender.send(answer(y=np.array([index], np.int32)))
                time.sleep(0.002)
            if times < 0:
                error = pb.TritonError("below zero")
                sender.send(pb.InferenceResponse(error=error))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
_BOOM = """
    def execute(self, requests):
        raise RuntimeError("boom it says")
"""
_SUM = """
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            key = request.correlation_id()
            if take(request, "start").ravel()[0]:
                self.sums[key] = 0
            self.sums[key] = self.sums.get(key, 0) + take(request, "x")
            answers.append(answer(y=self.sums[key].astype(np.int32)))
        return answers
"""


def _config(name: str, inputs: str, outputs: str, *, batch: int = 0, more: str = "") -> str:
    def tensors(text: str) -> str:
        listed = []
        for each in text.split(";"):
            tensor, kind, dims = each.split()
            listed.append(f'{{ name: "{tensor}", data_type: TYPE_{kind}, dims: {dims} }}')
        return ", ".join(listed)

    return (
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: {batch}\n'
        f"input [{tensors(inputs)}]\noutput [{tensors(outputs)}]\n"
        f"instance_group [{{ count: 1, kind: KIND_CPU }}]\n{more}\n"
    )


_SEQUENCE = """\
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  control_input [{ name: "start", control [{
    kind: CONTROL_SEQUENCE_START, int32_false_true: [0, 1] }] }]
}"""

MODELS: Final[dict[str, tuple[str, str]]] = {
    "add": (
        _config("add", "x FP32 [-1]", "y FP32 [-1]", batch=64, more="dynamic_batching { }"),
        _ADD,
    ),
    "wide": (_config("wide", "x FP32 [131072]", "y FP32 [131072]", batch=8), _ADD),
    "text": (_config("text", "text STRING [-1]", "echo STRING [-1]", batch=8), _TEXT),
    "kinds": (_config("kinds", "b BOOL [2];h FP16 [-1]", "b BOOL [2];h FP16 [-1]"), _KINDS),
    "slow": (_config("slow", "seconds FP32 [1]", "y FP32 [1]"), _SLOW),
    "late": (_config("late", "seconds FP32 [1];ballast FP32 [-1]", "y FP32 [1]"), _SLOW),
    "repeat": (
        _config(
            "repeat",
            "times INT32 [1]",
            "y INT32 [1]",
            more="model_transaction_policy { decoupled: true }",
        ),
        _REPEAT,
    ),
    "boom": (_config("boom", "x FP32 [-1]", "y FP32 [-1]", batch=4), _BOOM),
    "sum": (_config("sum", "x INT32 [1]", "y INT32 [1]", batch=4, more=_SEQUENCE), _SUM),
}
"""Name → config.pbtxt and the body of the model's class."""


def free_port() -> int:
    """A port of the loopback interface that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@cache
def triton() -> Environment:
    """The environment with the server, made if need be."""
    return find(environment("triton"))


class TritonProcess:
    """A running tritonserver that holds `models`; `folder` is its own. It can be killed and
    started again on the same ports."""

    def __init__(
        self, folder: Path, models: Iterable[str] = tuple(MODELS), *, wait: bool = True
    ) -> None:
        self.folder = folder
        self.log_path = folder / "triton.log"
        self._prefix = f"tests{os.getpid()}_{id(self)}_"
        self._repository = folder / "repository"
        for name in models:
            config, body = MODELS[name]
            version = self._repository / name / "1"
            version.mkdir(parents=True)
            (version / "model.py").write_text(_HEAD.format(folder=str(folder)) + body)
            (self._repository / name / "config.pbtxt").write_text(config)
        copy_backend(triton(), folder / "backends")
        self.http_port, self.grpc_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.start(wait=wait)
        except BaseException:
            self.kill()
            raise

    @property
    def http(self) -> str:
        """``HOST:PORT``, as tritonclient takes it."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """``HOST:PORT``, as tritonclient takes it."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        """As in ``remote.urls``."""
        return f"grpc://{self.grpc}"

    def start(self, *, wait: bool = True) -> None:
        """Starts the server, which takes seconds."""
        env = triton()
        command = [
            str(env.server / "bin" / "tritonserver"),
            f"--model-repository={self._repository}",
            f"--backend-directory={self.folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            "--http-address=127.0.0.1",
            f"--http-port={self.http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.grpc_port}",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
        ]
        with self.log_path.open("ab") as log:
            # A group of its own: its models' processes end with it, however it ends.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **env.variables()},
                start_new_session=True,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Until every model is."""
        wait_until(self._is_ready, "tritonserver to be ready", PATIENCE)

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(
                f"tritonserver ended with {self.process.returncode}:\n"
                f"{self.log_path.read_text(errors='replace')[-4000:]}"
            )
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5) as got:
                return bool(got.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, to the server and its models' processes."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        for left in Path("/dev/shm").glob(f"{self._prefix}*"):
            left.unlink(missing_ok=True)

    def pause(self) -> None:
        """Stops the server without ending it: it hangs, as far as its callers can tell."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Ends a pause."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kills it and starts it again, on the same ports."""
        self.kill()
        self.start()

    def noted(self, name: str) -> bool:
        """Whether a model has left the note `name`."""
        return (self.folder / name).exists()

    def forget(self, name: str) -> None:
        """Removes a note."""
        (self.folder / name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()  # nobody is interested in how it would end by itself, which takes seconds
