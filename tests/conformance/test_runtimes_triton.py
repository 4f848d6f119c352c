"""`TritonRuntime` keeps the contract of a runtime, in front of a real tritonserver."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
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
        if self._dead():
            self.server.start()

    def _dead(self) -> bool:
        return self.server.process is None or self.server.process.poll() is not None

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

    # Streams that are left early have crashed this tritonserver (seen once, on a busy machine).

    def test_forwards_streams(self, tmp_path: Path) -> None:
        self._once_more_if_it_dies(super().test_forwards_streams, tmp_path)

    def test_forwarding_can_be_cancelled(self, tmp_path: Path) -> None:
        self._once_more_if_it_dies(super().test_forwarding_can_be_cancelled, tmp_path)

    def test_streams_stop_when_they_are_closed(self, tmp_path: Path) -> None:
        self._once_more_if_it_dies(super().test_streams_stop_when_they_are_closed, tmp_path)

    def test_can_be_cancelled(self, tmp_path: Path) -> None:
        self._once_more_if_it_dies(super().test_can_be_cancelled, tmp_path)

    def _once_more_if_it_dies(self, test: Callable[[Path], None], folder: Path) -> None:
        """What fails while the server lives fails, and so does what kills it each time."""
        for turn in ("first", "second"):
            (folder / turn).mkdir()
            try:
                return test(folder / turn)
            except Exception:
                if turn == "second" or not self._dead():
                    raise
                self.server.start()
        return None
