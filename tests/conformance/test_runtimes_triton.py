"""`TritonRuntime` keeps the contract of a runtime, in front of a real tritonserver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from gateway.model_settings import ModelSettings
from gateway.tensors import Array
from runtimes.conformance import RuntimeConformance
from runtimes.interface import Artifact, Model
from runtimes.remote.triton import TritonRuntime
from tests.support.triton import TritonProcess


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    with TritonProcess(tmp_path_factory.mktemp("triton")) as server:
        yield server


class Triton(RuntimeConformance):
    runtime = TritonRuntime()
    model: ClassVar[str]
    server: ClassVar[TritonProcess]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, triton: TritonProcess) -> None:
        cls.server = triton

    @pytest.fixture(autouse=True)
    def _alive(self) -> None:
        # Streams that are left early have crashed this tritonserver (seen once, on a busy machine):
        # that is one test's matter.
        if self.server.process is None or self.server.process.poll() is not None:
            self.server.start()

    def artifact(self, folder: Path) -> Artifact:
        document = {"runtime": "triton", "url": self.server.url, "model": self.model}
        (folder / "remote.yaml").write_text(json.dumps(document))
        return Artifact("conformance", "7", folder, ModelSettings())


class TestBatched(Triton):
    model = "add"
    library = ("tritonclient",)


class TestDecoupled(Triton):
    model = "repeat"

    def inputs(self, model: Model, rows: int, seed: int = 0) -> dict[str, Array]:
        return {"times": np.array([3 + seed], np.int32)}

    def bad_inputs(self, model: Model) -> dict[str, Array]:
        return {"times": np.array([-2], np.int32)}
