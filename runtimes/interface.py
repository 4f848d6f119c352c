"""The contract between the gateway and a runtime.

A runtime is cheap to make and touches its library only when it loads something. It registers
as an entry point in the group ``sluicegate.runtimes``; the built-in ones do the same.
``runtimes.conformance`` is a test suite for anything written against this module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.model_settings import ModelSettings
from gateway.tensors import Array, Parameter, TensorSpec

__all__ = ["Artifact", "Model", "Runtime", "RuntimeReport"]


@dataclass(frozen=True)
class Artifact:
    """The local files of one version: `path` is the version's folder."""

    model: str
    version: str
    path: Path
    settings: ModelSettings

    def file(self, default: str) -> Path:
        """The artifact's file: as the settings name it, else `default`."""
        name = self.settings.version_files.get(self.version) or self.settings.file or default
        return self.path / name


@dataclass(frozen=True)
class RuntimeReport:
    """What a runtime says of itself: whether it can be used here, and if not, what to install."""

    name: str
    available: bool
    version: str = ""
    devices: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    reason: str = ""


class Model(ABC):
    """One loaded version.

    `infer` is called with the GIL held, from one thread per instance at most, and should
    release it for as long as it computes.
    """

    inputs: tuple[TensorSpec, ...]
    """What clients send; shapes with every dimension, -1 for any size."""
    outputs: tuple[TensorSpec, ...]
    platform: str = ""
    """As in the metadata answer, e.g. ``onnxruntime_onnx``."""
    instances: int = 1
    """How many `infer` calls may run at the same time."""
    batch_dimension: bool = False
    """Whether every input and output shares one symbolic first dimension."""
    parameters_matter: bool = False
    """Whether `infer` looks at parameters; if so only equal ones share a batch."""
    accepts_wire: bool = False
    """Whether the request's undecoded bytes are of use to this model."""

    @abstractmethod
    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """Runs the model once.

        `inputs` are read-only arrays of the declared datatypes (BYTES: object arrays of
        `bytes`). `outputs` names those needed, empty for all. The answer holds at least
        them; with `batch_dimension`, each has as many rows as the inputs.

        Raises `gateway.errors.InvalidInput` when the input's values are at fault,
        `gateway.errors.InferenceFailed` (or anything else) when the model is.
        """

    def close(self) -> None:  # noqa: B027 - most models have nothing to give back
        """Gives memory and devices back. Nothing is running when it is called."""


class Runtime(ABC):
    """A kind of model that can be served."""

    name: str

    @abstractmethod
    def report(self) -> RuntimeReport:
        """Whether the runtime can be used here, without loading its library."""

    @abstractmethod
    def probe(self, artifact: Artifact) -> bool:
        """Whether `artifact` looks like one of ours; judged by file names, quick."""

    @abstractmethod
    def estimate(self, artifact: Artifact) -> int:
        """Upper bound of the memory that loading takes, in bytes."""

    @abstractmethod
    def load(self, artifact: Artifact) -> Model:
        """Loads it, blocking, in a thread of the gateway's.

        Raises `gateway.errors.ModelLoadError` with a cause that a person can act on.
        """
