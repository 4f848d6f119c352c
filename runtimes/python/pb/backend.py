"""``TritonPythonModel`` as a model of ours: its requests reach `execute` one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Final

from gateway.errors import InferenceFailed, SluiceError
from gateway.tensors import Array, InferenceRequest, Parameter, Tensor
from runtimes.interface import Answer, Artifact, AsyncModel, Model
from runtimes.python.classes import TRITON
from runtimes.python.context import make_request
from runtimes.python.failures import Failures
from runtimes.python.loops import LoopThread, Steps
from runtimes.python.modules import ModelModules
from runtimes.python.pb.bindings import Binding
from runtimes.python.pb.channels import Held, ManyAnswers, OneAnswer
from runtimes.python.pb.instance import (
    Instance,
    arguments_of,
    auto_complete,
    close_all,
    responses_of,
)
from runtimes.python.pb.messages import InferenceRequest as TheirRequest
from runtimes.python.pb.model_config import Completed, config_of, read_config
from runtimes.python.signature import Signature

PLATFORM: Final = "python"
STREAMS: Final = 1024
"""Most requests of a decoupled model that may be unfinished at once."""


def load_triton(
    artifact: Artifact,
    file: Path,
    device: str,
    load_file: Callable[[], tuple[ModelModules, ModuleType]],
    first: tuple[ModelModules, type],
) -> Model:
    """`first` is the imported file. Each instance imports it anew by `load_file`, as each is a
    process of its own in Triton. Raises `ModelLoadError`."""
    modules, cls = first
    config = auto_complete(cls, modules, config_of(artifact, file.name, device), file)
    completed = read_config(config, file.name)
    log = Binding(artifact).log
    made: list[Instance] = []
    try:
        for index in range(artifact.settings.instances or 1):
            if index:
                modules, module = load_file()
                cls = getattr(module, TRITON)
            failures = Failures(f"{artifact.model}/{artifact.version}", log, modules)
            arguments = arguments_of(artifact, config, device, index)
            made.append(Instance(cls, modules, arguments, failures))
        kind = DecoupledTritonModel if completed.decoupled else TritonModel
        return kind(artifact, completed, made)
    except BaseException:
        close_all(made)
        raise


class _Requests:
    """Makes what `execute` gets."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._names = [spec.name for spec in signature.outputs]

    def __call__(self, request: InferenceRequest, channel: OneAnswer | ManyAnswers) -> TheirRequest:
        if self._signature.input_reshapes:
            request = self._reshaped(request)
        return TheirRequest.received(request, self._names, Held(channel))

    def _reshaped(self, request: InferenceRequest) -> InferenceRequest:
        reshapes = self._signature.input_reshapes
        tensors = []
        for tensor in request.inputs:
            if tensor.name in reshapes:
                array = tensor.array.reshape(reshapes[tensor.name](tensor.shape))
                tensor = Tensor(tensor.name, tensor.datatype, array.shape, array=array)
            tensors.append(tensor)
        changed = request.with_inputs(tuple(tensors))
        changed.id = request.id
        return changed

    def answer(self, answer: Answer | Exception) -> Answer | Exception:
        """In the shapes that clients see."""
        if isinstance(answer, Exception) or not self._signature.output_reshapes:
            return answer
        try:
            return Answer(self._signature.to_client(answer), answer.parameters)
        except SluiceError as error:
            return error


def _describe(model: Model, completed: Completed, instances: int) -> None:
    signature = completed.signature
    model.inputs, model.outputs = signature.inputs, signature.outputs
    model.platform = PLATFORM
    model.instances = instances
    model.batch_dimension = completed.max_batch_size > 0
    model.max_batch_size = completed.max_batch_size
    model.decoupled = completed.decoupled
    model.joined = completed.joined
    model.separate = True
    model.probed = False  # as in Triton: nothing made up is run
    model.inline = False


class TritonModel(Model):
    """Each request gets one response."""

    def __init__(
        self, artifact: Artifact, completed: Completed, instances: Sequence[Instance]
    ) -> None:
        _describe(self, completed, len(instances))
        self._name = artifact.model
        self._make = _Requests(completed.signature)
        self._instances = list(instances)
        self._idle: SimpleQueue[Instance] = SimpleQueue()
        for each in instances:
            self._idle.put(each)

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """One request alone, as for a warm-up."""
        request = make_request(self._name, inputs, outputs=outputs, parameters=parameters)
        (answer,) = self.infer_each([request], lambda index: False)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def infer_each(
        self, requests: Sequence[InferenceRequest], gone: Callable[[int], bool]
    ) -> Sequence[Mapping[str, Array] | Exception]:
        """As the interface says: one call of `execute`."""
        if not self._instances:
            raise InferenceFailed("the model is closed")
        channels = [OneAnswer(lambda n=n: gone(n)) for n in range(len(requests))]  # type: ignore[misc]
        instance = self._idle.get()
        try:
            given = instance.execute(
                lambda: [self._make(*pair) for pair in zip(requests, channels, strict=True)]
            ).result()
        finally:
            self._idle.put(instance)
        responses = responses_of(given, len(requests))
        del given
        wanted = [request.outputs for request in requests]
        return [
            self._make.answer(channel.wait() if response is None else response.answer(names))
            for response, channel, names in zip(responses, channels, wanted, strict=True)
        ]

    def close(self) -> None:
        """Finalizes the instances."""
        instances, self._instances = self._instances, []
        close_all(instances)


class DecoupledTritonModel(AsyncModel):
    """Requests get any number of responses, sent whenever the model likes."""

    def __init__(
        self, artifact: Artifact, completed: Completed, instances: Sequence[Instance]
    ) -> None:
        self._own = LoopThread(f"{artifact.model}/{artifact.version}/loop")
        super().__init__(artifact.host.loop if artifact.host is not None else self._own.loop)
        _describe(self, completed, STREAMS)
        self._name = artifact.model
        self._make = _Requests(completed.signature)
        self._instances = list(instances)
        self._next = cycle(self._instances)

    async def infer_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """Refused: there may be more answers than one."""
        raise InferenceFailed(f"model '{self._name}' answers any number of times; ask for a stream")

    async def stream_each(self, request: InferenceRequest) -> AsyncIterator[Mapping[str, Array]]:
        """As the interface says; on whichever loop it is iterated over."""
        if not self._instances:
            raise InferenceFailed("the model is closed")
        channel = ManyAnswers(asyncio.get_running_loop())
        instance = next(self._next)
        instance.execute_in_background(lambda: [self._make(request, channel)], channel)
        answers = channel.answers()
        try:
            async for answer in answers:
                shaped = self._make.answer(answer)
                if isinstance(shaped, Exception):
                    raise shaped
                yield shaped
        finally:
            await answers.aclose()

    def stream_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> AsyncIterator[Mapping[str, Array]]:
        """As the interface says."""
        request = make_request(self._name, inputs, outputs=outputs, parameters=parameters)
        return self.stream_each(request)

    def stream(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Iterator[Mapping[str, Array]]:
        """The same for threads other than a loop's, as for a warm-up."""
        answers: Steps[Any] = Steps(self._own, self.stream_async(inputs, outputs, parameters))
        yield from answers.here()

    def close(self) -> None:
        """Finalizes the instances."""
        instances, self._instances = self._instances, []
        close_all(instances)
        self._own.close()
