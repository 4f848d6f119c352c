"""The contract between the gateway and a runtime.

A runtime is cheap to make and touches its library only when it loads something. It registers
as an entry point in the group ``sluicegate.runtimes``; the built-in ones do the same.
``runtimes.conformance`` is a test suite for anything written against this module.

A loaded version is a `Model` (computes in the caller's thread), an `AsyncModel` (answers
later, without a thread for each batch) or a `ForwardingModel` (passes whole requests on).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from gateway.model_settings import ModelSettings
from gateway.tensors import Array, InferenceRequest, InferenceResponse, Parameter, TensorSpec

__all__ = [
    "MADE_UP",
    "Answer",
    "Artifact",
    "AsyncModel",
    "Description",
    "ForwardingModel",
    "Headers",
    "Host",
    "Model",
    "Runtime",
    "RuntimeReport",
]

MADE_UP: Final = ContextVar("MADE_UP", default=False)
"""True while the gateway tries a new model on made-up values: what they break is no news."""

Outputs = Mapping[str, Array]
Headers = Callable[[str], str | None]
"""Value of a caller's header or metadata key (lower case), `None` where there is none."""


@dataclass(frozen=True)
class Description:
    """The signature of a model that can answer."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Host(Protocol):
    """What the gateway offers to the models in it. `call` and `stream` are for any thread but
    the loop's."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where `AsyncModel.infer_async` is awaited."""

    def call(self, request: InferenceRequest) -> Future[InferenceResponse]:
        """Sends a request to a model of this gateway; cancelling the future cancels it.

        `request.timeout_us` is its deadline. The future raises `SluiceError`.
        """

    def stream(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        """The answers of a model, as they come; closing the iterator cancels the request.

        Raises `SluiceError` while iterated over.
        """

    def describe(self, model: str, version: str = "") -> Description:
        """What a model of this gateway takes and gives, for any thread.

        Raises `ModelNotReady`, `UnknownModel` or `UnknownVersion`.
        """


@dataclass(frozen=True)
class Artifact:
    """The local files of one version: `path` is the version's folder."""

    model: str
    version: str
    path: Path
    settings: ModelSettings
    host: Host | None = field(default=None, compare=False, repr=False)
    """The gateway that loads it; `None` where there is none, as in a test."""
    alone: bool = False
    """Whether its file alone is trusted: code in it may import nothing that lies beside it."""
    isolated: bool = False
    """Whether the process it is loaded in has no other model."""

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
    """The library's, e.g. of ONNX Runtime; empty where there is none, or it is not installed."""
    devices: tuple[str, ...] = ()
    """``cpu`` and ``gpu``, where models can run here."""
    formats: tuple[str, ...] = ()
    """File names or endings that are loaded, e.g. ``onnx``."""
    reason: str = ""
    """Why it is not available: one line, with the exact ``pip install`` where that helps."""
    package: str = ""
    """The distribution it came with, e.g. ``sluicegate``; filled in by the gateway."""
    package_version: str = ""
    """The distribution's; filled in by the gateway."""
    built_in: bool = False
    """Whether it is part of this package; filled in by the gateway."""


class Answer(dict[str, Array]):
    """The outputs of one request by name, with parameters for its caller beside."""

    __slots__ = ("parameters",)

    def __init__(self, outputs: Outputs, parameters: Mapping[str, Parameter] | None = None) -> None:
        super().__init__(outputs)
        self.parameters = parameters


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
    """How many `infer` or `stream` calls may run at the same time."""
    batch_dimension: bool = False
    """Whether every input and output shares one symbolic first dimension."""
    parameters_matter: bool = False
    """Whether `infer` looks at parameters; if so only equal ones share a batch."""
    stateful: bool = False
    """Whether an answer depends on earlier requests: never batched, never run twice."""
    sequences: bool = False
    """Whether requests may belong to sequences, whose parameters it is given."""
    decoupled: bool = False
    """Whether a request has any number of answers: `stream` is called instead of `infer`."""
    probed: bool = True
    """Whether made-up rows may be run when it is loaded, to find out if it can be batched."""
    max_batch_size: int | None = None
    """Most rows of a batch, where the artifact itself says so; 0 = never batched."""
    elsewhere: bool = False
    """Whether another process does the work, and this one has nothing to do but wait for it."""
    inline: bool = True
    """Whether batches that proved cheap may run on the event loop; not where `infer` may wait
    for something, such as another model of the gateway."""
    separate: bool = False
    """Whether the requests of a batch reach the model unjoined: `infer_each` is called instead
    of `infer`, and `stream_each` instead of `stream`. `max_batch_size` is what counts then."""
    fresh: bool = False
    """Whether each answer is in memory of its own, which neither the model nor anybody else changes
    after `infer` has returned: large tensors are then sent from there, not from a copy."""
    joined: bool | None = None
    """Whether several requests share a batch, where the artifact itself says so."""

    @abstractmethod
    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Outputs:
        """Runs the model once.

        `inputs` are read-only arrays of the declared datatypes (BYTES: object arrays of
        `bytes`). `outputs` names those needed, empty for all. The answer holds at least
        them; with `batch_dimension`, each has as many rows as the inputs.

        Raises `gateway.errors.InvalidInput` when the input's values are at fault,
        `gateway.errors.InferenceFailed` (or anything else) when the model is.
        """

    def stream(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Iterator[Outputs]:
        """The answers to one request, none or more; for `decoupled` models alone.

        Runs in a thread. When the caller goes away the iterator is closed: a generator sees
        `GeneratorExit` at its `yield`. Raises like `infer`.
        """
        raise NotImplementedError(f"{type(self).__name__} is decoupled, but has no stream()")

    def infer_each(
        self, requests: Sequence[InferenceRequest], gone: Callable[[int], bool]
    ) -> Sequence[Outputs | Exception]:
        """The requests of one batch, answered one by one; for `separate` models alone.

        All have the same signature. `gone` says whether the caller of the request with that
        index has gone away. An exception ends that request alone; raising one fails the batch.
        Answers may be `Answer` objects.
        """
        raise NotImplementedError(f"{type(self).__name__} is separate, but has no infer_each()")

    def close(self) -> None:  # noqa: B027 - most models have nothing to give back
        """Gives memory and devices back. Nothing is running when it is called."""


class AsyncModel(Model):
    """A model whose work is done elsewhere: awaited on `loop`, which it must never block."""

    closing: asyncio.Future[object] | None = None
    """What `close` has left to do on the loop, for which the gateway waits at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    @abstractmethod
    async def infer_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Outputs:
        """As `infer`; `instances` of them at most are awaited at once. Being cancelled stops
        the work."""

    async def infer_until(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
        deadline: float | None,
        headers: Headers,
    ) -> Outputs:
        """The same for one batch of the gateway's: `deadline` is the latest of its requests', in
        seconds of `time.perf_counter`, and `headers` are those of its request where it is one
        alone. Models that have no use for them need not have this; they are cancelled when
        nobody waits for the batch any more."""
        return await self.infer_async(inputs, outputs, parameters)

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Outputs:
        """The same for threads other than the loop's, such as the one that loads."""
        work = self.infer_async(inputs, outputs, parameters)
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stream_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> AsyncIterator[Outputs]:
        """As `stream`, iterated over on `loop` and closed (`aclose`) when the caller is gone."""
        raise NotImplementedError(f"{type(self).__name__} is decoupled, but has no stream_async()")

    def stream(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Iterator[Outputs]:
        """The same for threads other than the loop's, such as the one that loads."""
        answers = self.stream_async(inputs, outputs, parameters)

        async def following() -> Outputs | None:
            return await anext(answers, None)

        async def close() -> None:
            if isinstance(answers, AsyncGenerator):
                await answers.aclose()

        def wait(step: Coroutine[None, None, Outputs | None]) -> Outputs | None:
            return asyncio.run_coroutine_threadsafe(step, self.loop).result()

        try:
            while (given := wait(following())) is not None:
                yield given
        finally:
            wait(close())

    def stream_each(self, request: InferenceRequest) -> AsyncIterator[Outputs]:
        """As `stream_async`, for `separate` models: with all that the request says."""
        raise NotImplementedError(f"{type(self).__name__} is decoupled, but has no stream_each()")


class ForwardingModel(AsyncModel):
    """A model on another server: whole requests go there, undecoded where that is possible."""

    batches_itself: bool = True
    """Whether each request is passed on by `forward`; else the gateway forms batches and calls
    `infer_async`."""

    @abstractmethod
    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        """The server's answer to one request, under our name and version of the model.

        `request.wire`, where it is not `None`, is the request as a serialized
        ``ModelInferRequest`` with raw contents; then the answer may be `wire` as well.
        `deadline` is in seconds of `time.perf_counter`. Raises `SluiceError`.
        """

    def forward_stream(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> AsyncIterator[InferenceResponse]:
        """The same for decoupled models."""
        raise NotImplementedError(f"{type(self).__name__} is decoupled, but has no forward_stream")

    def status(self) -> dict[str, object]:
        """What `sluice models` shows beside: endpoints and their health."""
        return {}


class Runtime(ABC):
    """A kind of model that can be served."""

    name: str
    preload: tuple[str, ...] = ()
    """Modules that take long to import, for processes that wait to take over from another."""

    @abstractmethod
    def report(self) -> RuntimeReport:
        """Whether the runtime can be used here, without loading its library."""

    @abstractmethod
    def probe(self, artifact: Artifact) -> bool:
        """Whether `artifact` looks like one of ours; judged by file names, quick."""

    @abstractmethod
    def estimate(self, artifact: Artifact) -> int:
        """Upper bound of the memory that loading takes here, in bytes; 0 for a model `elsewhere`.

        It is meant for a budget of memory; the gateway decides nothing by it yet.
        """

    def executes_code(self, artifact: Artifact) -> str:
        """What of `artifact` runs as code when it is loaded or used, e.g. ``model.py``; empty
        where nothing does. Such artifacts are loaded from trusted sources alone."""
        return ""

    def code_file(self, artifact: Artifact) -> Path | None:
        """The file where the code starts; `None` where it is more than one file. Naming this
        file as a source is enough for it to be trusted (see `Artifact.alone`)."""
        return None

    def code_folders(self, artifact: Artifact) -> tuple[Path, ...]:
        """Folders beside the version's own that the code may import modules from."""
        return ()

    @abstractmethod
    def load(self, artifact: Artifact) -> Model:
        """Loads it, blocking, in a thread of the gateway's.

        Raises `gateway.errors.ModelLoadError` with a cause that a person can act on.
        """
