"""Every unary RPC but ModelInfer, as functions from bytes to bytes: for both gRPC servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from gateway import __version__
from gateway.codecs.messages import METHODS
from gateway.errors import InvalidRequest
from gateway.facts import EXTENSIONS, NAME, Facts, statistics_json

INFER: Final = "ModelInfer"
STREAM: Final = "ModelStreamInfer"


class GrpcService:
    """The service over `Facts`. `handlers` maps an RPC's name to bytes → bytes, which raises
    `SluiceError`."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
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
                "extensions": EXTENSIONS,
            },
            "ModelMetadata": self._model_metadata,
            "ModelConfig": lambda request: {"config": facts.config(request.name, request.version)},
            "ModelStatistics": self._statistics,
            "RepositoryIndex": lambda request: {"models": facts.index(only_ready=request.ready)},
        }
        self.handlers = {name: self._handler(name, answer) for name, answer in answers.items()}

    def _handler(
        self, name: str, answer: Callable[[Any], dict[str, Any]]
    ) -> Callable[[bytes], bytes]:
        method = METHODS[name]

        def handle(payload: bytes) -> bytes:
            try:
                request = method.request.FromString(payload)
            except (DecodeError, UnicodeDecodeError) as error:
                raise InvalidRequest(f"the message is not a {name}Request: {error}") from None
            encoded: bytes = method.response(**answer(request)).SerializeToString()
            return encoded

        return handle

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

    def _statistics(self, request: Any) -> dict[str, Any]:
        servables = self._facts.servables(request.name, request.version)
        return {"model_stats": [statistics_json(servable) for servable in servables]}
