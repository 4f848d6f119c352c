"""What ``mlflow models serve`` answers: ``/invocations``, ``/ping``, ``/health``, ``/version``.

That server has one model and this one has many: ``/invocations`` asks the only one there is, or
the one that the header ``x-sluice-model`` names; ``/models/<model>/invocations`` always works.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.codecs.invocations import Payload, decode_invocations, parse_invocations
from gateway.codecs.invocations_answer import encode_predictions, error_json, mlflow_error
from gateway.codecs.statuses import retry_after
from gateway.errors import (
    InferenceFailed,
    InvalidRequest,
    ModelNotReady,
    NotLoaded,
    SluiceError,
    printable,
)
from gateway.pipeline import AwaitableCall
from gateway.servable import Servable
from gateway.servers.generate import route_headers
from gateway.servers.http_app import read_body, until_disconnect
from gateway.servers.http_call import IN_THREAD, timeout_ms
from gateway.servers.http_state import HttpState
from gateway.telemetry.logs import log
from gateway.tensors import InferenceRequest, InferenceResponse

MODEL_HEADER: Final = "x-sluice-model"
SPOKEN: Final = "3.17.2"
"""The MLflow whose scoring protocol this is; clients read it from ``/version``."""
MEDIA_TYPES: Final = ("application/json", "text/csv")
_LISTED: Final = 10
_JSON: Final = "application/json"


class InvocationsCall(AwaitableCall):
    """A call that came by MLflow's protocol."""

    __slots__ = ("_body", "_error", "_media_type", "_payload", "_request", "_shared", "_target")
    protocol = "mlflow"

    def __init__(
        self,
        shared: HttpState,
        model_and_version: tuple[str, str],
        body: bytes,
        media_type: str,
        headers: dict[str, str],
        arrived: float,
    ) -> None:
        super().__init__(None, arrived, None, headers)
        self._shared = shared
        self._target = model_and_version
        self._body = body
        self._media_type = media_type
        self._payload: Payload | None = None
        self._request: InferenceRequest | None = None
        self._error: SluiceError | None = None

    async def prepare(self) -> None:
        """Reads a large body in a thread; what is wrong with it is said by `decode`."""
        if len(self._body) < IN_THREAD:
            return
        try:
            self._payload = await asyncio.to_thread(self._parse)
            self._choose(self._payload)
            self._request = await asyncio.to_thread(self._convert, self._payload)
        except NotLoaded:
            pass  # `decode` says it again, and is asked once more when it is loaded
        except SluiceError as error:
            self._error = error

    def decode(self) -> InferenceRequest:
        timeout = self.headers.get("x-request-timeout-ms")
        if timeout is not None:
            self.deadline = self.arrived + timeout_ms(timeout.encode("latin-1")) / 1e3
        if self._error is not None:
            raise self._error
        if self._request is not None and self._still_there():
            return self._request
        if self._payload is None:
            self._payload = self._parse()
        self._choose(self._payload)
        return self._convert(self._payload)

    def _parse(self) -> Payload:
        payload = parse_invocations(self._body, self._media_type, self._shared.limits)
        self._body = b""
        return payload

    def _choose(self, payload: Payload) -> None:
        # Only the version that will answer can say what the values are.
        like = InferenceRequest(*self._target, (), parameters=payload.parameters)
        self.chosen = self._shared.pipeline.choose(self, like)

    def _convert(self, payload: Payload) -> InferenceRequest:
        assert self.chosen is not None
        return decode_invocations(*self._target, payload, self.chosen[0].contract)

    def _still_there(self) -> bool:
        """Whether the version that was chosen was not unloaded meanwhile: nobody kept it."""
        assert self.chosen is not None
        servable: Servable = self.chosen[0]
        route = self._shared.pipeline.router.table.get(self._target[0])
        return route is not None and route.versions.get(servable.version) is servable

    async def answer(self) -> InferenceResponse:
        """The model's answer. Raises `SluiceError`."""
        await self.prepare()
        return await self._shared.pipeline.infer(self)


class Invocations:
    """The routes, over what all HTTP connections share."""

    def __init__(self, shared: HttpState) -> None:
        self._shared = shared

    def routes(self) -> list[BaseRoute]:
        model = "/models/{model}"
        return [
            Route("/invocations", self.invocations, methods=["POST"]),
            Route(model + "/invocations", self.invocations, methods=["POST"]),
            Route(model + "/versions/{version}/invocations", self.invocations, methods=["POST"]),
            Route("/ping", self.ping),
            Route("/health", self.ping),
            Route("/version", self.version),
        ]

    async def ping(self, request: Request) -> Response:
        """200 when ready."""
        ready = self._shared.facts.ready
        return Response(b"\n", 200 if ready else 503, media_type=_JSON)

    async def version(self, request: Request) -> Response:
        """The version of MLflow that this speaks like, as bare text."""
        return Response(SPOKEN, 200, media_type=_JSON)

    async def invocations(self, request: Request) -> Response:
        """Inference."""
        arrived = perf_counter()
        refusal = unknown_type(request.headers.get("content-type"))
        if refusal:
            return Response(error_json(415, refusal), 415, media_type=_JSON)
        try:
            return await self._answer(request, arrived)
        except SluiceError as error:
            body, status = mlflow_error(error)
            seconds = retry_after(error)
            headers = {} if seconds is None else {"Retry-After": str(seconds)}
            return Response(body, status, headers, _JSON)

    async def _answer(self, request: Request, arrived: float) -> Response:
        shared = self._shared
        target = self._target(request)
        body = await read_body(request, shared.limits.max_message_bytes)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in request.scope["headers"]}
        media_type = media_type_of(request.headers.get("content-type"))
        call = InvocationsCall(shared, target, body, media_type, headers, arrived)
        response = await until_disconnect(request, shared, call.answer())
        assert call.chosen is not None
        outputs = call.chosen[0].contract.outputs
        try:
            if sum(tensor.nbytes for tensor in response.outputs) < IN_THREAD:
                content = encode_predictions(response, outputs)
            else:
                content = await asyncio.to_thread(encode_predictions, response, outputs)
        except SluiceError:
            raise
        except Exception as error:
            log.exception("cannot encode an answer")
            raise InferenceFailed(f"cannot encode the answer: {type(error).__name__}") from None
        return Response(content, 200, route_headers(response), _JSON)

    def _target(self, request: Request) -> tuple[str, str]:
        """Model and version. Raises `InvalidRequest` where it is not said which of several."""
        named: str | None = request.path_params.get("model")
        header = request.headers.get(MODEL_HEADER)
        if named is not None:
            return named, request.path_params.get("version", "")
        if header:
            return header, ""
        names = self._shared.facts.names()
        if len(names) == 1:
            return names[0], ""
        if not names:
            raise ModelNotReady("this gateway has no model yet")
        listed = ", ".join(printable(name) for name in names[:_LISTED])
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise InvalidRequest(
            f"this gateway has several models ({listed}{more}): say which one by the header "
            f"{MODEL_HEADER}, or POST to /models/<model>/invocations"
        )


def media_type_of(header: str | None) -> str:
    """The type of a body, in small letters, without parameters; JSON where nothing is said."""
    return (header or _JSON).partition(";")[0].strip().lower()


def unknown_type(header: str | None) -> str:
    """Why bodies of this type are not read; empty where they are."""
    if media_type_of(header) not in MEDIA_TYPES:
        return (
            f"bodies must be of one of the types {', '.join(MEDIA_TYPES)}, not "
            f"'{printable(header)}'; say so in the header Content-Type"
        )
    for parameter in (header or "").split(";")[1:]:
        name, _, value = (part.strip().lower() for part in parameter.partition("="))
        if name and (name != "charset" or value.strip('"') not in ("utf-8", "utf8")):
            return f"Content-Type: '{printable(parameter.strip())}' is not known; send UTF-8"
    return ""
