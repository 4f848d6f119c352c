"""Pre- and post-processing around another model of the gateway, the predictor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Final

from gateway.contract import for_the_model
from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    ModelLoadError,
    ModelNotReady,
    SluiceError,
)
from gateway.tensors import (
    Array,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Tensor,
    TensorSpec,
)
from runtimes.interface import Artifact, ForwardingModel, Headers, Model
from runtimes.python.classes import flavour, takes
from runtimes.python.context import Context, arrays_of, tensor_of
from runtimes.python.failures import Failures
from runtimes.python.loops import LoopThread
from runtimes.python.models import PLATFORM, Instances, guarded
from runtimes.python.modules import ModelModules
from runtimes.python.signature import (
    Signature,
    agreed,
    check_outputs,
    complete,
    from_class,
    from_settings,
)

PREDICTOR_SECONDS: Final = 10.0
"""How long loading waits for the predictor, where its signature is needed."""
POLL: Final = 0.05


def load_transformer(
    artifact: Artifact, file: str, cls: type, device: str, modules: ModelModules
) -> Model:
    """Raises `ModelLoadError`."""
    if artifact.host is None:
        raise ModelLoadError(f"{file}: a transformer needs a gateway around it")
    if artifact.settings.decoupled:
        raise ModelLoadError(f"{file}: 'decoupled' is set, but a transformer answers once")
    settings = artifact.settings
    if settings.max_batch_size:
        raise ModelLoadError(
            f"max_batch_size is {settings.max_batch_size}, but a transformer takes its requests "
            "one by one (the predictor batches what it is sent); leave it out"
        )
    name, version = predictor_of(artifact, cls, file)
    gpus = settings.gpus or (0,)
    contexts = [
        Context(artifact, device, gpus[n % len(gpus)] if device == "gpu" else None, n)
        for n in range(settings.instances or 1)
    ]
    for method in ("preprocess", "postprocess"):
        if flavour(getattr(cls, method, len)).endswith("generator"):
            raise ModelLoadError(f"{file}: {method} must return a dict, not yield")
    loop = LoopThread(f"{artifact.model}/{artifact.version}/loop")
    made = Instances(cls, contexts, modules, loop)
    try:
        signature = _signature(made.objects[0], artifact, file, name, version, modules)
        return Transformer(artifact, made, signature, name, version)
    except BaseException:
        made.close()
        raise


def predictor_of(artifact: Artifact, cls: type, file: str) -> tuple[str, str]:
    """The predictor's name, and its version or label ("" = as its split says)."""
    options = artifact.settings.options
    name = options.get("predictor", getattr(cls, "predictor", None))
    version = options.get("predictor_version", getattr(cls, "predictor_version", ""))
    if not isinstance(name, str) or not name:
        raise ModelLoadError(
            f'{file}: a transformer needs the name of its predictor: set predictor = "..." in '
            f"{cls.__name__}, or options: {{predictor: ...}} in model.yaml"
        )
    if name == artifact.model:
        raise ModelLoadError(f"{file}: the predictor is the transformer itself, '{name}'")
    return name, str(version)


def _signature(
    instance: Any,
    artifact: Artifact,
    file: str,
    predictor: str,
    version: str,
    modules: ModelModules,
) -> Signature:
    """As declared; a side that is not transformed is the predictor's."""
    said = getattr(instance, "signature", None)
    if callable(said):
        try:
            said = said()
        except Exception as error:
            raise ModelLoadError(f"signature failed: {modules.where(error)}") from error
    ours = Signature() if said is None else from_class(said, file)
    known = agreed(ours, from_settings(artifact.settings), file)
    inputs, outputs = known.inputs, known.outputs
    own_inputs = callable(getattr(instance, "preprocess", None))
    own_outputs = callable(getattr(instance, "postprocess", None))
    if (not inputs and not own_inputs) or (not outputs and not own_outputs):
        there = _wait_for(artifact, predictor, version)
        if not inputs and not own_inputs:
            inputs = there.inputs
        if not outputs and not own_outputs:
            outputs = there.outputs
    return complete(Signature(inputs, outputs, known.input_reshapes, known.output_reshapes), file)


def _wait_for(artifact: Artifact, predictor: str, version: str) -> Any:
    assert artifact.host is not None
    end = time.monotonic() + PREDICTOR_SECONDS
    while True:
        try:
            return artifact.host.describe(predictor, version)
        except SluiceError as error:
            if not isinstance(error, ModelNotReady) or time.monotonic() > end:
                raise ModelLoadError(
                    f"the signature is the predictor's in part, and it cannot be had: {error}; "
                    "give the transformer a signature of its own to load without it"
                ) from None
        time.sleep(POLL)


class Transformer(ForwardingModel):
    """Each request by itself: preprocess, the predictor, postprocess.

    Plain methods run in one thread for each object; coroutines on the model's loop, all with
    the first object.
    """

    def __init__(
        self,
        artifact: Artifact,
        instances: Instances,
        signature: Signature,
        predictor: str,
        version: str,
    ) -> None:
        assert artifact.host is not None
        super().__init__(artifact.host.loop)
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self.platform = PLATFORM
        self.instances = artifact.settings.instances or 1
        self.probed = False  # the predictor may not be there yet
        self._host = artifact.host
        self._name, self._version = artifact.model, artifact.version
        self._predictor, self._predictor_version = predictor, version
        self._signature = signature
        self._made = instances
        self._failures: Failures = instances.failures
        self._datatypes = {spec.name: spec.datatype for spec in signature.outputs}
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for each in instances.objects:
            self._idle.put(each)
        first = instances.objects[0]
        self._pre = Step(first, "preprocess")
        self._post = Step(first, "postprocess")
        self._threads = ThreadPoolExecutor(
            len(instances.objects), f"{artifact.model}/{artifact.version}"
        )
        self._closed = False

    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        """As the interface says."""
        if request.unchecked:
            request.check_data()
        inputs = {tensor.name: tensor.array for tensor in request.inputs}
        parameters = for_the_model(request.parameters)
        asked = await self._run(self._pre, inputs, inputs, parameters)
        wanted = () if self._post.there else request.outputs
        given = await self._predict(asked, wanted, request, parameters, deadline)
        outputs = await self._run(self._post, given, inputs, parameters)
        if self._signature.output_reshapes:
            outputs = self._signature.to_client(outputs)
        arrays = check_outputs(outputs, self.outputs, request.outputs, "postprocess")
        names = request.outputs or tuple(arrays)
        tensors = [
            Tensor(name, self._datatypes[name], arrays[name].shape, array=arrays[name])
            for name in names
        ]
        return InferenceResponse(self._name, self._version, tensors, id=request.id)

    async def _run(
        self,
        step: Step,
        tensors: Mapping[str, Any],
        inputs: Mapping[str, Array],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Any]:
        """One side of the transformer; what comes in where it has none."""
        if step is self._pre and self._signature.input_reshapes:
            tensors = self._signature.to_model(tensors)
        if not step.there:
            return tensors
        if self._closed:
            raise InferenceFailed("the model is closed")
        if step.asynchronous:
            first = self._made.objects[0]
            work = guarded(
                lambda: step.call(first, tensors, inputs, parameters), self._failures.inference
            )
            given = await asyncio.wrap_future(self._made.loop.submit(work))
        else:
            given = await asyncio.wrap_future(
                self._threads.submit(self._in_thread, step, tensors, inputs, parameters)
            )
        if not isinstance(given, Mapping):
            raise InferenceFailed(
                f"{step.name} returned {type(given).__name__}, but must return a dict of arrays"
            )
        return given

    def _in_thread(
        self,
        step: Step,
        tensors: Mapping[str, Any],
        inputs: Mapping[str, Array],
        parameters: Mapping[str, Parameter],
    ) -> Any:
        instance = self._idle.get()
        try:
            return step.call(instance, tensors, inputs, parameters)
        except (Exception, SystemExit) as error:
            raise self._failures.inference(error) from None
        finally:
            self._idle.put(instance)

    async def _predict(
        self,
        inputs: Mapping[str, Any],
        wanted: Sequence[str],
        request: InferenceRequest,
        parameters: Mapping[str, Parameter],
        deadline: float | None,
    ) -> Mapping[str, Array]:
        """The predictor's outputs; its errors and the caller's deadline are passed on."""
        timeout = 0
        if deadline is not None:
            left = deadline - perf_counter()
            if left <= 0:
                raise DeadlineExceeded("the deadline passed in preprocess")
            timeout = max(round(left * 1e6), 1)
        asked = InferenceRequest(
            self._predictor,
            self._predictor_version,
            tuple(tensor_of(str(name), value) for name, value in inputs.items()),
            outputs=tuple(wanted),
            parameters=dict(parameters) or None,
            timeout_us=timeout,
            priority=request.priority,
        )
        return arrays_of(await asyncio.wrap_future(self._host.call(asked)))

    async def infer_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """One request without a deadline, as for a warm-up."""
        request = InferenceRequest(
            self._name,
            self._version,
            tuple(tensor_of(name, array) for name, array in inputs.items()),
            outputs=tuple(outputs),
            parameters=dict(parameters),
        )
        return arrays_of(await self.forward(request, None, lambda key: None))

    def forward_stream(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> AsyncIterator[InferenceResponse]:
        """Refused: a transformer answers once."""
        raise InferenceFailed("a transformer answers once")

    def status(self) -> dict[str, object]:
        """Which model it stands before."""
        return {"predictor": self._predictor}

    def close(self) -> None:
        """Closes the objects and forgets the modules."""
        if not self._closed:
            self._closed = True
            self._threads.shutdown()
            self._made.close()


class Step:
    """One of the two methods, and what it wants to be told."""

    def __init__(self, instance: Any, name: str) -> None:
        self.name = name
        method: Callable[..., Any] | None = getattr(instance, name, None)
        self.there = callable(method)
        self.asynchronous = method is not None and flavour(method) == "async"
        self._parameters = method is not None and takes(method, "parameters")
        self._inputs = name == "postprocess" and method is not None and takes(method, "inputs")

    def call(
        self,
        instance: Any,
        tensors: Mapping[str, Any],
        inputs: Mapping[str, Array],
        parameters: Mapping[str, Parameter],
    ) -> Any:
        """Calls it; a coroutine is left to be awaited."""
        extra: dict[str, Any] = {}
        if self._parameters:
            extra["parameters"] = dict(parameters)
        if self._inputs:
            extra["inputs"] = inputs
        return getattr(instance, self.name)(tensors, **extra)
