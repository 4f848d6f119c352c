"""``/v2/repository/...``: loading and unloading over HTTP, as Triton's and KServe's clients do."""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.codecs.json_data import parse_json
from gateway.codecs.oip_rest import refuse_unknown
from gateway.control.callers import Caller
from gateway.control.files import PREFIX
from gateway.control.repository import Parameter, Repository
from gateway.errors import InvalidRequest, printable
from gateway.servers.http_app import answer, read_body
from gateway.servers.http_call import IN_THREAD
from gateway.servers.http_state import HttpState

KINDS = (str, bool, int)


class RepositoryRoutes:
    """Handlers over `Repository`. The index is with the other questions, in `http_app`."""

    def __init__(self, shared: HttpState, repository: Repository) -> None:
        self._shared = shared
        self._repository = repository

    def routes(self) -> list[BaseRoute]:
        model = "/v2/repository/models/{model}"
        version = model + "/versions/{version}"
        return [
            *(Route(f"{path}/load", self.load, methods=["POST"]) for path in (model, version)),
            *(Route(f"{path}/unload", self.unload, methods=["POST"]) for path in (model, version)),
        ]

    async def load(self, request: Request) -> Response:
        """Body: nothing, or ``{"parameters": {"config": "{}", "file:1/model.onnx": BASE64}}``."""
        return await self._change(request, "load")

    async def unload(self, request: Request) -> Response:
        """Body: nothing, or ``{"parameters": {"unload_dependents": false}}``."""
        return await self._change(request, "unload")

    async def _change(self, request: Request, what: str) -> Response:
        caller = caller_of(request)
        # Before the body is read, which may be large.
        self._repository.check(caller)
        parameters = await self._parameters(request)
        path = request.path_params
        change = self._repository.load if what == "load" else self._repository.unload
        await change(caller, path["model"], parameters, version=path.get("version", ""))
        # Triton answers nothing, KServe these words.
        return answer({"name": path["model"], what: True})

    async def _parameters(self, request: Request) -> dict[str, Parameter]:
        limits = self._shared.limits
        body = await read_body(request, limits.max_message_bytes)
        if not body.strip():
            return {}
        if len(body) < IN_THREAD:
            return parse_parameters(body, limits.max_json_depth)
        return await asyncio.to_thread(parse_parameters, body, limits.max_json_depth)


def parse_parameters(body: bytes, max_depth: int) -> dict[str, Parameter]:
    """The parameters in a request's body. Raises `InvalidRequest`."""
    tree = parse_json(body, max_depth)
    refuse_unknown(tree, frozenset({"parameters"}), "the request")
    given: Any = tree.get("parameters", {})
    if type(given) is not dict:
        raise InvalidRequest("'parameters' must be an object")
    found: dict[str, Parameter] = {}
    for name, value in given.items():
        if type(value) not in KINDS:
            raise InvalidRequest(f"parameter '{printable(name)}' must be text, a number or a bool")
        if name.startswith(PREFIX):
            if type(value) is not str:
                raise InvalidRequest(f"parameter '{printable(name)}' must be base64 text")
            try:
                value = b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise InvalidRequest(f"parameter '{printable(name)}' is not base64") from None
        found[name] = value
    return found


def caller_of(request: Request) -> Caller:
    """Who sends a request."""
    host = request.client.host if request.client is not None else ""
    return Caller.of(host, request.headers.items())
