"""The record of what was served, over the control API."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.config import Config
from gateway.errors import InvalidRequest, NotFound, UnknownModel, printable
from gateway.facts import Facts
from gateway.history.base import History
from gateway.history.documents import change_tree, past_tree
from gateway.history.times import moment
from gateway.servers.admin import check_caller
from gateway.servers.http_app import answer

MOST: Final = 1000
"""Most entries of one answer."""
PARAMETERS: Final = ("limit", "until", "at")


class HistoryApi:
    """Handlers below ``/admin/v1``; guarded like the rest of it."""

    def __init__(self, config: Config, facts: Facts, history: History) -> None:
        self._config = config
        self._facts = facts
        self._history = history

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/admin/v1/history", self.all_models),
            Route("/admin/v1/models/{model}/history", self.one_model),
        ]

    async def all_models(self, request: Request) -> Response:
        """``?limit=&until=`` or ``?at=``: every model, and the gateways' own starts and stops."""
        return answer(await self._asked(request, ""))

    async def one_model(self, request: Request) -> Response:
        """The same of one model, which need not be served any more."""
        model = request.path_params["model"]
        tree = await self._asked(request, model)
        found = tree.get("changes") or tree.get("served") or model in self._facts.names()
        if not found and not await self._history.changes(model, limit=1):
            raise UnknownModel(model)
        return answer({"model": model, **tree})

    async def _asked(self, request: Request, model: str) -> dict[str, Any]:
        check_caller(request, self._config.admin.token)
        if not self._history.enabled:
            raise NotFound("this gateway keeps no history (history.enabled, or see its log)")
        query = request.query_params
        for key in query:
            if key not in PARAMETERS:
                raise InvalidRequest(
                    f"unknown parameter '{printable(key)}'; there are {', '.join(PARAMETERS)}"
                )
        if "at" in query:
            if len(query) > 1:
                raise InvalidRequest("'at' asks for one moment; leave out 'limit' and 'until'")
            return past_tree(await self._history.past(model, moment(query["at"])))
        until = moment(query["until"]) if "until" in query else None
        found = await self._history.changes(model, limit=limit_of(query), until=until)
        return {"changes": [change_tree(change) for change in found]}


def limit_of(query: Any) -> int:
    """The number asked for. Raises `InvalidRequest`."""
    text = query.get("limit", "50")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST):
        raise InvalidRequest(f"'limit' must be a whole number from 1 to {MOST}")
    return int(text)
