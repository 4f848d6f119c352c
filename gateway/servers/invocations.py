"""What ``mlflow models serve`` answers: ``/invocations``, ``/ping``, ``/health``, ``/version``.

That server has one model and this one has many: ``/invocations`` asks the only one there is, or
the one that the header ``x-sluice-model`` names; ``/models/<model>/invocations`` always works.
Inference itself is answered in `gateway.servers.invocations_call`.
"""

from __future__ import annotations

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.servers.http_state import HttpState

SPOKEN: Final = "3.17.2"
"""The MLflow whose scoring protocol this is; clients read it from ``/version``."""
_JSON: Final = "application/json"


class Invocations:
    """The routes, over what all HTTP connections share."""

    def __init__(self, shared: HttpState) -> None:
        self._shared = shared

    def routes(self) -> list[BaseRoute]:
        model = "/models/{model}"
        return [
            # Answered before it gets here; the routes are for those who GET it.
            Route("/invocations", self.no_inference, methods=["POST"]),
            Route(model + "/invocations", self.no_inference, methods=["POST"]),
            Route(model + "/versions/{version}/invocations", self.no_inference, methods=["POST"]),
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

    async def no_inference(self, request: Request) -> Response:
        raise HTTPException(404)
