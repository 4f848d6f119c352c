"""Every unary RPC but ModelInfer, as functions from bytes to bytes: for both gRPC servers.

Most answer at once. Loading, unloading and statistics take their time; some want to know who asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from google.protobuf.message import DecodeError

from gateway import __version__
from gateway.codecs.messages import METHODS
from gateway.control.callers import Caller, grpc_peer
from gateway.control.repository import Parameter, Repository
from gateway.errors import InvalidRequest, ModelNotReady, NotLoaded, printable
from gateway.facts import NAME, Facts, statistics_json
from gateway.servers.piecewise import in_turns

INFER: Final = "ModelInfer"
STREAM: Final = "ModelStreamInfer"

Slow = Callable[[bytes, Caller], Awaitable[bytes]]


class GrpcService:
    """The service over `Facts` and `Repository`. `handlers` maps an RPC's name to bytes → bytes,
    which raises `SluiceError`; `slow` to what has to be awaited."""

    def __init__(self, facts: Facts, repository: Repository) -> None:
        self._facts = facts
        self._repository = repository
        self.ready: Callable[[], bool] = lambda: facts.ready
        answers: dict[str, Callable[[Any], dict[str, Any]]] = {
            "ServerLive": lambda request: {"live": facts.live},
            "ServerReady": lambda request: {"ready": facts.ready},
            "ModelReady": lambda request: {
                "ready": facts.model_ready(request.name, request.version)
            },
            "ServerMetadata": lambda request: {
                "name": NAME,
                "version": __version__,
                "extensions": facts.extensions,
            },
            "ModelMetadata": self._model_metadata,
            "ModelConfig": lambda request: {"config": facts.config(request.name, request.version)},
            "RepositoryIndex": lambda request: {"models": facts.index(only_ready=request.ready)},
        }
        self.handlers = {name: self._handler(name, answer) for name, answer in answers.items()}
        self.slow: dict[str, Slow] = {
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "ModelStatistics": self._statistics,
        }

    def _handler(
        self, name: str, answer: Callable[[Any], dict[str, Any]]
    ) -> Callable[[bytes], bytes]:
        method = METHODS[name]

        def handle(payload: bytes) -> bytes:
            request = parsed(name, payload)
            encoded: bytes = method.response(**answer(request)).SerializeToString()
            return encoded

        return handle

    async def _load(self, payload: bytes, caller: Caller) -> bytes:
        self._repository.check(caller)
        request = parsed("RepositoryModelLoad", payload)
        model, repository = model_of(request)
        await self._repository.load(caller, model, parameters_of(request), repository=repository)
        return answered("RepositoryModelLoad", request, isLoaded=True)

    async def _unload(self, payload: bytes, caller: Caller) -> bytes:
        self._repository.check(caller)
        request = parsed("RepositoryModelUnload", payload)
        model, repository = model_of(request)
        await self._repository.unload(caller, model, parameters_of(request), repository=repository)
        return answered("RepositoryModelUnload", request, isUnloaded=True)

    def _model_metadata(self, request: Any) -> dict[str, Any]:
        metadata = self._facts.metadata(request.name, request.version)
        return {
            "name": metadata.name,
            "versions": metadata.versions,
            "platform": metadata.platform,
            "inputs": [
                {"name": t.name, "datatype": t.datatype.name, "shape": t.shape}
                for t in metadata.inputs
            ],
            "outputs": [
                {"name": t.name, "datatype": t.datatype.name, "shape": t.shape}
                for t in metadata.outputs
            ],
        }

    async def _statistics(self, payload: bytes, caller: Caller) -> bytes:
        request = parsed("ModelStatistics", payload)
        try:
            servables = self._facts.servables(request.name, request.version)
        except NotLoaded as error:  # to be counted is no reason to be loaded
            raise ModelNotReady(str(error)) from None
        response = METHODS["ModelStatistics"].response
        # Messages that are put one behind the other are one with all their elements.
        parts: list[bytes] = await in_turns(
            response(model_stats=[statistics_json(servable)]).SerializeToString()
            for servable in servables
        )
        return b"".join(parts)


def parsed(name: str, payload: bytes) -> Any:
    """The request of an RPC. Raises `InvalidRequest`."""
    try:
        return METHODS[name].request.FromString(payload)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the message is not a {name}Request: {error}") from None


def model_of(request: Any) -> tuple[str, str]:
    """Model and repository of a load or unload, in Triton's shape or in KServe's, where the
    model is in field 1."""
    if request.model_name:
        return request.model_name, request.repository_name
    return request.repository_name, ""


def parameters_of(request: Any) -> dict[str, Parameter]:
    """Raises `InvalidRequest` for a parameter without a value."""
    found: dict[str, Parameter] = {}
    for name, value in request.parameters.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter '{printable(name)}' has no value")
        found[name] = getattr(value, choice)
    return found


def answered(name: str, request: Any, **done: bool) -> bytes:
    """Nothing for Triton's clients; what KServe's look for where the request was of their shape."""
    response = METHODS[name].response()
    if not request.model_name:
        response = METHODS[name].response(model_name=request.repository_name, **done)
    encoded: bytes = response.SerializeToString()
    return encoded


def grpc_caller(metadata: Iterable[tuple[str, str | bytes]], peer: str) -> Caller:
    """Who calls, with the metadata that has text values."""
    texts = ((key, value) for key, value in metadata if isinstance(value, str))
    return Caller.of(grpc_peer(peer), texts)
