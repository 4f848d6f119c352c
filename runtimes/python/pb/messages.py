"""``pb_utils.InferenceRequest``, ``InferenceResponse`` and ``InferenceResponseSender``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Final, Protocol, TypeVar

from gateway.contract import for_the_model
from gateway.errors import SluiceError
from gateway.tensors import InferenceRequest as OurRequest
from gateway.tensors import InferenceResponse as OurResponse
from gateway.tensors import Parameter
from runtimes.interface import Answer
from runtimes.python.pb.bindings import Binding
from runtimes.python.pb.errors import TritonError, TritonModelException, to_ours, to_theirs
from runtimes.python.pb.tensor import Tensor

T = TypeVar("T")

FINAL: Final = 1
RELEASE_ALL: Final = 1
RESCHEDULE: Final = 2

MEMORY_CPU: Final = 0
MEMORY_GPU: Final = 1


class PreferredMemory:
    """Where the outputs of another model should be; a hint, and they are always on the CPU."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class InferenceTrace:
    """Stands for a trace that a model hands on; there is none."""

    def get_context(self) -> None:
        """No context."""


class InferenceResponse:
    """One answer: tensors, or an error."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        tensors = list(output_tensors)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"output_tensors holds {type(tensor).__name__}, not Tensor")
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(f"error is {type(error).__name__}, not TritonError")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise TypeError(f"parameters is {type(parameters).__name__}, not dict")
        self._tensors = tensors
        self._error = error
        self._parameters = dict(parameters or {})

    def output_tensors(self) -> list[Tensor]:
        """The tensors."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether there is an error in place of tensors."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """The error."""
        return self._error

    def parameters(self) -> str:
        """The parameters, as JSON."""
        return json.dumps(self._parameters)

    def answer(self, wanted: Sequence[str]) -> Answer | SluiceError:
        """For the gateway, without what was not asked for."""
        if self._error is not None:
            return to_ours(self._error)
        arrays = {
            tensor.name(): tensor._array
            for tensor in self._tensors
            if not wanted or tensor.name() in wanted
        }
        return Answer(arrays, self._parameters or None)

    @staticmethod
    def of(response: OurResponse) -> InferenceResponse:
        """Another model's answer."""
        tensors = [Tensor.of(tensor) for tensor in response.outputs]
        return InferenceResponse(tensors, parameters=response.parameters)

    @staticmethod
    def failed(error: BaseException) -> InferenceResponse:
        """Another model's failure."""
        return InferenceResponse(error=to_theirs(error))


class Channel(Protocol):
    """Where the answers to one request go; for any thread."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for them any more."""

    @property
    def closed(self) -> bool:
        """Whether the last one was sent."""

    def send(self, answer: Answer | Exception | None, *, final: bool) -> None:
        """One answer; `None` only with `final`."""


class InferenceResponseSender:
    """Answers one request, any number of times, from any thread."""

    def __init__(self, channel: Channel, wanted: Sequence[str]) -> None:
        self._channel = channel
        self._wanted = wanted

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Raises `TritonModelException` behind the final flag, and for what is no response."""
        if flags not in (0, FINAL):
            raise TritonModelException(
                "Unable to send response. Unsupported flag: only "
                "TRITONSERVER_RESPONSE_COMPLETE_FINAL is known"
            )
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(f"send takes an InferenceResponse, not {type(response).__name__}")
        if response is None and flags == 0:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        if self._channel.closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        answer = None if response is None else response.answer(self._wanted)
        self._channel.send(answer, final=flags == FINAL)

    def is_cancelled(self) -> bool:
        """Whether the caller has gone away."""
        return self._channel.cancelled


class InferenceRequest:
    """A request that the model got, or one that it makes to another model."""

    binding: ClassVar[Binding | None] = None
    """Set in the class that a model imports."""

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] | None = None,
        requested_output_names: Sequence[str] | None = None,
        model_name: str | None = None,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        if inputs is None or requested_output_names is None or model_name is None:
            raise TypeError("InferenceRequest needs inputs, requested_output_names and model_name")
        for tensor in inputs:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"inputs holds {type(tensor).__name__}, not Tensor")
        if correlation_id:
            raise TritonModelException(
                "correlation_id is not supported: models here keep no sequences"
            )
        if flags:
            raise TritonModelException("flags are not supported: models here keep no sequences")
        self._id = str(request_id)
        self._inputs = list(inputs)
        self._outputs = list(requested_output_names)
        self._model = model_name
        self._version = "" if int(model_version) < 0 else str(int(model_version))
        self._timeout = int(timeout)
        self._trace = trace
        self._parameters = dict(parameters or {})
        self._channel: Channel | None = None
        self._sender: InferenceResponseSender | None = None

    @classmethod
    def received(
        cls, request: OurRequest, names: Sequence[str], channel: Channel
    ) -> InferenceRequest:
        """One that came to the model; `names` are its declared outputs."""
        made = cls.__new__(cls)
        made._id = request.id
        made._inputs = [Tensor.of(tensor) for tensor in request.inputs]
        made._outputs = list(request.outputs or names)
        made._model = request.model
        made._version = request.version
        made._timeout = request.timeout_us
        made._trace = None
        made._parameters = for_the_model(request.parameters)
        made._channel = channel
        made._sender = None
        return made

    # --- what it says

    def inputs(self) -> list[Tensor]:
        """The input tensors."""
        return self._inputs

    def request_id(self) -> str:
        """As the caller set it, else empty."""
        return self._id

    def correlation_id(self) -> int:
        """Always 0: there are no sequences here."""
        return 0

    def flags(self) -> int:
        """Always 0: there are no sequences here."""
        return 0

    def set_flags(self, flags: int) -> None:
        """Refused, but for 0."""
        if flags:
            raise TritonModelException("flags are not supported: models here keep no sequences")

    def requested_output_names(self) -> list[str]:
        """What the caller wants; all outputs where it does not say."""
        return self._outputs

    def model_name(self) -> str:
        """The model that was asked, or is to be."""
        return self._model

    def timeout(self) -> int:
        """In microseconds, 0 without one."""
        return self._timeout

    def parameters(self) -> str:
        """The caller's own parameters, as JSON."""
        return json.dumps(self._parameters)

    def trace(self) -> InferenceTrace:
        """To hand on to another model."""
        return self._trace or InferenceTrace()

    def is_cancelled(self) -> bool:
        """Whether the caller has gone away."""
        return self._channel is not None and self._channel.cancelled

    def set_release_flags(self, flags: int) -> None:
        """Only ``TRITONSERVER_REQUEST_RELEASE_ALL``: requests are not scheduled again."""
        if flags != RELEASE_ALL:
            raise TritonModelException(
                "set_release_flags: rescheduling a request is not supported; only "
                "TRITONSERVER_REQUEST_RELEASE_ALL is"
            )

    def get_response_sender(self) -> InferenceResponseSender:
        """What answers the request."""
        if self._channel is None:
            raise TritonModelException(
                "get_response_sender is for requests that the model got, not for its own"
            )
        if self._sender is None:
            self._sender = InferenceResponseSender(self._channel, self._outputs)
        return self._sender

    # --- asking another model

    def exec(self, decoupled: bool = False) -> Any:
        """The response of the other model (with `decoupled`: an iterator over its responses).

        Failures come as responses whose `has_error` is true.
        """
        if decoupled:
            return self._responses()
        try:
            return InferenceResponse.of(self._call().result())
        except Exception as error:
            return InferenceResponse.failed(error)

    def async_exec(self, decoupled: bool = False) -> asyncio.Future[Any]:
        """As `exec`, to be awaited; the request is sent at once (with `decoupled`, when its first
        response is asked for)."""
        if decoupled:
            return asyncio.ensure_future(_given(self._responses()))
        try:
            sent = self._call()
        except Exception as error:
            return asyncio.ensure_future(_given(InferenceResponse.failed(error)))
        return asyncio.ensure_future(_response(sent))

    def _call(self) -> Future[OurResponse]:
        return self._bound().call(self._ours())

    def _responses(self) -> Iterator[InferenceResponse]:
        try:
            answers = self._bound().host.stream(self._ours())
        except SluiceError as error:
            return iter((InferenceResponse.failed(error),))
        return _each(answers)

    def _bound(self) -> Binding:
        if self.binding is None:
            raise TritonModelException("requests can be made by models alone")
        return self.binding

    def _ours(self) -> OurRequest:
        return OurRequest(
            self._model,
            self._version,
            tuple(tensor.ours() for tensor in self._inputs),
            id=self._id,
            outputs=tuple(self._outputs),
            parameters=dict(self._parameters) or None,
            timeout_us=self._timeout,
        )


async def _given(value: T) -> T:
    return value


async def _response(sent: Future[OurResponse]) -> InferenceResponse:
    try:
        return InferenceResponse.of(await asyncio.wrap_future(sent))
    except Exception as error:
        return InferenceResponse.failed(error)


def _each(answers: Iterator[OurResponse]) -> Iterator[InferenceResponse]:
    try:
        for answer in answers:
            yield InferenceResponse.of(answer)
    except SluiceError as error:
        yield InferenceResponse.failed(error)
