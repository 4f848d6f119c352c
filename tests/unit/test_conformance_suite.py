"""The conformance suite finds what it is for: each check fails for one runtime made to fail it."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import pytest

from gateway.codecs.oip_grpc import GrpcCodec
from gateway.config import LimitsConfig
from gateway.errors import DeadlineExceeded, InferenceFailed, InvalidInput, ModelLoadError
from gateway.model_settings import ModelSettings
from gateway.tensors import (
    DATATYPES,
    Array,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Tensor,
    TensorSpec,
    datatype_of,
    objects,
)
from runtimes.conformance import RuntimeConformance
from runtimes.interface import (
    Artifact,
    AsyncModel,
    ForwardingModel,
    Headers,
    Model,
    Outputs,
    Runtime,
    RuntimeReport,
)

FP32, BYTES = DATATYPES["FP32"], DATATYPES["BYTES"]
Inputs = Mapping[str, Array]
Parameters = Mapping[str, Parameter]


# --- a good runtime


class Toy(Model):
    """``y = x + 1`` for a matrix, and upper case for a text a row."""

    inputs = (TensorSpec("x", FP32, (-1, -1)), TensorSpec("t", BYTES, (-1,)))
    outputs = (TensorSpec("y", FP32, (-1, -1)), TensorSpec("u", BYTES, (-1,)))
    batch_dimension = True

    def infer(self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters) -> Outputs:
        results = {"y": self.number(inputs["x"], parameters), "u": self.text(inputs["t"])}
        return {name: results[name] for name in outputs or results}

    def number(self, x: Array, parameters: Parameters) -> Array:
        if x.ndim != 2:
            raise InvalidInput("x must be a matrix")
        return np.asarray(x + np.float32(1))

    def text(self, t: Array) -> Array:
        try:
            return objects([each.decode().upper().encode() for each in t.tolist()], t.shape)
        except UnicodeDecodeError:
            raise InvalidInput("t must be UTF-8") from None


class ToyRuntime(Runtime):
    """Loads ``model.toy``, which is JSON."""

    name = "toy"
    model: ClassVar[Callable[[Artifact], Model]] = lambda _: Toy()

    def report(self) -> RuntimeReport:
        return RuntimeReport(self.name, available=True, formats=("model.toy",))

    def probe(self, artifact: Artifact) -> bool:
        return (artifact.path / "model.toy").is_file()

    def estimate(self, artifact: Artifact) -> int:
        return 1000

    def load(self, artifact: Artifact) -> Model:
        for option in artifact.settings.options:
            raise ModelLoadError(f"no option '{option}'")
        try:
            json.loads((artifact.path / "model.toy").read_bytes())
        except OSError:
            raise ModelLoadError("there is no model.toy") from None
        except ValueError:
            raise ModelLoadError("model.toy is damaged") from None
        return type(self).model(artifact)


class Case(RuntimeConformance):
    runtime = ToyRuntime()
    impatience: ClassVar[float] = 0.5
    """The patience with what is meant to fail: some of it only fails by never ending."""

    def artifact(self, folder: Path) -> Artifact:
        (folder / "model.toy").write_text("{}")
        return Artifact("toy", "1", folder, ModelSettings())


def failing(kind: type[Case], folder: Path, *, expected: str = "") -> set[str]:
    """The names of the checks that fail; that of the `expected` one is not waited for long."""
    failed: set[str] = set()
    for name in checks():
        case = kind()
        if name == expected:
            case.patience = kind.impatience  # type: ignore[misc]
        check = getattr(case, name)
        if "tmp_path" not in inspect.signature(check).parameters:
            arguments = []
        else:
            (folder / name).mkdir()
            arguments = [folder / name]
        try:
            check(*arguments)
        except Exception:
            failed.add(name)
    return failed


def checks() -> list[str]:
    return [name for name in dir(RuntimeConformance) if name.startswith("test_")]


def serving(model: Callable[[Artifact], Model]) -> Callable[[type[Case]], type[Case]]:
    """The case's runtime loads this."""

    def decorate(kind: type[Case]) -> type[Case]:
        class Made(ToyRuntime):
            pass

        Made.model = staticmethod(model)  # type: ignore[assignment]
        kind.runtime = Made()
        return kind

    return decorate


# --- good ones of every kind


class Later(AsyncModel):
    inputs, outputs, batch_dimension = Toy.inputs, Toy.outputs, True
    instances = 3

    def __init__(self, artifact: Artifact) -> None:
        assert artifact.host is not None
        super().__init__(artifact.host.loop)
        self.names = (artifact.model, artifact.version)
        self.toy = Toy()

    async def infer_async(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> Outputs:
        await asyncio.sleep(0.001)
        return self.toy.infer(inputs, outputs, parameters)


class Forwarding(Later, ForwardingModel):
    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        if deadline is not None and deadline < perf_counter():
            raise DeadlineExceeded("too late")
        inputs = {tensor.name: tensor.array for tensor in request.inputs}
        results = await self.infer_async(inputs, request.outputs, {})
        tensors = [
            Tensor(name, datatype_of(array), array.shape, array=array)
            for name, array in results.items()
        ]
        answer = InferenceResponse(*self.names, tensors, id=request.id)
        if request.wire is not None:
            answer.wire = wire_of(answer)
            answer.outputs = ()
        return answer

    def status(self) -> dict[str, object]:
        return {"endpoints": {"one": "ready"}}


def wire_of(answer: InferenceResponse) -> bytes:
    return GrpcCodec(LimitsConfig()).encode(answer, typed=False)


class ForwardingStreams(Forwarding):
    decoupled = True
    instances = 2

    async def stream_async(  # type: ignore[override]
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> AsyncIterator[Outputs]:
        for _ in range(3):
            yield await self.infer_async(inputs, outputs, parameters)

    async def forward_stream(  # type: ignore[override]
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> AsyncIterator[InferenceResponse]:
        for _ in range(3):
            yield await self.forward(request, deadline, headers)


class Elsewhere(Forwarding):
    elsewhere = True


class Streaming(Toy):
    decoupled = True
    instances = 2

    def stream(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> Iterator[Outputs]:
        for _ in range(3):
            yield self.infer(inputs, outputs, parameters)


class StreamingLater(Later):
    decoupled = True

    async def stream_async(  # type: ignore[override]
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> AsyncIterator[Outputs]:
        for _ in range(3):
            yield await self.infer_async(inputs, outputs, parameters)


class Separate(Toy):
    separate = True

    def infer_each(
        self, requests: Sequence[InferenceRequest], gone: Callable[[int], bool]
    ) -> Sequence[Outputs | Exception]:
        return [self.infer({t.name: t.array for t in r.inputs}, (), {}) for r in requests]


class Counting(Toy):
    stateful = True
    count = 0

    def number(self, x: Array, parameters: Parameters) -> Array:
        self.count += 1
        return super().number(x, parameters) + np.float32(self.count)


class Scalar(Model):
    inputs = (TensorSpec("x", FP32, ()),)
    outputs = (TensorSpec("y", FP32, ()),)

    def infer(self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters) -> Outputs:
        if inputs["x"].ndim:
            raise InvalidInput("x must be one number")
        return {"y": np.asarray(inputs["x"] * 2, np.float32)}


class WithLibrary(ToyRuntime):
    """Needs a library, `colorsys` say, which nothing else here imports."""

    def report(self) -> RuntimeReport:
        import importlib.util

        there = importlib.util.find_spec("colorsys") is not None
        reason = "" if there else "no colorsys; type: pip install toy[colours]"
        return RuntimeReport(self.name, there, formats=("model.toy",), reason=reason)

    def load(self, artifact: Artifact) -> Model:
        try:
            import colorsys  # noqa: F401
        except ModuleNotFoundError:
            raise ModelLoadError("no colorsys; type: pip install toy[colours]") from None
        return super().load(artifact)


class LibraryCase(Case):
    runtime = WithLibrary()
    library = ("colorsys",)
    impatience = 60.0


@pytest.mark.parametrize("model", [Toy, Streaming, Separate, Counting, Scalar])
def test_good_ones_pass(model: type[Model], tmp_path: Path) -> None:
    @serving(lambda _: model())
    class Good(Case):
        pass

    assert failing(Good, tmp_path) == set()


@pytest.mark.parametrize("model", [Later, Forwarding, ForwardingStreams, StreamingLater])
def test_good_ones_with_a_loop_pass(model: Callable[[Artifact], Model], tmp_path: Path) -> None:
    @serving(model)
    class Good(Case):
        pass

    assert failing(Good, tmp_path) == set()


def test_a_model_elsewhere_takes_no_memory_here(tmp_path: Path) -> None:
    @serving(Elsewhere)
    class Good(Case):
        pass

    Good.runtime.estimate = lambda artifact: 0  # type: ignore[method-assign]
    assert failing(Good, tmp_path) == set()


def test_one_with_a_library_passes(tmp_path: Path) -> None:
    assert failing(LibraryCase, tmp_path) == set()


# --- bad ones: check → case

BAD: dict[str, list[type[Case]]] = {}


def fails(check: str) -> Callable[[type[Case]], type[Case]]:
    def decorate(kind: type[Case]) -> type[Case]:
        BAD.setdefault(check, []).append(kind)
        return kind

    return decorate


def bad_runtime(check: str) -> Callable[[type[ToyRuntime]], type[ToyRuntime]]:
    """A runtime that fails `check`."""

    def decorate(kind: type[ToyRuntime]) -> type[ToyRuntime]:
        fails(check)(type(kind.__name__, (Case,), {"runtime": kind()}))
        return kind

    return decorate


def bad_model(check: str, of: type[Model] = Toy) -> Callable[[type[Model]], type[Model]]:
    """A model that fails `check`."""

    def decorate(kind: type[Model]) -> type[Model]:
        case = type(kind.__name__, (Case,), {})
        later = issubclass(kind, AsyncModel)
        make: Any = kind if later else lambda _: kind()
        fails(check)(serving(make)(case))
        return kind

    return decorate


@bad_runtime("test_reports_that_it_can_be_used")
class OtherName(ToyRuntime):
    def report(self) -> RuntimeReport:
        return RuntimeReport("tyo", available=True, formats=("model.toy",))


@bad_runtime("test_reports_that_it_can_be_used")
class NoFormats(ToyRuntime):
    def report(self) -> RuntimeReport:
        return RuntimeReport(self.name, available=True)


class EagerRuntime(WithLibrary):
    def report(self) -> RuntimeReport:
        try:
            import colorsys  # noqa: F401
        except ModuleNotFoundError:
            return super().report()
        return super().report()


@fails("test_imports_its_library_when_it_loads")
class Eager(LibraryCase):
    runtime = EagerRuntime()


class SilentRuntime(WithLibrary):
    def load(self, artifact: Artifact) -> Model:
        import colorsys  # noqa: F401

        return ToyRuntime.load(self, artifact)


@fails("test_says_what_to_install")
class Silent(LibraryCase):
    runtime = SilentRuntime()


class UninformativeRuntime(WithLibrary):
    def report(self) -> RuntimeReport:
        return ToyRuntime.report(self)


@fails("test_says_what_to_install")
class Uninformative(LibraryCase):
    runtime = UninformativeRuntime()


@bad_runtime("test_probes_only_its_own")
class Greedy(ToyRuntime):
    def probe(self, artifact: Artifact) -> bool:
        return artifact.path.is_dir() and any(artifact.path.iterdir())


@bad_runtime("test_probes_only_its_own")
class Modest(ToyRuntime):
    def probe(self, artifact: Artifact) -> bool:
        return False


@bad_runtime("test_estimates_memory")
class Weightless(ToyRuntime):
    def estimate(self, artifact: Artifact) -> int:
        return 0


@bad_runtime("test_says_what_executes_code")
class Unsure(ToyRuntime):
    def executes_code(self, artifact: Artifact) -> str:
        return f"code in\n{artifact.path}"


@bad_runtime("test_refuses_unknown_options")
class Careless(ToyRuntime):
    def load(self, artifact: Artifact) -> Model:
        plain = Artifact(artifact.model, artifact.version, artifact.path, ModelSettings())
        return super().load(plain)


@bad_runtime("test_refuses_unknown_options")
class Vague(ToyRuntime):
    def load(self, artifact: Artifact) -> Model:
        if artifact.settings.options:
            raise ModelLoadError("some option is wrong")
        return super().load(artifact)


@bad_runtime("test_says_why_a_broken_artifact_does_not_load")
class Credulous(ToyRuntime):
    def load(self, artifact: Artifact) -> Model:
        try:
            return super().load(artifact)
        except ModelLoadError as error:
            if "damaged" in str(error):
                return Toy()
            raise


@bad_runtime("test_says_why_a_broken_artifact_does_not_load")
class Talkative(ToyRuntime):
    def load(self, artifact: Artifact) -> Model:
        try:
            return super().load(artifact)
        except ModelLoadError as error:
            if "damaged" in str(error):
                raise ModelLoadError(f"{artifact.path}/model.toy is damaged") from None
            raise


@bad_runtime("test_says_why_a_missing_artifact_does_not_load")
class Raw(ToyRuntime):
    def load(self, artifact: Artifact) -> Model:
        (artifact.path / "model.toy").read_bytes()
        return super().load(artifact)


@bad_runtime("test_writes_nothing_into_the_folder")
class Littering(ToyRuntime):
    def load(self, artifact: Artifact) -> Model:
        model = super().load(artifact)
        (artifact.path / "compiled.cache").write_bytes(b"fast")
        return model


class Shared(Toy):
    """All that are loaded from one folder share what the first of them closes."""

    boxes: ClassVar[dict[Path, list[int]]] = {}

    def __init__(self, path: Path) -> None:
        self.path = path
        self.box = self.boxes.setdefault(path, [1])

    def number(self, x: Array, parameters: Parameters) -> Array:
        if not self.box:
            raise InferenceFailed("closed")
        return super().number(x, parameters)

    def close(self) -> None:
        self.box.clear()
        self.boxes.pop(self.path, None)


@fails("test_can_be_loaded_twice")
@serving(lambda artifact: Shared(artifact.path))
class SharedCase(Case):
    pass


@bad_model("test_can_be_closed_twice")
class ClosesOnce(Toy):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("double free")
        self.closed = True


@bad_model("test_answers_in_any_thread")
class ThreadBound(Toy):
    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def number(self, x: Array, parameters: Parameters) -> Array:
        if threading.get_ident() != self.thread:
            raise InferenceFailed("made in another thread")
        return super().number(x, parameters)


LEFT: list[threading.Event] = []


@bad_model("test_gives_threads_and_files_back")
class LeavesThreads(Toy):
    def __init__(self) -> None:
        LEFT.append(threading.Event())
        threading.Thread(target=LEFT[-1].wait, daemon=True).start()


@bad_model("test_gives_memory_back")
class Kept(Toy):
    everyone: ClassVar[list[Model]] = []

    def __init__(self) -> None:
        self.everyone.append(self)


@bad_model("test_describes_its_tensors")
class SameName(Toy):
    outputs = (*Toy.outputs, Toy.outputs[0])


@bad_model("test_describes_its_tensors")
class FixedRows(Toy):
    inputs = (*Toy.inputs, TensorSpec("z", FP32, (5,), optional=True))


@bad_model("test_declares_how_it_runs")
class NegativeBatch(Toy):
    max_batch_size = -1


@bad_model("test_declares_how_it_runs")
class NoInstances(Toy):
    instances = 0


@bad_model("test_gives_what_it_declares")
class OtherType(Toy):
    def number(self, x: Array, parameters: Parameters) -> Array:
        return super().number(x, parameters).astype(np.float64)


@bad_model("test_gives_what_it_declares")
class OtherShape(Toy):
    def number(self, x: Array, parameters: Parameters) -> Array:
        return super().number(x, parameters)[:, :, None]


@bad_model("test_gives_what_it_declares")
class StreamsAnother(Streaming):
    def number(self, x: Array, parameters: Parameters) -> Array:
        return super().number(x, parameters).astype(np.float64)


@bad_model("test_gives_the_outputs_asked_for")
class FirstOnly(Toy):
    def infer(self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters) -> Outputs:
        return super().infer(inputs, ("y",) if outputs else (), parameters)


@bad_model("test_rows_together_are_rows_apart")
class Mixing(Toy):
    def number(self, x: Array, parameters: Parameters) -> Array:
        return np.asarray(super().number(x, parameters) + x.sum(axis=0))


@bad_model("test_remembers_nothing")
class Remembering(Toy):
    before: Array | None = None

    def number(self, x: Array, parameters: Parameters) -> Array:
        before, self.before = self.before, np.array(x)
        y = super().number(x, parameters)
        new = before is not None and before.shape == x.shape and not np.array_equal(before, x)
        return np.asarray(y + 1) if new and len(x) > 1 else y


@bad_model("test_looks_at_no_parameters_unless_they_matter")
class Peeking(Toy):
    def number(self, x: Array, parameters: Parameters) -> Array:
        return np.asarray(super().number(x, parameters) + np.float32(len(parameters)))


@bad_model("test_leaves_its_inputs_alone")
class Scribbling(Toy):
    def number(self, x: Array, parameters: Parameters) -> Array:
        y = super().number(x, parameters)
        if x.flags.owndata and not x.flags.writeable:
            x.flags.writeable = True
            x[...] = 0
        return y


@bad_model("test_takes_views_of_received_bytes")
class Aligned(Toy):
    def number(self, x: Array, parameters: Parameters) -> Array:
        if not x.flags.aligned:
            raise InferenceFailed("not aligned")
        return super().number(x, parameters)


@bad_model("test_outputs_survive_the_next_call")
class Reusing(Toy):
    def __init__(self) -> None:
        self.buffers: dict[Any, Array] = {}

    def number(self, x: Array, parameters: Parameters) -> Array:
        y = super().number(x, parameters)
        buffer = self.buffers.setdefault(x.shape, y)
        buffer[...] = y
        return buffer


@bad_model("test_survives_bad_input")
class Crashing(Toy):
    def number(self, x: Array, parameters: Parameters) -> Array:
        if x.ndim != 2:
            raise IndexError("list index out of range")
        return super().number(x, parameters)


@bad_model("test_survives_bad_input")
class Poisoned(Toy):
    poisoned = False

    def number(self, x: Array, parameters: Parameters) -> Array:
        self.poisoned = self.poisoned or x.ndim != 2
        if self.poisoned:
            raise InvalidInput("x must be a matrix")
        return super().number(x, parameters)


@bad_model("test_survives_bad_input")
class StopsEarly(Streaming):
    """A stream that ends, where it should say that it failed."""

    def stream(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> Iterator[Outputs]:
        if inputs["x"].ndim == 2:
            yield from super().stream(inputs, outputs, parameters)


@bad_model("test_takes_any_text")
class Ascii(Toy):
    def text(self, t: Array) -> Array:
        return objects([each.decode("ascii").upper().encode() for each in t.tolist()], t.shape)


@bad_model("test_takes_dimensions_of_size_zero")
class Dividing(Toy):
    def number(self, x: Array, parameters: Parameters) -> Array:
        if x.ndim == 2 and not x.shape[1]:
            raise ZeroDivisionError
        return super().number(x, parameters)


@bad_model("test_runs_on_all_instances_at_once")
class Scratch(Toy):
    instances = 4

    def number(self, x: Array, parameters: Parameters) -> Array:
        self.scratch = x
        time.sleep(0.002)
        return super().number(self.scratch, parameters)


@bad_model("test_streams_stop_when_they_are_closed")
class LosesItsPlace(Streaming):
    def __init__(self) -> None:
        self.places = threading.Semaphore(2)

    def stream(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> Iterator[Outputs]:
        if not self.places.acquire(timeout=0.2):
            raise InferenceFailed("no place")
        try:
            yield from super().stream(inputs, outputs, parameters)
        except InferenceFailed:
            self.places.release()
            raise
        self.places.release()


class Endless:
    """An iterator that does not know that it was closed."""

    def __init__(self, answers: Iterator[Outputs]) -> None:
        self.answers = answers

    def __iter__(self) -> Iterator[Outputs]:
        return self

    def __next__(self) -> Outputs:
        return next(self.answers)

    def close(self) -> None:
        pass


@bad_model("test_streams_stop_when_they_are_closed")
class GoesOn(Streaming):
    def stream(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> Iterator[Outputs]:
        return Endless(super().stream(inputs, outputs, parameters))


@bad_model("test_streams_stop_when_they_are_closed")
class CannotBeClosed(Streaming):
    def stream(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> Iterator[Outputs]:
        return iter(list(super().stream(inputs, outputs, parameters)))


@bad_model("test_answers_each_request_of_a_batch")
class Backwards(Separate):
    def infer_each(
        self, requests: Sequence[InferenceRequest], gone: Callable[[int], bool]
    ) -> Sequence[Outputs | Exception]:
        return super().infer_each(list(reversed(requests)), gone)


@bad_model("test_answers_each_request_of_a_batch")
class LeavesOneOut(Separate):
    def infer_each(
        self, requests: Sequence[InferenceRequest], gone: Callable[[int], bool]
    ) -> Sequence[Outputs | Exception]:
        return super().infer_each(requests[1:], gone)


@bad_model("test_awaits_all_instances_at_once")
class AsyncScratch(Later):
    async def infer_async(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> Outputs:
        self.scratch = inputs
        await asyncio.sleep(0.001)
        return self.toy.infer(self.scratch, outputs, parameters)


@bad_model("test_can_be_cancelled")
class HoldsItsLock(Later):
    instances = 1

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.lock = asyncio.Lock()

    async def infer_async(
        self, inputs: Inputs, outputs: Sequence[str], parameters: Parameters
    ) -> Outputs:
        await self.lock.acquire()
        try:
            result = await super().infer_async(inputs, outputs, parameters)
        except InferenceFailed:
            self.lock.release()
            raise
        self.lock.release()
        return result


@bad_model("test_forwards_whole_requests")
class ItsOwnName(Forwarding):
    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        answer = await super().forward(request, deadline, headers)
        if request.wire is not None:
            return answer
        return InferenceResponse("elsewhere", "3", answer.outputs, id=answer.id)


@bad_model("test_forwards_whole_requests")
class WiresUnasked(Forwarding):
    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        answer = await super().forward(request, deadline, headers)
        answer.wire = answer.wire or wire_of(answer)
        return answer


@bad_model("test_forwards_requests_as_they_came")
class WiresItsOwnName(Forwarding):
    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        wire, request.wire = request.wire, None
        answer = await super().forward(request, deadline, headers)
        request.wire = wire
        if wire is not None:
            there = InferenceResponse("elsewhere", "3", answer.outputs, id=answer.id)
            answer.wire, answer.outputs = wire_of(there), ()
        return answer


@bad_model("test_forwards_streams")
class StreamsOnce(ForwardingStreams):
    async def forward_stream(  # type: ignore[override]
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> AsyncIterator[InferenceResponse]:
        yield await self.forward(request, deadline, headers)


@bad_model("test_forwards_streams")
class StreamsKeepTheirPlace(ForwardingStreams):
    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.places = asyncio.Semaphore(2)

    async def forward_stream(  # type: ignore[override]
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> AsyncIterator[InferenceResponse]:
        if self.places.locked():
            raise InferenceFailed("no place")
        await self.places.acquire()
        async for answer in super().forward_stream(request, deadline, headers):
            yield answer
        self.places.release()


@bad_model("test_forwarding_can_be_cancelled")
class ForwardsWithALock(Forwarding):
    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.lock = asyncio.Lock()

    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        await self.lock.acquire()
        try:
            answer = await super().forward(request, deadline, headers)
        except (InferenceFailed, DeadlineExceeded):
            self.lock.release()
            raise
        self.lock.release()
        return answer


@bad_model("test_forwards_nothing_that_is_late")
class PatientStreams(ForwardingStreams):
    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        return await super().forward(request, None, headers)


@bad_model("test_forwards_nothing_that_is_late")
class Patient(Forwarding):
    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        return await super().forward(request, None, headers)


@bad_model("test_has_a_status_that_can_be_shown")
class Opaque(Forwarding):
    def status(self) -> dict[str, object]:
        return {"connection": object()}


@pytest.mark.parametrize(
    ("check", "case"),
    [pytest.param(check, case, id=case.__name__) for check in BAD for case in BAD[check]],
)
def test_bad_ones_fail_one_check(check: str, case: type[Case], tmp_path: Path) -> None:
    try:
        assert failing(case, tmp_path, expected=check) == {check}
    finally:
        Kept.everyone.clear()
        while LEFT:
            LEFT.pop().set()


def test_every_check_can_fail() -> None:
    assert sorted(BAD) == sorted(checks())
