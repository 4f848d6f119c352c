"""Everything over HTTP but inference: metadata, health, statistics, documentation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway import __version__
from gateway.codecs import compression
from gateway.codecs.json_data import parse_json
from gateway.codecs.statuses import http_status, retry_after
from gateway.errors import Draining, InvalidRequest, RequestTooLarge, SluiceError, without_folders
from gateway.facts import NAME, Facts, statistics_json, tensor_json
from gateway.registries.config_pbtxt_message import to_json
from gateway.servers.http_answer import error_body
from gateway.servers.http_call import IN_THREAD
from gateway.servers.http_state import HttpState
from gateway.servers.piecewise import answer_list
from gateway.telemetry.logs import log

T = TypeVar("T")


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_answer(error: SluiceError) -> Response:
    """An error in the one shape that all our routes have."""
    seconds = retry_after(error)
    headers = {} if seconds is None else {"Retry-After": str(seconds)}
    return Response(error_body(error), http_status(error), headers, "application/json")


class HttpApp:
    """The ASGI application's handlers over the shared state."""

    def __init__(self, shared: HttpState) -> None:
        self._shared = shared
        self._facts: Facts = shared.facts

    def routes(self) -> list[BaseRoute]:
        model = "/v2/models/{model}"
        versioned = model + "/versions/{version}"
        routes: list[BaseRoute] = [
            Route("/", self.alive),
            Route("/v2", self.server_metadata),
            Route("/v2/", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models", self.models),
            Route("/v2/models/stats", self.all_statistics),
            Route("/v2/repository/index", self.index, methods=["POST", "GET"]),
            Route("/v1/models", self.v1_models),
            # Answered before it gets here; the route is for those who GET it.
            Route("/v1/models/{model}:predict", self.no_inference, methods=["POST"]),
            Route("/v1/models/{model}", self.v1_model),
        ]
        for prefix in (model, versioned):
            routes += [
                Route(prefix, self.model_metadata),
                Route(prefix + "/ready", self.model_ready),
                Route(prefix + "/config", self.model_config),
                Route(prefix + "/stats", self.statistics),
                # Answered before it gets here; the route is for those who GET it.
                Route(prefix + "/infer", self.no_inference, methods=["POST"]),
            ]
        return routes

    # --- server

    async def alive(self, request: Request) -> Response:
        return answer({"status": "alive"})

    async def server_metadata(self, request: Request) -> Response:
        return answer({"name": NAME, "version": __version__, "extensions": self._facts.extensions})

    async def live(self, request: Request) -> Response:
        return answer({"live": self._facts.live})

    async def ready(self, request: Request) -> Response:
        ready = self._facts.ready
        body: dict[str, Any] = {"ready": ready}
        failed = self._facts.failed()
        if failed:
            body["failed"] = {name: without_folders(cause) for name, cause in failed.items()}
        return answer(body, 200 if ready else 503)

    async def models(self, request: Request) -> Response:
        return answer({"models": self._facts.model_names()})

    async def index(self, request: Request) -> Response:
        only_ready = False
        body = await read_body(request, self._shared.limits.max_message_bytes)
        if body.strip():
            tree = parse_json(body, self._shared.limits.max_json_depth)
            only_ready = tree.get("ready", False)
            if type(only_ready) is not bool:
                raise InvalidRequest("'ready' must be true or false")
        return answer(self._facts.index(only_ready=only_ready))

    # --- one model

    async def model_metadata(self, request: Request) -> Response:
        metadata = await self._shared.pipeline.when_loaded(
            lambda: self._facts.metadata(*target(request))
        )
        return answer(
            {
                "name": metadata.name,
                "versions": metadata.versions,
                "platform": metadata.platform,
                "inputs": [tensor_json(spec) for spec in metadata.inputs],
                "outputs": [tensor_json(spec) for spec in metadata.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        model, version = target(request)
        ready = self._facts.model_ready(model, version)
        return answer({"name": model, "ready": ready}, 200 if ready else 503)

    async def model_config(self, request: Request) -> Response:
        config = await self._shared.pipeline.when_loaded(
            lambda: self._facts.config(*target(request))
        )
        return answer(to_json(config))

    async def statistics(self, request: Request) -> Response:
        servables = self._facts.servables(*target(request))
        return answer({"model_stats": [statistics_json(each) for each in servables]})

    async def all_statistics(self, request: Request) -> Response:
        return await answer_list("model_stats", map(statistics_json, self._facts.servables()))

    async def no_inference(self, request: Request) -> Response:
        raise HTTPException(404)

    # --- KServe V1

    async def v1_models(self, request: Request) -> Response:
        return answer({"models": self._facts.model_names()})

    async def v1_model(self, request: Request) -> Response:
        model = request.path_params["model"]
        ready = self._facts.model_ready(model)
        return answer({"name": model, "ready": ready}, 200 if ready else 503)


async def until_disconnect(
    request: Request, shared: HttpState, answering: Coroutine[Any, Any, T]
) -> T:
    """What `answering` gives; it is cancelled when the client goes away (`ClientDisconnect`) and
    when the port closes (`Draining`)."""
    admission = shared.pipeline.admission
    admission.in_flight += 1
    me = asyncio.current_task()
    assert me is not None
    shared.streams.add(me)
    work = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return await work
    except asyncio.CancelledError:
        me.uncancel()  # the caller is told, and the task ends in order
        raise Draining from None
    finally:
        shared.streams.discard(me)
        admission.in_flight -= 1
        gone.cancel()
        work.cancel()


def target(request: Request) -> tuple[str, str]:
    """Model and version of a path."""
    return request.path_params["model"], request.path_params.get("version", "")


async def read_body(request: Request, limit: int) -> bytes:
    """The body, decompressed. Raises `RequestTooLarge` before more than `limit` bytes are kept."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RequestTooLarge(f"the body is larger than limits.max_message_bytes = {limit}")
    encoding = request.headers.get("content-encoding")
    if encoding and encoding != "identity":
        if len(body) < IN_THREAD:
            return compression.decompress(body, encoding, limit)
        return await asyncio.to_thread(compression.decompress, body, encoding, limit)
    return bytes(body)


def make_app(shared: HttpState, more: list[BaseRoute]) -> Starlette:
    """The application: our routes, and those of the admin API and the documentation."""

    async def sluice_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, SluiceError)
        return error_answer(error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = str(error.detail)
        if error.status_code == 404:
            text = f"nothing is at {request.url.path[:200]!r}; see /docs for all routes"
        elif error.status_code == 405:
            text = f"{request.method} is not possible at {request.url.path[:200]!r}"
        return answer({"error": text}, error.status_code, dict(error.headers or {}))

    async def gone(request: Request, error: Exception) -> Response:
        return answer({"error": "the client went away"}, 499)

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected error at %s", request.url.path[:200], exc_info=error)
        return answer({"error": f"internal error: {type(error).__name__}"}, 500)

    return Starlette(
        routes=[*HttpApp(shared).routes(), *more],
        exception_handlers={
            SluiceError: sluice_error,
            HTTPException: http_error,
            ClientDisconnect: gone,
            Exception: unexpected,
        },
    )
