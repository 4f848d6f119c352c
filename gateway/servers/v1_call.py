"""One request of KServe V1 (``:predict``) over HTTP, from its headers to its answer."""

from __future__ import annotations

from gateway.codecs.large import read_v1, write_v1
from gateway.codecs.v1_rest import decode_v1
from gateway.servers.http_call import Exchange, HttpCall
from gateway.servers.large_json import read_for_model, write_apart
from gateway.tensors import Buffer, InferenceRequest, InferenceResponse


class V1Exchange(Exchange):
    """A request to ``:predict`` and its answer; its errors have the form of all our routes."""

    __slots__ = ()

    def _new_call(self, body: Buffer) -> HttpCall:
        return V1Call(self, body)


class V1Call(HttpCall):
    """The call of a `V1Exchange`."""

    __slots__ = ()

    protocol = "v1"

    # --- in

    def decode(self) -> InferenceRequest:
        exchange = self._exchange
        shared = exchange.protocol.shared
        self._set_deadline()
        # Only the version that will answer can say how to read the values. Should it have to be
        # loaded first, the bytes are needed again.
        self.chosen = shared.pipeline.choose(self, InferenceRequest(*exchange.target, ()))
        body, self._body = self._body, b""
        return decode_v1(*exchange.target, body, self.chosen[0].contract, shared.limits)

    def json_bytes(self) -> int:
        """See `HttpCall.json_bytes`."""
        return len(self._body)

    async def _read_apart(self, body: Buffer) -> InferenceRequest:
        target = self._exchange.target
        shared = self._exchange.protocol.shared
        like = InferenceRequest(*target, ())
        return await read_for_model(
            shared, self, like, len(body), read_v1, shared.limits, *target, body
        )

    # --- out

    def _encode(self, response: InferenceResponse) -> tuple[bytes, None]:
        return write_v1(response), None

    async def _encode_large(self, response: InferenceResponse, size: int) -> tuple[bytes, None]:
        return await write_apart(self._exchange.protocol.shared, size, write_v1, response), None
