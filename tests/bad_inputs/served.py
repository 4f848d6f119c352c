"""The gateway under attack: a process of its own, with models that misbehave on request.

Run as a script it serves ``MODELS`` with a runtime of its own and answers questions about its
inside on standard input and output: one line in, one line of JSON out.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gateway.tensors import DATATYPES, Array, Parameter, TensorSpec
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport

POISON = 666.0
"""A row with this value makes the `moody` model raise."""
SHORT = 777.0
"""With this one it returns a row too few."""
NAN = 888.0
"""With this one it returns NaN."""
SECRET = "sesame-4711-do-not-print"

Inputs = Mapping[str, Array]


class TestModel(Model):
    """A model around a function of numpy arrays."""

    __test__ = False
    platform = "test"

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, batches: bool
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.batch_dimension = batches

    def infer(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Mapping[str, Array]:
        return {
            out.name: inputs[in_.name] for in_, out in zip(self.inputs, self.outputs, strict=True)
        }


class Add(TestModel):
    def infer(self, inputs: Inputs, outputs: Any, parameters: Any) -> Mapping[str, Array]:
        return {"y": inputs["x"] + 1}


class Moody(TestModel):
    def infer(self, inputs: Inputs, outputs: Any, parameters: Any) -> Mapping[str, Array]:
        x = inputs["x"]
        if (x == POISON).any():
            folder = Path(__file__).parent
            raise FileNotFoundError(f"no weights in {folder}/secret/weights.bin")
        if (x == SHORT).any():
            return {"y": x[:-1]}
        return {"y": np.where(x == NAN, np.float32(np.nan), x + 1)}


class Slow(TestModel):
    """Takes as many seconds as the largest value says, without the GIL."""

    instances = 2

    def infer(self, inputs: Inputs, outputs: Any, parameters: Any) -> Mapping[str, Array]:
        time.sleep(float(np.clip(inputs["x"].max(), 0, 5)))
        return {"y": inputs["x"] + 1}


class Grow(TestModel):
    """Gives as many megabytes as it is asked for."""

    def infer(self, inputs: Inputs, outputs: Any, parameters: Any) -> Mapping[str, Array]:
        return {"y": np.zeros(int(inputs["x"][0]) << 18, np.float32)}


class Ticks(TestModel):
    """Gives as many answers as it is asked for, of `pad` floats; the one at `fail_at` fails."""

    decoupled = True
    parameters_matter = True
    instances = 64

    def stream(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Mapping[str, Parameter]
    ) -> Iterator[Mapping[str, Array]]:
        for number in range(int(inputs["n"][0])):
            if number == parameters.get("fail_at"):
                raise FileNotFoundError(f"no weights in {Path(__file__).parent}/secret/weights.bin")
            yield {"y": np.full(int(parameters.get("pad", 1)), number, np.float32)}


def fp32(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, DATATYPES["FP32"], shape)


def models() -> dict[str, tuple[TestModel, dict[str, Any]]]:
    """Name → the model and its ``model.yaml``."""
    x, y = fp32("x", -1, 4), fp32("y", -1, 4)
    free = fp32("x", -1, -1), fp32("y", -1, -1)
    made: dict[str, tuple[TestModel, dict[str, Any]]] = {
        "add": (Add([x], [y], batches=True), {}),
        "free": (Add(free[:1], free[1:], batches=True), {}),
        "limited": (Add([x], [y], batches=True), {"limits": {"max_rows": 8}}),
        "moody": (Moody([x], [y], batches=True), {"batching": {"max_delay_us": 50_000}}),
        "slow": (Slow([x], [y], batches=True), {"max_batch_size": 1}),
        "ranked": (
            Add([x], [y], batches=True),
            {"batching": {"priority_levels": 4, "default_priority": 2}},
        ),
        "fixed": (Add([fp32("x", 2, 3)], [fp32("y", 2, 3)], batches=False), {}),
        "grow": (
            Grow([TensorSpec("x", DATATYPES["INT32"], (1,))], [fp32("y", -1)], batches=False), {},
        ),
        "ticks": (
            Ticks([TensorSpec("n", DATATYPES["INT64"], (1,))], [fp32("y", -1)], batches=False), {},
        ),
        "pair": (
            TestModel(
                [fp32("a", -1, 2), TensorSpec("b", DATATYPES["INT64"], (-1, 2))],
                [fp32("c", -1, 2), TensorSpec("d", DATATYPES["INT64"], (-1, 2))],
                batches=True,
            ),
            {},
        ),
    }  # fmt: skip
    for name, kind in DATATYPES.items():
        made[f"echo_{name.lower()}"] = (
            TestModel(
                [TensorSpec("x", kind, (-1, 2))], [TensorSpec("y", kind, (-1, 2))], batches=True
            ),
            {},
        )
    return made


class TestRuntime(Runtime):
    """Loads a model by its name."""

    __test__ = False
    name = "test"

    def __init__(self) -> None:
        self._models = models()

    def report(self) -> RuntimeReport:
        return RuntimeReport(name="test", available=True, formats=("model.test",))

    def probe(self, artifact: Artifact) -> bool:
        return artifact.file("model.test").is_file()

    def estimate(self, artifact: Artifact) -> int:
        return 0

    def load(self, artifact: Artifact) -> Model:
        if artifact.model == "broken":
            raise OSError(f"[Errno 5] cannot read '{artifact.path}/model.test'")
        return self._models[artifact.model][0]


def write_models(folder: Path) -> None:
    """The directory of models that `TestRuntime` serves."""
    wanted = {name: settings for name, (_, settings) in models().items()}
    for name, settings in {**wanted, "broken": {}}.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.test").write_text("")
        if settings:
            (folder / name / "model.yaml").write_text(yaml.safe_dump(settings))


def memory() -> int:
    """Bytes that this process holds."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak(threading.Thread):
    """The most memory since `reset`, sampled: the kernel's own mark cannot be set back."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.value = memory()

    def run(self) -> None:
        while True:
            self.value = max(self.value, memory())
            time.sleep(0.01)


async def main(folder: str, settings: dict[str, Any]) -> None:
    import gateway.app as app
    from gateway.config import load_config
    from gateway.telemetry import logs

    app.load_runtimes = lambda: {"test": TestRuntime()}
    config, _ = load_config(flags={"sources": [folder], **settings}, environment={})
    logs.set_up("info", "text")
    gateway = app.Gateway(config)
    await gateway.start()
    peak = Peak()
    peak.start()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def inside() -> dict[str, Any]:
        server = gateway.http._server
        assert server is not None
        native = gateway.native
        return {
            "grpc_server": gateway.grpc_server,
            "in_flight": gateway.admission.in_flight,
            "body_bytes": gateway.http._shared.body_bytes,
            "connections": len(server.server_state.connections),
            "pending": sum(s.dispatcher.pending for s in gateway.facts.servables()),
            "waiting": sum(s.dispatcher.waiting for s in gateway.facts.servables()),
            "calls": len(native._calls) if native is not None else 0,
            "executions": {s.name: s.stats.execution_count for s in gateway.facts.servables()},
            "memory": memory(),
            "peak": peak.value,
        }

    def asked() -> None:
        line = sys.stdin.readline().strip()
        if not line:
            loop.remove_reader(sys.stdin)
            stop.set()
            return
        if line == "reset":
            peak.value = memory()
        print(json.dumps(inside()), flush=True)

    http = gateway.addresses()["http"].removeprefix("http://")
    print(json.dumps({"http": http, "grpc": gateway.addresses()["grpc"]}), flush=True)
    loop.add_reader(sys.stdin, asked)
    await stop.wait()
    await gateway.drain(config.drain.grace)
    await gateway.close()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
    else:
        uvloop.run(main(sys.argv[1], json.loads(sys.argv[2])))
