"""The torch runtime passes the suite that third parties run on theirs, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateway.model_settings import ModelSettings
from runtimes.conformance import RuntimeConformance
from runtimes.interface import Artifact
from runtimes.torch import TorchRuntime

torch = pytest.importorskip("torch")
from tests.support import torch_models  # noqa: E402 - it imports PyTorch


class TorchCase(RuntimeConformance):
    runtime = TorchRuntime()
    settings: ClassVar[dict[str, Any]] = {}

    def write(self, folder: Path) -> None:
        raise NotImplementedError

    def artifact(self, folder: Path) -> Artifact:
        self.write(folder)
        return Artifact("case", "1", folder, ModelSettings(**self.settings))


class TestTorchScript(TorchCase):
    settings: ClassVar[dict[str, Any]] = {**torch_models.MLP_SIGNATURE, "instances": 3}

    def write(self, folder: Path) -> None:
        torch_models.save_script(torch_models.make_mlp(), folder / "model.pt")


class TestTorchTracedCnn(TorchCase):
    """Writes into its inputs."""

    settings = torch_models.CNN_SIGNATURE

    def write(self, folder: Path) -> None:
        inputs = (torch.rand(2, 3, 8, 8),)
        torch_models.save_traced(torch_models.make_cnn(), inputs, folder / "model.pt")


class TestTorchProgram(TorchCase):
    settings: ClassVar[dict[str, Any]] = {"instances": 2}

    def write(self, folder: Path) -> None:
        inputs = (torch.rand(2, 3, 8, 8),)
        torch_models.save_program(torch_models.make_cnn(), inputs, folder / "model.pt2")


class TestTorchStateDict(TorchCase):
    settings: ClassVar[dict[str, Any]] = {
        **torch_models.CNN_SIGNATURE,
        "options": {"factory": "tests.support.torch_models:make_cnn"},
    }

    def write(self, folder: Path) -> None:
        torch.save(torch_models.make_cnn().state_dict(), folder / "model.pt")


@pytest.mark.skipif(bool(torch_models.no_compiler()), reason=torch_models.no_compiler())
class TestTorchPackage(TorchCase):
    settings: ClassVar[dict[str, Any]] = {**torch_models.MLP_SIGNATURE, "instances": 2}

    def write(self, folder: Path) -> None:
        torch_models.save_package(folder / "model.pt2")
