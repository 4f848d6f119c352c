"""One instance of a ``TritonPythonModel``: an object, and the one thread that ever calls it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from gateway.errors import InferenceFailed, ModelLoadError
from runtimes.interface import Artifact
from runtimes.python.failures import Failures
from runtimes.python.loops import LoopThread
from runtimes.python.modules import ModelModules
from runtimes.python.pb.channels import ManyAnswers
from runtimes.python.pb.messages import InferenceRequest, InferenceResponse
from runtimes.python.pb.model_config import Config, ModelConfig

T = TypeVar("T")
PATIENCE: Final = 10.0
FINALIZE_SECONDS: Final = 10.0
"""Most seconds that `finalize` is waited for."""


class Worker:
    """A thread that does one thing after the other."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Has it done; the future may be waited for."""
        future: Future[T] = Future()

        def do() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(do)
        return future

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # nothing of a request may outlive it here

    def close(self) -> None:
        """Lets the thread end, after what it has to do."""
        self._work.put(None)
        self._thread.join(PATIENCE)


class Instance:
    """Its thread calls `initialize`, `execute` and `finalize`, as a process does in Triton.

    Raises `ModelLoadError`.
    """

    def __init__(
        self,
        cls: type,
        modules: ModelModules,
        arguments: dict[str, str],
        failures: Failures,
    ) -> None:
        name = arguments["model_instance_name"]
        self._modules = modules
        self._failures = failures
        self._worker = Worker(name)
        self._loop = LoopThread(f"{name}/loop")
        self._object: Any = None
        self._finalized: Future[None] | None = None
        try:
            self._worker.submit(lambda: self._initialize(cls, arguments)).result()
        except (Exception, SystemExit) as error:
            self._worker.close()
            self._loop.close()
            modules.close()
            raise ModelLoadError(f"initialize failed: {modules.where(error)}") from error

    def _initialize(self, cls: type, arguments: dict[str, str]) -> None:
        self._object = cls()
        if not callable(getattr(self._object, "execute", None)):
            raise ModelLoadError(f"{cls.__name__} has no method execute")
        initialize = getattr(self._object, "initialize", None)
        if initialize is not None:
            initialize(dict(arguments))

    def execute(self, requests: Callable[[], list[InferenceRequest]]) -> Future[Any]:
        """Has `execute` called with what `requests` makes; what it returns is the result."""
        return self._worker.submit(lambda: self._execute(requests()))

    def execute_in_background(
        self, requests: Callable[[], list[InferenceRequest]], channel: ManyAnswers
    ) -> None:
        """The same for decoupled models, whose answers come by `channel`."""
        self._worker.submit(lambda: self._start(requests, channel))

    def _execute(self, requests: list[InferenceRequest]) -> Any:
        try:
            given = self._object.execute(requests)
            if asyncio.iscoroutine(given):
                return self._loop.submit(given).result()
            return given
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            raise self._failures.inference(error) from None

    def _start(self, requests: Callable[[], list[InferenceRequest]], channel: ManyAnswers) -> None:
        try:
            made = requests()  # held until we know: letting them go ends the channel
            given = self._object.execute(made)
            if asyncio.iscoroutine(given):
                self._loop.submit(self._finish(given, channel))
            elif given is not None:
                channel.end(
                    InferenceFailed(
                        f"execute returned {type(given).__name__}, but a decoupled model must "
                        "return None and answer by response senders"
                    )
                )
        except (Exception, SystemExit) as error:
            channel.end(self._failures.inference(error))

    async def _finish(self, work: Any, channel: ManyAnswers) -> None:
        try:
            await work
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            channel.end(self._failures.inference(error))

    def finalize(self) -> Future[None]:
        """Has `finalize` called, once, in its thread."""
        if self._finalized is None:
            self._finalized = self._worker.submit(self._finalize)
        return self._finalized

    def close(self) -> None:
        """Forgets the modules; `finalize` was called, see `close_all`.

        A thread that is not done in time is left behind: it may hang for ever.
        """
        if self._object is None:
            return
        finalized = self.finalize()
        if finalized.done():
            self._worker.close()
            if (error := finalized.exception()) is not None:
                self._failures.log(f"finalize: {self._modules.where(error)}", error)
        else:
            self._failures.warn(
                f"finalize is not done after {FINALIZE_SECONDS:g} s; it is not waited for any more"
            )
        self._object = None
        self._loop.close()
        self._modules.close()

    def _finalize(self) -> None:
        finalize = getattr(self._object, "finalize", None)
        if finalize is not None:
            finalize()


def close_all(instances: Sequence[Instance]) -> None:
    """Finalizes all at the same time, so that those that hang do not add up."""
    wait([instance.finalize() for instance in instances], FINALIZE_SECONDS)
    for instance in instances:
        instance.close()


def arguments_of(artifact: Artifact, config: Config, device: str, index: int) -> dict[str, str]:
    """What `initialize` gets: all of it is text, as in Triton."""
    gpus = artifact.settings.gpus or (0,)
    return {
        "model_config": json.dumps(config),
        "model_instance_kind": device.upper(),
        "model_instance_name": f"{artifact.model}_0_{index}",
        "model_instance_device_id": str(gpus[index % len(gpus)] if device == "gpu" else 0),
        "model_repository": str(artifact.path.parent),
        "model_version": artifact.version,
        "model_name": artifact.model,
    }


def auto_complete(cls: type, modules: ModelModules, config: Config, file: Path) -> Config:
    """The configuration after the model's ``auto_complete_config``, where it has that.

    Raises `ModelLoadError`.
    """
    complete = getattr(cls, "auto_complete_config", None)
    if complete is None:
        return config
    try:
        given = complete(ModelConfig(json.dumps(config)))
    except (Exception, SystemExit) as error:
        text = modules.where(error)
        raise ModelLoadError(f"auto_complete_config failed: {text}") from error
    if not isinstance(given, ModelConfig):
        raise ModelLoadError(
            f"{file.name}: auto_complete_config returned {type(given).__name__}; it must return "
            "the configuration that it was given"
        )
    return given.as_dict()


def responses_of(given: object, count: int) -> list[InferenceResponse | None]:
    """What `execute` returned, as one response (or `None`: answered by its sender) a request.

    Raises `InferenceFailed`.
    """
    if given is None:
        return [None] * count
    if not isinstance(given, list):
        raise InferenceFailed(
            f"execute returned {type(given).__name__}, but must return a list of InferenceResponse"
        )
    if len(given) != count:
        raise InferenceFailed(
            f"execute returned {len(given)} responses to {count} requests; it must return one for "
            "each"
        )
    for each in given:
        if each is not None and not isinstance(each, InferenceResponse):
            raise InferenceFailed(
                f"execute returned a list with {type(each).__name__} in it, but must return "
                "InferenceResponse objects"
            )
    return given
