"""The control API, ``/admin/v1``: what is served, how the traffic is split, what is loaded.

Loopback peers may use it; others need the token of ``admin.token``, and with a token set
everybody does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.codecs.json_data import parse_json
from gateway.codecs.oip_rest import refuse_unknown
from gateway.config import Config
from gateway.control import callers
from gateway.control.changes import Changes, message_of
from gateway.errors import InvalidRequest
from gateway.facts import Facts
from gateway.registries.traffic import parse_traffic
from gateway.servers.http_app import answer, read_body
from gateway.servers.piecewise import answer_list
from gateway.servers.repository import caller_of

MAX_BODY = 1024 * 1024


class Admin:
    """Handlers of the control API."""

    def __init__(
        self,
        config: Config,
        facts: Facts,
        changes: Changes,
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._config = config
        self._facts = facts
        self._changes = changes
        self._status = status

    def routes(self) -> list[BaseRoute]:
        base = "/admin/v1"
        model = base + "/models/{model}"
        version = model + "/versions/{version}"
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", base + "/status", self.status),
            ("GET", base + "/models", self.models),
            ("GET", model, self.model),
            ("PUT", model + "/split", self.split),
            ("POST", model + "/promote", self.promote),
            ("PUT", model + "/labels", self.labels),
            ("PATCH", model + "/labels", self.some_labels),
            ("POST", model + "/rollback", self.rollback),
            ("POST", model + "/pause", self.pause),
            ("POST", model + "/resume", self.resume),
            ("POST", model + "/load", self.load),
            ("POST", model + "/unload", self.unload),
            ("GET", version + "/log", self.load_log),
            ("POST", version + "/load", self.load),
            ("POST", version + "/unload", self.unload),
        ]
        return [Route(path, self._guarded(handler), methods=[m]) for m, path, handler in table]

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            check_caller(request, self._config.admin.token)
            return await handler(request)

        return guarded

    # --- questions

    async def status(self, request: Request) -> Response:
        return answer(self._status())

    async def models(self, request: Request) -> Response:
        return await answer_list("models", self._facts.statuses())

    async def model(self, request: Request) -> Response:
        return answer(self._facts.status(request.path_params["model"]))

    async def load_log(self, request: Request) -> Response:
        """What happened in the last loads of a version."""
        model, version = request.path_params["model"], request.path_params["version"]
        text = self._facts.load_log(model, version)
        return answer({"model": model, "version": version, "log": text})

    # --- changes: each takes `message` in its body, why it is made

    async def split(self, request: Request) -> Response:
        """Body: ``{"weights": {"1": 90, "2": 10}, "stable": "1", "sticky": {...}}``."""
        name, tree, who, message = await self._asked(request, "weights", "stable", "sticky")
        weights = tree.get("weights")
        if type(weights) is not dict or not weights:
            raise InvalidRequest('the body needs \'weights\', such as {"1": 90, "2": 10}')
        await self._changes.split(name, parse_traffic(tree, "the request"), who, message)
        return self._now(name)

    async def promote(self, request: Request) -> Response:
        """Body: ``{"version": "2"}``, a version or a label: it gets all traffic and is stable."""
        name, tree, who, message = await self._asked(request, "version")
        version = str(tree.get("version") or "")
        if not version:
            raise InvalidRequest('the body needs \'version\', such as {"version": "2"}')
        await self._changes.promote(name, version, who, message)
        return self._now(name)

    async def labels(self, request: Request) -> Response:
        """Body: ``{"labels": {"blue": "2"}}``; replaces the labels that were set this way."""
        name, tree, who, message = await self._asked(request, "labels")
        if type(tree.get("labels")) is not dict:
            raise InvalidRequest('the body needs \'labels\', such as {"blue": "2"}')
        labels = parse_traffic(tree, "the request").labels
        await self._changes.labels(name, lambda old: labels, who, message)
        return self._now(name)

    async def some_labels(self, request: Request) -> Response:
        """Body: ``{"labels": {"blue": "2", "green": null}}``; others stay, null takes one away."""
        name, tree, who, message = await self._asked(request, "labels")
        given = tree.get("labels")
        if type(given) is not dict or not given:
            raise InvalidRequest('the body needs \'labels\', such as {"blue": "2"}')
        away = [label for label, version in given.items() if version is None]
        kept = {label: version for label, version in given.items() if version is not None}
        new = parse_traffic({"labels": kept}, "the request").labels

        def change(old: Any) -> dict[str, str]:
            for label in away:
                if label not in old:
                    raise InvalidRequest(
                        f"'{name}' has no label '{label}' that was set this way; it has: "
                        f"{', '.join(old) or 'none'}"
                    )
            return {k: v for k, v in {**old, **new}.items() if k not in away}

        await self._changes.labels(name, change, who, message)
        return self._now(name)

    async def rollback(self, request: Request) -> Response:
        """Body: ``{}``, or ``{"to": 17}``: as it was after entry 17 of the history."""
        name, tree, who, message = await self._asked(request, "to")
        to = tree.get("to")
        if to is not None and type(to) is not int:
            raise InvalidRequest("'to' must be the number of an entry of the history")
        await self._changes.rollback(name, to, who, message)
        return self._now(name)

    async def pause(self, request: Request) -> Response:
        name, _, who, message = await self._asked(request)
        await self._changes.pause(name, who, message)
        return self._now(name)

    async def resume(self, request: Request) -> Response:
        name, _, who, message = await self._asked(request)
        await self._changes.resume(name, who, message)
        return self._now(name)

    async def load(self, request: Request) -> Response:
        """Answers when the model, or its version, is ready."""
        name, _, who, message = await self._asked(request, known=False)
        await self._changes.load(name, request.path_params.get("version", ""), who, message)
        return self._now(name)

    async def unload(self, request: Request) -> Response:
        """Answers when the model, or its version, is out of the routes."""
        name, _, who, message = await self._asked(request)
        await self._changes.unload(name, request.path_params.get("version", ""), who, message)
        return self._now(name)

    # --- parts

    async def _asked(
        self, request: Request, *keys: str, known: bool = True
    ) -> tuple[str, dict[str, Any], str, str]:
        """Model, body without its message, who asks, and the message."""
        name = request.path_params["model"]
        if known:
            self._facts.managed(name)
        body = await read_body(request, MAX_BODY)
        tree = parse_json(body, self._config.limits.max_json_depth) if body.strip() else {}
        refuse_unknown(tree, frozenset((*keys, "message")), "the request")
        message = message_of(tree.pop("message", None))
        return name, tree, caller_of(request).who, message

    def _now(self, name: str) -> Response:
        if name not in self._facts.names():  # it was there by the files of a load alone
            return answer({"name": name, "state": "unloaded"})
        return answer(self._facts.status(name))


def check_caller(request: Request, token: str) -> None:
    """Raises `NotAllowed` unless the caller has the token, or is on loopback where none is set."""
    callers.check_caller(caller_of(request), token, what="the admin API", key="admin.token")
