"""``/admin/v1/deployments``: models by URI, for MLflow's plugin and whoever else deploys.

Guarded as the admin API is. Paths of this machine are for callers on this machine alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.codecs.json_data import parse_json
from gateway.config import Config
from gateway.control.callers import Caller, check_caller
from gateway.control.deploying import Deploying
from gateway.registries.deployment_documents import Asked, asked
from gateway.servers.http_app import answer, read_body
from gateway.servers.repository import caller_of

BASE: Final = "/admin/v1/deployments"
MAX_BODY: Final = 1024 * 1024


class Deployments:
    """The routes."""

    def __init__(self, config: Config, deploying: Deploying) -> None:
        self._config = config
        self._deploying = deploying

    def routes(self) -> list[BaseRoute]:
        one = BASE + "/{name}"
        table: list[tuple[str, str, Callable[[Request, Caller], Awaitable[Response]]]] = [
            ("GET", BASE, self.listed),
            ("POST", BASE, self.create),
            ("GET", one, self.described),
            ("PUT", one, self.update),
            ("DELETE", one, self.delete),
        ]
        return [Route(path, self._guarded(handler), methods=[m]) for m, path, handler in table]

    def _guarded(
        self, handler: Callable[[Request, Caller], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            caller = caller_of(request)
            check_caller(caller, self._config.admin.token, what="the admin API", key="admin.token")
            return await handler(request, caller)

        return guarded

    async def listed(self, request: Request, caller: Caller) -> Response:
        names = self._deploying.names()
        return answer({"deployments": [self._deploying.describe(name) for name in names]})

    async def described(self, request: Request, caller: Caller) -> Response:
        return answer(self._deploying.describe(request.path_params["name"]))

    async def create(self, request: Request, caller: Caller) -> Response:
        """Body: ``{"name": "iris", "uri": "models:/iris/1", "settings": {}, "traffic": {}}``."""
        wanted = await self._body(request)
        made = await self._deploying.create(wanted, caller.who, local=caller.local)
        return answer(made)

    async def update(self, request: Request, caller: Caller) -> Response:
        """Body: as for `create`; what is left out stays as it is."""
        wanted = await self._body(request)
        name = request.path_params["name"]
        made = await self._deploying.update(name, wanted, caller.who, local=caller.local)
        return answer(made)

    async def delete(self, request: Request, caller: Caller) -> Response:
        name = request.path_params["name"]
        message = request.query_params.get("message", "")
        await self._deploying.delete(name, caller.who, message)
        return answer({"name": name})

    async def _body(self, request: Request) -> Asked:
        body = await read_body(request, MAX_BODY)
        tree: dict[str, Any] = parse_json(body, self._config.limits.max_json_depth)
        return asked(tree)
