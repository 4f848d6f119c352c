"""A runtime whose models answer any number of times, and a gateway that has it.

Every model keeps a journal of what it began, made and ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gateway.tensors import DATATYPES, Array, Parameter, TensorSpec
from runtimes.interface import Artifact, AsyncModel, Model, Runtime, RuntimeReport
from tests.support.gateway import ROOT, GatewayProcess

NAME = "streaming-test"
INT64, BYTES, BOOL, FP32 = (DATATYPES[name] for name in ("INT64", "BYTES", "BOOL", "FP32"))
Inputs = Mapping[str, Array]
Outputs = Mapping[str, Array]
Parameters = Mapping[str, Parameter]


class Journal:
    """Lines in a file: one process writes, the test reads. Outside the models' folder, whose
    changes the gateway watches. `version` is a version's folder."""

    def __init__(self, version: Path) -> None:
        models = version.parents[1]
        self._path = models.with_name(f"{models.name}-{version.parent.name}-{version.name}.txt")

    def write(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line + "\n")

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def count(self, line: str) -> int:
        return self.lines().count(line)


def answers(inputs: Inputs, parameters: Parameters) -> Iterator[Outputs]:
    """0 to ``n`` - 1, with as many bytes beside as the parameter ``pad`` says; one before
    ``fail_at`` is the last that does not fail."""
    array = np.zeros(1, np.int64)  # the same one again and again, as a frugal model has it
    for value in range(int(inputs["n"][0])):
        if value == parameters.get("fail_at"):
            raise ValueError("no more of these")
        array[0] = value
        seen = ",".join(sorted(parameters)).encode()
        pad = np.array([seen.ljust(int(parameters.get("pad", 0)), b"-")], object)
        yield {"y": array, "pad": pad}


class Counts(Model):
    """Counts in a thread."""

    inputs = (TensorSpec("n", INT64, (1,)), TensorSpec("extra", FP32, (-1, 2), optional=True))
    outputs = (TensorSpec("y", INT64, (1,)), TensorSpec("pad", BYTES, (1,)))
    platform = "test"
    decoupled = True
    parameters_matter = True

    def __init__(self, journal: Journal, instances: int) -> None:
        self.journal = journal
        self.instances = instances

    def infer(self, inputs: Inputs, outputs: Any, parameters: Parameters) -> Outputs:
        raise NotImplementedError

    def stream(self, inputs: Inputs, outputs: Any, parameters: Parameters) -> Iterator[Outputs]:
        self.journal.write("begun")
        try:
            for each in answers(inputs, parameters):
                time.sleep(float(parameters.get("pause", 0)))
                self.journal.write("made")
                yield each
        except GeneratorExit:
            self.journal.write("stopped")
            raise
        finally:
            self.journal.write("ended")


class CountsAsync(AsyncModel):
    """The same on the loop."""

    inputs = Counts.inputs
    outputs = Counts.outputs
    decoupled = True
    parameters_matter = True

    def __init__(self, journal: Journal, instances: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.journal = journal
        self.instances = instances

    async def infer_async(self, inputs: Inputs, outputs: Any, parameters: Parameters) -> Outputs:
        raise NotImplementedError

    async def stream_async(
        self, inputs: Inputs, outputs: Any, parameters: Parameters
    ) -> AsyncIterator[Outputs]:
        self.journal.write("begun")
        try:
            for each in answers(inputs, parameters):
                await asyncio.sleep(float(parameters.get("pause", 0)))
                self.journal.write("made")
                yield each
        except (GeneratorExit, asyncio.CancelledError):
            self.journal.write("stopped")
            raise
        finally:
            self.journal.write("ended")


class Talker(Model):
    """Like the language models that `/generate` was made for: repeats a text."""

    inputs = (
        TensorSpec("text_input", BYTES, (1, 1)),
        TensorSpec("stream", BOOL, (1, 1), optional=True),
        TensorSpec("times", INT64, (1, 1), optional=True),
    )
    outputs = (TensorSpec("text_output", BYTES, (1, 1)), TensorSpec("scores", FP32, (1, 3)))
    decoupled = True

    def infer(self, inputs: Inputs, outputs: Any, parameters: Parameters) -> Outputs:
        raise NotImplementedError

    def stream(self, inputs: Inputs, outputs: Any, parameters: Parameters) -> Iterator[Outputs]:
        for number in range(int(inputs["times"][0, 0]) if "times" in inputs else 1):
            scores = np.array([[number, 0.5, 1]], np.float32)
            yield {"text_output": inputs["text_input"], "scores": scores}


class Blind(Model):
    """One answer to each request: what it is asked for, all inputs and parameters as text."""

    inputs = (TensorSpec("x", FP32, (-1, 2)),)
    outputs = (TensorSpec("seen", BYTES, (1,)),)
    parameters_matter = True

    def infer(self, inputs: Inputs, outputs: Any, parameters: Parameters) -> Outputs:
        seen = f"{inputs['x'].tolist()} {dict(parameters)}"
        return {"seen": np.array([seen.encode()], object)}


class StreamingRuntime(Runtime):
    """Found as a plugin: see `gateway_with_streams`."""

    name = NAME

    def report(self) -> RuntimeReport:
        return RuntimeReport(name=NAME, available=True)

    def probe(self, artifact: Artifact) -> bool:
        return False

    def estimate(self, artifact: Artifact) -> int:
        return 0

    def load(self, artifact: Artifact) -> Model:
        journal = Journal(artifact.path)
        instances = artifact.settings.instances or 2
        kind = artifact.settings.options["kind"]
        if kind == "counts":
            return Counts(journal, instances)
        if kind == "counts-async":
            assert artifact.host is not None
            return CountsAsync(journal, instances, artifact.host.loop)
        return Talker() if kind == "talker" else Blind()


def write_model(folder: Path, name: str, kind: str, count: int = 1, **settings: Any) -> None:
    """A model of this runtime in `count` versions, with `settings` as in model.yaml."""
    import yaml

    for version in range(1, count + 1):
        (folder / name / str(version)).mkdir(parents=True)
        (folder / name / str(version) / "model.txt").touch()
    document = {"runtime": NAME, "options": {"kind": kind}, **settings}
    (folder / name / "model.yaml").write_text(yaml.safe_dump(document))


def gateway_with_streams(folder: Path, models: Path, **arguments: Any) -> GatewayProcess:
    """A gateway that has the runtime installed as a plugin."""
    plugin = folder / "plugin"
    info = plugin / "streaming_test-1.0.dist-info"
    if not info.exists():
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: streaming-test\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(
            f"[sluicegate.runtimes]\n{NAME} = tests.support.streaming:StreamingRuntime\n"
        )
    environment = {"PYTHONPATH": f"{ROOT}:{plugin}"}
    return GatewayProcess(folder, [models], environment=environment, **arguments)
