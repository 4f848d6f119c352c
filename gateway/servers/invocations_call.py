"""One request of MLflow's scoring protocol over HTTP, from its headers to its answer."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.codecs.invocations import Payload, decode_invocations, parse_invocations
from gateway.codecs.invocations_answer import (
    encode_predictions,
    error_json,
    mlflow_error,
    size_of,
)
from gateway.errors import (
    InferenceFailed,
    InvalidRequest,
    ModelNotReady,
    NotLoaded,
    SluiceError,
    printable,
    text_of,
)
from gateway.servers.http_answer import JSON_TYPE, error_headers
from gateway.servers.http_call import IN_THREAD, Exchange, HttpCall
from gateway.servers.large_json import still_there
from gateway.telemetry.logs import log
from gateway.tensors import Buffer, InferenceRequest, InferenceResponse

MODEL_HEADER: Final = b"x-sluice-model"
MEDIA_TYPES: Final = ("application/json", "text/csv")
_PLAIN: Final = (None, b"application/json")
_LISTED: Final = 10


class InvocationsExchange(Exchange):
    """A request to ``/invocations`` and its answer; all its errors have MLflow's form.

    Its target's model is empty where only the headers, or the models that there are, say which.
    """

    __slots__ = ("_media_type",)

    def start(self) -> None:
        """The body is complete and it is this request's turn."""
        self._media_type = "application/json"
        header = self.headers.get(b"content-type")
        if header not in _PLAIN:
            assert header is not None
            text = header.decode("latin-1")
            self._media_type = media_type_of(text)
            refusal = unknown_type(text)
            if refusal:
                self._write(415, error_json(415, refusal), JSON_TYPE, b"")
                return
        if not self.target[0]:
            try:
                self.target = self._which()
            except SluiceError as error:
                self.fail(error)
                return
        super().start()

    def _which(self) -> tuple[str, str]:
        """Model and version. Raises `InvalidRequest` where it is not said which of several."""
        header = self.headers.get(MODEL_HEADER)
        if header:
            return header.decode("latin-1"), ""
        names = self.protocol.shared.facts.names()
        if len(names) == 1:
            return names[0], ""
        if not names:
            raise ModelNotReady("this gateway has no model yet")
        listed = ", ".join(printable(name) for name in names[:_LISTED])
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise InvalidRequest(
            f"this gateway has several models ({listed}{more}): say which one by the header "
            f"{MODEL_HEADER.decode()}, or POST to /models/<model>/invocations"
        )

    def _serve(self, body: Buffer) -> None:
        self._body = b""
        call = InvocationsCall(self, body, self._media_type)
        self._call = call
        if len(body) < IN_THREAD:
            self.protocol.shared.pipeline.serve(call)
        else:
            self.in_task(self._serve_large(call))

    async def _serve_large(self, call: InvocationsCall) -> None:
        await call.prepare()
        if not self.disconnected:
            self.protocol.shared.pipeline.serve(call)

    def fail(self, error: SluiceError) -> None:
        """Writes an error."""
        body, status = mlflow_error(error)
        self._write(status, body, JSON_TYPE, error_headers(error))

    def error_body(self, error: SluiceError, status: int) -> bytes:
        """See `Exchange.error_body`."""
        return error_json(status, text_of(error))


class InvocationsCall(HttpCall):
    """The call of an `InvocationsExchange`."""

    __slots__ = ("_error", "_media_type", "_payload", "_ready")

    protocol = "mlflow"

    def __init__(self, exchange: InvocationsExchange, body: Buffer, media_type: str) -> None:
        super().__init__(exchange, body)
        self._media_type = media_type
        self._payload: Payload | None = None
        self._ready: InferenceRequest | None = None
        self._error: SluiceError | None = None

    # --- in

    async def prepare(self) -> None:
        """Reads a large body in a thread; what is wrong with it is said by `decode`."""
        try:
            self._payload = await asyncio.to_thread(self._parse)
            self._choose(self._payload)
            self._ready = await asyncio.to_thread(self._convert, self._payload)
        except NotLoaded:
            pass  # `decode` says it again, and is asked once more when it is loaded
        except SluiceError as error:
            self._error = error
        except Exception as error:
            log.exception("cannot read a body")
            self._error = InferenceFailed(f"internal error: {type(error).__name__}")

    def decode(self) -> InferenceRequest:
        timeout = self._exchange.headers.get(b"x-request-timeout-ms")
        if timeout is not None:
            self._set_deadline(timeout)
        if self._error is not None:
            raise self._error
        if self._ready is not None and self._still_there():
            return self._ready
        if self._payload is None:
            self._payload = self._parse()
        self._choose(self._payload)
        return self._convert(self._payload)

    def _parse(self) -> Payload:
        limits = self._exchange.protocol.shared.limits
        payload = parse_invocations(self._body, self._media_type, limits)
        self._body = b""
        return payload

    def _choose(self, payload: Payload) -> None:
        # Only the version that will answer can say what the values are.
        like = InferenceRequest(
            *self._exchange.target, (), parameters=payload.parameters, signature=()
        )
        self.chosen = self._exchange.protocol.shared.pipeline.choose(self, like)

    def _convert(self, payload: Payload) -> InferenceRequest:
        assert self.chosen is not None
        return decode_invocations(*self._exchange.target, payload, self.chosen[0].contract)

    def _still_there(self) -> bool:
        assert self.chosen is not None
        exchange = self._exchange
        return still_there(exchange.protocol.shared, exchange.target[0], self.chosen[0])

    # --- out

    def _large_answer(self, response: InferenceResponse) -> int:
        size = sum(map(size_of, response.outputs))
        return size if size >= IN_THREAD else 0

    def _encode(self, response: InferenceResponse) -> tuple[bytes, None]:
        assert self.chosen is not None
        return encode_predictions(response, self.chosen[0].contract.outputs), None

    async def _encode_large(self, response: InferenceResponse, size: int) -> tuple[bytes, None]:
        try:
            return await asyncio.to_thread(self._encode, response)
        except SluiceError:
            raise
        except Exception as error:
            log.exception("cannot encode an answer")
            raise InferenceFailed(f"cannot encode the answer: {type(error).__name__}") from None


def media_type_of(header: str) -> str:
    """The type of a body, in small letters, without parameters; JSON where nothing is said."""
    return (header or MEDIA_TYPES[0]).partition(";")[0].strip().lower()


def unknown_type(header: str) -> str:
    """Why bodies of this type are not read; empty where they are."""
    if media_type_of(header) not in MEDIA_TYPES:
        return (
            f"bodies must be of one of the types {', '.join(MEDIA_TYPES)}, not "
            f"'{printable(header)}'; say so in the header Content-Type"
        )
    for parameter in header.split(";")[1:]:
        name, _, value = (part.strip().lower() for part in parameter.partition("="))
        if name and (name != "charset" or value.strip('"') not in ("utf-8", "utf8")):
            return f"Content-Type: '{printable(parameter.strip())}' is not known; send UTF-8"
    return ""
