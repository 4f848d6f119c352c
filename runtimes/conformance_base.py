"""What the checks of `runtimes.conformance` have in common: loading, made-up values, comparing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np

from gateway.tensors import (
    BYTES,
    Array,
    InferenceRequest,
    Parameter,
    Tensor,
    TensorSpec,
    as_bytes,
    datatype_of,
    objects,
)
from runtimes.hosts import LoopHost
from runtimes.interface import Artifact, AsyncModel, Model, Outputs, Runtime

T = TypeVar("T")

ROWS: Final = 5
ANY_SIZE: Final = 2
"""What -1 becomes in dimensions other than the batch."""


def require(condition: bool, text: str) -> None:
    """An assertion that holds its text where asserts are not rewritten, and under ``-O``."""
    if not condition:
        raise AssertionError(text)


class Suite:
    """What a third party says of its runtime, and what the checks need."""

    runtime: ClassVar[Runtime]
    tolerance: ClassVar[float] = 1e-4
    """Relative and absolute, between rows run apart and rows run together."""
    deterministic: ClassVar[bool] = True
    """Whether equal inputs give equal answers; without it, answers are not compared."""
    library: ClassVar[tuple[str, ...]] = ()
    """Packages that nothing but `load` may import, such as ``torch``; empty where a runtime needs
    none. Without them `report` and `load` must say what to install."""
    any_option: ClassVar[bool] = False
    """Whether every key of ``options`` means something, as where a model reads them itself."""
    patience: ClassVar[float] = 60.0
    """Seconds after which something that should have ended counts as hung."""

    def artifact(self, folder: Path) -> Artifact:
        """A small good artifact, written into `folder`, which exists and is empty."""
        raise NotImplementedError("write artifact()")

    def broken(self, folder: Path) -> Artifact:
        """One that must not load; here the good one with its files overwritten."""
        artifact = self.artifact(folder)
        for file in folder.rglob("*"):
            if file.is_file():
                file.write_bytes(b"\0this is not a model\xff" * 50)
        return artifact

    def inputs(self, model: Model, rows: int, seed: int = 0) -> dict[str, Array]:
        """Good inputs with `rows` rows where the model has a batch dimension."""
        random = np.random.default_rng(seed)
        return {
            spec.name: made_up(spec, rows if model.batch_dimension else None, random)
            for spec in model.inputs
            if not spec.optional
        }

    def bad_inputs(self, model: Model) -> dict[str, Array] | None:
        """Inputs that the model cannot answer (a stream may fail in the middle); None when it
        can answer any."""
        inputs = self.inputs(model, 1)
        if not inputs:
            return None
        name = next(iter(inputs))
        return {**inputs, name: inputs[name].reshape((1, 1, 1, *inputs[name].shape))}

    # -- for the checks ------------------------------------------------------------------

    @contextmanager
    def hosted(self, artifact: Artifact) -> Iterator[Artifact]:
        """The artifact with a host: its own, or one that lives as long as this."""
        if artifact.host is not None:
            yield artifact
            return
        with LoopHost() as host:
            yield replace(artifact, host=host)

    @contextmanager
    def loaded(self, folder: Path) -> Iterator[Model]:
        """The good artifact's model, closed at the end."""
        with self.hosted(self.artifact(folder)) as artifact:
            model = self.runtime.load(artifact)
            try:
                yield model
            finally:
                model.close()

    def answers(
        self,
        model: Model,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
    ) -> list[Outputs]:
        """All answers to one request: one, or those of a stream."""
        if not model.decoupled:
            return [model.infer(inputs, outputs, parameters or {})]
        if isinstance(model, AsyncModel):
            stream = model.stream_async(inputs, outputs, parameters or {})
            return self.on_loop(model, collect(stream))
        return list(model.stream(inputs, outputs, parameters or {}))

    def on_loop(self, model: AsyncModel, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work` on the model's loop."""
        future = asyncio.run_coroutine_threadsafe(work, model.loop)
        try:
            return future.result(self.patience)
        except TimeoutError:
            future.cancel()
            raise AssertionError(f"no answer within {self.patience:g} s") from None

    def in_thread(self, work: Callable[[], T], what: str) -> T:
        """The result of `work`, done in a thread of its own."""
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.patience)
        require(not thread.is_alive(), f"{what} did not end within {self.patience:g} s")
        if errors:
            raise errors[0]
        return results[0]

    def comparable(self, model: Model) -> bool:
        """Whether equal inputs must give equal answers."""
        return self.deterministic and not model.stateful

    def same_answers(self, what: str, got: list[Outputs], expected: list[Outputs]) -> None:
        """Raises unless both are the same."""
        require(len(got) == len(expected), f"{what}: {len(got)} answers, not {len(expected)}")
        for one, other in zip(got, expected, strict=True):
            for name, array in one.items():
                if name in other:
                    self.same(f"{what}: output {name}", array, other[name])

    def same(self, what: str, got: Array, expected: Array) -> None:
        """Raises unless both are the same, but for rounding."""
        require(got.shape == expected.shape, f"{what}: {got.shape} is not {expected.shape}")
        if datatype_of(got).kind == "float":
            close = np.allclose(
                got.astype(np.float64),
                expected.astype(np.float64),
                rtol=self.tolerance,
                atol=self.tolerance,
                equal_nan=True,
            )
            require(close, f"{what}: {got} is not {expected}")
        else:
            require(np.array_equal(got, expected), f"{what}: {got} is not {expected}")


async def collect(answers: AsyncIterator[Outputs]) -> list[Outputs]:
    return [each async for each in answers]


def made_up(spec: TensorSpec, rows: int | None, random: np.random.Generator) -> Array:
    """Values of a declared tensor; `rows` is the first dimension unless `None`."""
    shape = tuple(ANY_SIZE if dim < 0 else dim for dim in spec.shape)
    if rows is not None:
        shape = (rows, *shape[1:])
    if spec.datatype is BYTES:
        size = int(np.prod(shape))
        return objects([b"text %d" % n for n in random.integers(0, 100, size)], shape)
    if spec.datatype.kind == "float":
        return random.random(shape).astype(spec.datatype.dtype)
    return random.integers(0, 2, shape).astype(spec.datatype.dtype)


def request_of(inputs: Mapping[str, Array], model: str = "conformance") -> InferenceRequest:
    """A whole request to any version of `model`, as front ends make them."""
    tensors = tuple(
        Tensor(name, datatype_of(array), array.shape, array=array) for name, array in inputs.items()
    )
    return InferenceRequest(model, "", tensors, id="one")


def unaligned(array: Array) -> Array:
    """The same values at an odd address, read-only, as a body with a header leaves them."""
    if array.dtype.kind == "O":
        return array
    raw = b"\0" + array.tobytes()
    return np.frombuffer(raw, array.dtype, offset=1).reshape(array.shape)


def check_answer(model: Model, outputs: Outputs, rows: int | None) -> None:
    """Raises unless an answer has what the model declares; `rows` where they are known. Answers
    of a stream may leave outputs out."""
    declared = {spec.name: spec for spec in model.outputs}
    for spec in model.outputs:
        require(model.decoupled or spec.name in outputs, f"output {spec.name} is missing")
    require(bool(outputs), "an answer without outputs")
    for name, array in outputs.items():
        known = declared.get(name)
        if known is None:
            continue
        check_tensor(known, array)
        if rows is not None and model.batch_dimension:
            require(array.shape[0] == rows, f"output {known} has {array.shape[0]} rows, not {rows}")


def check_tensor(spec: TensorSpec, array: Array) -> None:
    """Raises unless an array is as declared."""
    try:
        kind = datatype_of(array)
    except (AttributeError, KeyError):
        raise AssertionError(f"output {spec} came as {type(array).__name__}") from None
    require(kind is spec.datatype, f"output {spec} came as {array.dtype}")
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
    )
    require(fits, f"output {spec} came with shape {list(array.shape)}")
    if spec.datatype is BYTES:
        for element in array.ravel().tolist():
            require(isinstance(element, (str, bytes)), f"output {spec}: {element!r} is no text")
            as_bytes(element)


def check_message(error: BaseException, folder: Path) -> None:
    """Raises unless an error's text is one line that names no folder."""
    text = str(error)
    require(bool(text) and "\n" not in text, f"errors take one line: {text!r}")
    require(str(folder) not in text, f"errors name no folders: {text!r}")
