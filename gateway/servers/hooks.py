"""``/hooks/...``: other systems tell that something has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.registries.mlflow.webhook import check
from gateway.servers.http_app import answer, read_body

MLFLOW: Final = "/hooks/mlflow"
MAX_BODY: Final = 1024 * 1024


class Hooks:
    """`mlflow` is called on the event loop when a genuine webhook of MLflow's has come."""

    def __init__(self, secret: str, mlflow: Callable[[], object]) -> None:
        self._secret = secret
        self._mlflow = mlflow

    def routes(self) -> list[BaseRoute]:
        return [Route(MLFLOW, self.from_mlflow, methods=["POST"])]

    async def from_mlflow(self, request: Request) -> Response:
        """What it says is not believed: it only makes us look."""
        if not self._secret:
            check(request.headers, b"", "", 0.0)
        body = await read_body(request, MAX_BODY)
        check(request.headers, body, self._secret, time.time())
        self._mlflow()
        return answer({"status": "looking"}, 202)
