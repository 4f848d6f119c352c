"""Models of our own kind: a class with `infer`, in its four flavours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, Final

from gateway.errors import InferenceFailed, ModelLoadError
from gateway.tensors import Array, Parameter
from runtimes.interface import Artifact, AsyncModel, Model
from runtimes.python.classes import Shape, call_load
from runtimes.python.context import Context, close_iterator
from runtimes.python.failures import Failures
from runtimes.python.loops import LoopThread, Steps, until_over
from runtimes.python.modules import ModelModules
from runtimes.python.signature import Signature, check_outputs

PLATFORM: Final = "python"
ASYNC_INSTANCES: Final = 64
"""How many requests of an asynchronous model run at once, where the settings do not say."""
CLOSE_SECONDS: Final = 10.0
"""Most seconds that a coroutine `close` is waited for."""


class Instances:
    """The objects of one class: made, loaded, and closed together.

    `contexts` has one for each. Raises `ModelLoadError`.
    """

    def __init__(
        self, cls: type, contexts: Sequence[Context], modules: ModelModules, loop: LoopThread
    ) -> None:
        self.modules = modules
        self.loop = loop
        self.objects: list[Any] = []
        self.failures = Failures(
            f"{contexts[0].model}/{contexts[0].version}", contexts[0].log, modules
        )
        try:
            for context in contexts:
                instance = cls()
                self.objects.append(instance)
                call_load(instance, context, self._run)
        except Exception as error:
            self.close()
            raise ModelLoadError(f"load failed: {modules.where(error)}") from error
        except SystemExit as error:
            self.close()
            raise ModelLoadError(f"load ended the process: exit code {error.code}") from error

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.submit(work).result()

    def _await_close(self, closing: Future[Any]) -> None:
        if closing in wait((closing,), CLOSE_SECONDS).done:
            closing.result()
        else:
            self.failures.warn(
                f"close is not done after {CLOSE_SECONDS:g} s; it is not waited for any more"
            )

    def close(self) -> None:
        """Calls `close` of each object that has it; once."""
        objects, self.objects = self.objects, []
        for each in objects:
            close = getattr(each, "close", None)
            if close is None:
                continue
            try:
                given = close()
                if asyncio.iscoroutine(given):
                    self._await_close(self.loop.submit(given))
            except (Exception, SystemExit) as error:
                self.failures.log(f"close: {self.modules.where(error)}", error)
        self.loop.close()
        self.modules.close()


class _Described:
    """What the flavours share."""

    def __init__(self, shape: Shape, signature: Signature, instances: Instances) -> None:
        self._shape = shape
        self._signature = signature
        self._instances = instances
        self._failures = instances.failures

    def describe(self, model: Model, count: int) -> None:
        """Sets the attributes of the interface."""
        signature, shape = self._signature, self._shape
        model.inputs, model.outputs = signature.inputs, signature.outputs
        model.platform = PLATFORM
        model.instances = count
        model.inline = False  # the model's own code may wait for anything
        model.batch_dimension = signature.batch_dimension
        model.parameters_matter = shape.parameters
        model.stateful = shape.stateful
        model.probed = shape.probed
        model.decoupled = shape.many

    def start(
        self, instance: Any, inputs: Mapping[str, Array], parameters: Mapping[str, Parameter]
    ) -> Any:
        """Calls `infer`; the answer may be a coroutine or a generator."""
        tensors = self._signature.to_model(inputs)
        if self._shape.parameters:
            return instance.infer(tensors, parameters=dict(parameters))
        return instance.infer(tensors)

    def outputs(self, given: object, wanted: Sequence[str]) -> dict[str, Array]:
        """Checked, in the clients' shapes."""
        if self._signature.output_reshapes and isinstance(given, Mapping):
            given = self._signature.to_client(given)
        return check_outputs(given, self._signature.outputs, wanted, "infer")

    def guard(self, error: BaseException) -> BaseException:
        return self._failures.inference(error)


class ClassModel(Model):
    """`infer` as a plain function or a generator; each object is used by one thread at a time."""

    def __init__(self, shape: Shape, signature: Signature, instances: Instances) -> None:
        self._said = _Described(shape, signature, instances)
        self._said.describe(self, len(instances.objects))
        self._instances = instances
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for each in instances.objects:
            self._idle.put(each)
        self._closed = False

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """As the interface says."""
        instance = self._take()
        try:
            return self._said.outputs(self._said.start(instance, inputs, parameters), outputs)
        except (Exception, SystemExit) as error:
            raise self._said.guard(error) from None
        finally:
            self._idle.put(instance)

    def stream(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Iterator[Mapping[str, Array]]:
        """As the interface says; the object is in use until the iterator is closed."""
        instance = self._take()
        try:
            answers = iter(self._said.start(instance, inputs, parameters))
            try:
                for given in answers:
                    yield self._said.outputs(given, outputs)
            finally:
                close_iterator(answers)
        except (Exception, SystemExit) as error:
            raise self._said.guard(error) from None
        finally:
            self._idle.put(instance)

    def _take(self) -> Any:
        if self._closed:
            raise InferenceFailed("the model is closed")
        return self._idle.get()

    def close(self) -> None:
        """Closes the objects and forgets the modules."""
        if not self._closed:
            self._closed = True
            self._idle = SimpleQueue()
            self._instances.close()


class AsyncClassModel(AsyncModel):
    """`infer` as a coroutine or an asynchronous generator: one object, on a loop of its own."""

    def __init__(
        self, artifact: Artifact, shape: Shape, signature: Signature, instances: Instances
    ) -> None:
        own = instances.loop
        super().__init__(artifact.host.loop if artifact.host is not None else own.loop)
        self._said = _Described(shape, signature, instances)
        self._said.describe(self, artifact.settings.instances or ASYNC_INSTANCES)
        self._own = own
        self._instances = instances
        self._object: Any = instances.objects[0]

    async def infer_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """As the interface says."""
        return await asyncio.wrap_future(self._own.submit(self._infer(inputs, outputs, parameters)))

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """As the interface says; needs no gateway."""
        self._check_open()
        return self._own.submit(self._infer(inputs, outputs, parameters)).result()

    async def _infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        self._check_open()
        work = lambda: self._said.start(self._object, inputs, parameters)  # noqa: E731
        return self._said.outputs(await guarded(work, self._said.guard), outputs)

    def stream_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> AsyncIterator[Mapping[str, Array]]:
        """As the interface says."""
        self._check_open()
        return until_over(Steps(self._own, self._answers(inputs, outputs, parameters)))

    async def _answers(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> AsyncIterator[Mapping[str, Array]]:
        try:
            answers = self._said.start(self._object, inputs, parameters)
            try:
                async for given in answers:
                    yield self._said.outputs(given, outputs)
            finally:
                await answers.aclose()
        except (Exception, SystemExit) as error:
            raise self._said.guard(error) from None

    def stream(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Iterator[Mapping[str, Array]]:
        """The same for threads other than a loop's."""
        self._check_open()
        answers = Steps(self._own, self._answers(inputs, outputs, parameters))
        yield from answers.here()

    def _check_open(self) -> None:
        if self._object is None:
            raise InferenceFailed("the model is closed")

    def close(self) -> None:
        """Closes the object, ends its loop and forgets the modules."""
        if self._object is not None:
            self._object = None
            self._instances.close()


async def guarded(
    start: Callable[[], Coroutine[Any, Any, Any]], guard: Callable[[BaseException], BaseException]
) -> Any:
    """Awaits a model's coroutine; whatever it raises becomes ours."""
    try:
        return await start()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise InferenceFailed("the model cancelled itself") from None
    except (Exception, SystemExit) as error:
        raise guard(error) from None
