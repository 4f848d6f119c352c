"""`OipRuntime` keeps the contract of a runtime, on both transports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from gateway.model_settings import ModelSettings
from gateway.tensors import Array
from runtimes.conformance import RuntimeConformance
from runtimes.interface import Artifact, Model
from runtimes.remote.oip import OipRuntime
from tests.support.stand_in import INVALID, StandIn


class Oip(RuntimeConformance):
    runtime = OipRuntime()
    server: ClassVar[StandIn]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls) -> Iterator[None]:
        with StandIn() as cls.server:
            yield

    def url(self) -> str:
        raise NotImplementedError

    def artifact(self, folder: Path) -> Artifact:
        (folder / "remote.yaml").write_text(f"url: {self.url()}\nmodel: add\n")
        return Artifact("conformance", "7", folder, ModelSettings())

    def bad_inputs(self, model: Model) -> dict[str, Array]:
        return {"x": np.full((1, 4), INVALID, np.float32)}


class TestOverGrpc(Oip):
    def url(self) -> str:
        return self.server.grpc_url


class TestOverHttp(Oip):
    library = ("aiohttp",)

    def url(self) -> str:
        return self.server.http_url
