"""One request of MLflow's scoring protocol over HTTP, from its headers to its answer."""

from __future__ import annotations

from typing import Final

from gateway.codecs.invocations import Payload, decode_invocations, parse_invocations
from gateway.codecs.invocations_answer import (
    encode_predictions,
    error_json,
    mlflow_error,
)
from gateway.codecs.large import (
    read_invocations,
    read_invocations_parameters,
    write_invocations,
)
from gateway.errors import InvalidRequest, ModelNotReady, SluiceError, printable, text_of
from gateway.servers.http_answer import JSON_TYPE, error_headers
from gateway.servers.http_call import Exchange, HttpCall
from gateway.servers.large_json import read_apart, read_for_model, write_apart
from gateway.tensors import Buffer, InferenceRequest, InferenceResponse, Parameter

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

    def _new_call(self, body: Buffer) -> HttpCall:
        return InvocationsCall(self, body, self._media_type)

    def fail(self, error: SluiceError) -> None:
        """Writes an error."""
        body, status = mlflow_error(error)
        self._write(status, body, JSON_TYPE, error_headers(error))

    def error_body(self, error: SluiceError, status: int) -> bytes:
        """See `Exchange.error_body`."""
        return error_json(status, text_of(error))


class InvocationsCall(HttpCall):
    """The call of an `InvocationsExchange`."""

    __slots__ = ("_media_type", "_payload")

    protocol = "mlflow"

    def __init__(self, exchange: InvocationsExchange, body: Buffer, media_type: str) -> None:
        super().__init__(exchange, body)
        self._media_type = media_type
        self._payload: Payload | None = None

    # --- in

    def decode(self) -> InferenceRequest:
        self._set_deadline()
        shared, target = self._exchange.protocol.shared, self._exchange.target
        payload = self._payload
        if payload is None:
            payload = parse_invocations(self._body, self._media_type, shared.limits)
            self._payload, self._body = payload, b""
        # Only the version that will answer can say what the values are.
        self.chosen = shared.pipeline.choose(self, self._like(payload.parameters))
        return decode_invocations(*target, payload, self.chosen[0].contract)

    def _like(self, parameters: dict[str, Parameter] | None) -> InferenceRequest:
        """What a version is chosen for."""
        return InferenceRequest(*self._exchange.target, (), parameters=parameters, signature=())

    def json_bytes(self) -> int:
        """See `HttpCall.json_bytes`; CSV is as slow."""
        return len(self._body)

    async def _read_apart(self, body: Buffer) -> InferenceRequest:
        shared, target = self._exchange.protocol.shared, self._exchange.target
        parameters = None
        route = shared.pipeline.router.table.get(target[0])
        if route is None or route.sticky.parameter is not None:
            # Only then do they say which version it is: the body is read once more for them.
            parameters = await read_apart(
                shared,
                self.deadline,
                len(body),
                read_invocations_parameters,
                shared.limits,
                self._media_type,
                body,
            )
        return await read_for_model(
            shared,
            self,
            self._like(parameters),
            len(body),
            read_invocations,
            shared.limits,
            self._media_type,
            *target,
            body,
        )

    # --- out

    def _encode(self, response: InferenceResponse) -> tuple[bytes, None]:
        assert self.chosen is not None
        return encode_predictions(response, self.chosen[0].contract.outputs), None

    async def _encode_large(self, response: InferenceResponse, size: int) -> tuple[bytes, None]:
        assert self.chosen is not None
        outputs = self.chosen[0].contract.outputs
        shared = self._exchange.protocol.shared
        return await write_apart(shared, size, write_invocations, response, outputs), None


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
