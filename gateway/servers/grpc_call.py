"""One ModelInfer on grpcio, unary or on a stream."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from gateway.codecs.oip_grpc import GrpcCodec
from gateway.errors import InferenceFailed, SluiceError
from gateway.pipeline import AwaitableCall, Pipeline
from gateway.telemetry.logs import log
from gateway.tensors import InferenceRequest


class GrpcioCall(AwaitableCall):
    """In flight from when it is made until its future is done."""

    __slots__ = ("_codec", "_payload", "_pipeline", "typed")

    protocol = "grpc"

    def __init__(
        self,
        pipeline: Pipeline,
        codec: GrpcCodec,
        payload: bytes,
        headers: dict[str, str],
        left: float | None,
    ) -> None:
        now = perf_counter()
        super().__init__(None, now, None if left is None else now + left, headers)
        self._pipeline = pipeline
        self._codec = codec
        self._payload = payload
        self.typed = False
        pipeline.admission.in_flight += 1
        self.future.add_done_callback(self._ended)

    def decode(self) -> InferenceRequest:
        payload = self._payload
        self._payload = b""
        self._pipeline.admission.check_size(len(payload))
        request, self.typed = self._codec.decode(payload)
        return request

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self._pipeline.admission.in_flight -= 1

    def release(self) -> None:
        """Nothing is in flight any more, where a stream of answers has ended and not a future."""
        if not self.future.done():
            self.future.cancel()


def told(error: Exception) -> SluiceError:
    """What the caller hears of an error: grpcio itself would send the text of any exception."""
    if isinstance(error, SluiceError):
        return error
    log.error("unexpected error in a gRPC call", exc_info=error)
    return InferenceFailed(f"internal error: {type(error).__name__}")
