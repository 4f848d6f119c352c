"""A runtime whose models crash, hang and stream when they are told to.

``model.mis`` holds nothing. ``y = 2 x`` (FP32 [N, 2]), unless ``x[n, 0]`` is one of the deeds'
numbers. A file in the version's folder that is called like a deed does it when loading.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gateway.tensors import DATATYPES, Array, InferenceRequest, Parameter, Tensor, TensorSpec
from runtimes.interface import Artifact, Host, Model, Runtime, RuntimeReport

LAST_WORDS = "the last words of a model"


def segfault() -> None:
    ctypes.string_at(0)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    print(LAST_WORDS, file=sys.stderr, flush=True)
    os._exit(3)


def hang() -> None:
    time.sleep(1000)


def hold() -> None:
    """Hangs with the GIL held, so that nothing else in the process runs."""
    ctypes.PyDLL(None).sleep(1000)


def eat() -> None:
    """Takes 2 GiB."""
    np.ones(2**28)


def fail() -> None:
    raise ValueError("told to")


def start() -> None:
    """A process that outlives whoever does not end it."""
    subprocess.Popen(["sleep", "1000"])


DEEDS = dict(enumerate((segfault, kill, leave, hang, hold, eat, fail, start), start=1001))
NUMBERS = {deed.__name__: number for number, deed in DEEDS.items()}
CALL, STREAM, LEAVE, DESCRIBE = 2000.0, 2001.0, 2002.0, 2003.0
"""Ask the model named in the option `call`: for the answer, for the sum of the second column of
all answers, for that of the first ten, for what it takes."""


class Misbehaving(Model):
    """`options`: delay (seconds for each batch), decoupled, call (a model's name), journal (a file
    that gets a line with the rows of each batch)."""

    def __init__(self, options: Mapping[str, Parameter], host: Host | None) -> None:
        flavour = os.environ.get("FLAVOUR", "")
        self.platform = f"misbehaving, numpy {np.__version__}, {flavour}"
        kind = DATATYPES["FP32"]
        self.inputs = (TensorSpec("x", kind, (-1, 2)),)
        self.outputs = (TensorSpec("y", kind, (-1, 2)),)
        self.batch_dimension = True
        self.decoupled = bool(options.get("decoupled"))
        self.instances = int(options.get("instances", 1))
        self.stateful = bool(options.get("stateful"))
        self._delay = float(options.get("delay", 0))
        self._call = str(options.get("call", ""))
        self._journal = str(options.get("journal", ""))
        self._host = host

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """Twice the input, or what its first column tells."""
        x = inputs["x"]
        if self._journal:
            with open(self._journal, "a") as journal:
                print(len(x), file=journal)
        if self._delay:
            time.sleep(self._delay)
        for value in x[:, 0].tolist():
            if value in DEEDS:
                DEEDS[value]()
        if self._call and len(x) and x[0, 0] >= CALL:
            return {"y": self._elsewhere(x)}
        return {"y": x * np.float32(2)}

    def _elsewhere(self, x: Array) -> Array:
        host = self._host
        assert host is not None
        wish = x[0, 0]
        tensor = Tensor("x", DATATYPES["FP32"], x.shape, array=np.ascontiguousarray(x))
        request = InferenceRequest(self._call, "", (tensor,))
        if wish == CALL:
            return np.array(host.call(request).result(30).outputs[0].array)
        if wish == DESCRIBE:
            found = host.describe(self._call)
            return np.array([[len(found.inputs), len(found.outputs[0].shape)]], np.float32)
        total = 0.0
        for count, answer in enumerate(answers := host.stream(request), start=1):
            total += float(answer.outputs[0].array[0, 1])
            if wish == LEAVE and count == 10:
                answers.close()  # type: ignore[attr-defined]
                break
        return np.array([[wish, total]], np.float32)

    def stream(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Iterator[Mapping[str, Array]]:
        """`x[0, 1]` answers: `[0, n]`, then the deed of `x[0, 0]`, if that is one."""
        x = inputs["x"]
        for number in range(int(x[0, 1])):
            if self._delay:
                time.sleep(self._delay)
            yield {"y": np.array([[0, number]], np.float32)}
        if (value := float(x[0, 0])) in DEEDS:
            DEEDS[value]()


class MisbehavingRuntime(Runtime):
    """Loads ``model.mis``."""

    name = "misbehaving"
    preload = ("wave",)

    def report(self) -> RuntimeReport:
        return RuntimeReport(self.name, available=True, formats=("mis",))

    def probe(self, artifact: Artifact) -> bool:
        return artifact.file("model.mis").exists()

    def estimate(self, artifact: Artifact) -> int:
        return 1

    def load(self, artifact: Artifact) -> Model:
        for deed in DEEDS.values():
            if (artifact.path / deed.__name__).exists():
                deed()
        return Misbehaving(artifact.settings.options, artifact.host)


def write_misbehaving(folder: Path, yaml: str = "") -> Path:
    """A model that is isolated, in `folder`."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.mis").touch()
    (folder / "model.yaml").write_text(yaml or "isolation: process\n")
    return folder / "1"
