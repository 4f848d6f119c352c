"""The control API, ``/admin/v1``: what is served, and how the traffic is split.

Loopback peers may use it; others need the token of ``admin.token``, and with a token set
everybody does.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.codecs.json_data import parse_json
from gateway.codecs.oip_rest import refuse_unknown
from gateway.config import Config
from gateway.errors import InvalidRequest, ModelNotReady, NotAllowed, UnknownModel, UnknownVersion
from gateway.facts import Facts
from gateway.lifecycle.manager import Manager
from gateway.registries.base import Registry
from gateway.registries.traffic import Traffic, parse_traffic
from gateway.servers.http_app import answer, read_body

MAX_BODY = 1024 * 1024


class Admin:
    """Handlers of the control API."""

    def __init__(
        self,
        config: Config,
        facts: Facts,
        manager: Manager,
        registry_of: Callable[[str], Registry],
        status: Callable[[], dict[str, Any]],
        rescan: Callable[[Registry], Awaitable[None]],
    ) -> None:
        self._config = config
        self._facts = facts
        self._manager = manager
        self._registry_of = registry_of
        self._status = status
        self._rescan = rescan
        self._locks: dict[str, asyncio.Lock] = {}

    def routes(self) -> list[BaseRoute]:
        base = "/admin/v1"
        model = base + "/models/{model}"
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", base + "/status", self.status),
            ("GET", base + "/models", self.models),
            ("GET", model, self.model),
            ("PUT", model + "/split", self.split),
            ("POST", model + "/promote", self.promote),
            ("PUT", model + "/labels", self.labels),
        ]
        return [Route(path, self._guarded(handler), methods=[m]) for m, path, handler in table]

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            check_caller(request, self._config.admin.token)
            return await handler(request)

        return guarded

    async def status(self, request: Request) -> Response:
        return answer(self._status())

    async def models(self, request: Request) -> Response:
        return answer({"models": [self._facts.status(name) for name in self._facts.names()]})

    async def model(self, request: Request) -> Response:
        return answer(self._facts.status(request.path_params["model"]))

    async def split(self, request: Request) -> Response:
        """Body: ``{"weights": {"1": 90, "2": 10}, "stable": "1", "sticky": {...}}``."""
        name = request.path_params["model"]
        tree = await self._body(request, "weights", "stable", "sticky")
        weights = tree.get("weights")
        if type(weights) is not dict or not weights:
            raise InvalidRequest('the body needs \'weights\', such as {"1": 90, "2": 10}')
        asked = parse_traffic(tree, "the request")
        for version in (*asked.weights, *([asked.stable] if asked.stable is not None else [])):
            self._check_version(name, version)

        def change(old: Traffic) -> Traffic:
            stable = asked.stable
            if stable is None and old.stable in asked.weights:
                stable = old.stable
            return msgspec.structs.replace(
                old, weights=asked.weights, stable=stable, sticky=asked.sticky or old.sticky
            )

        return await self._change(name, change)

    async def promote(self, request: Request) -> Response:
        """Body: ``{"version": "2"}``, a version or a label: it gets all traffic and is stable."""
        name = request.path_params["model"]
        tree = await self._body(request, "version")
        version = str(tree.get("version") or "")
        if not version:
            raise InvalidRequest('the body needs \'version\', such as {"version": "2"}')
        labels = self._facts.status(name)["labels"]
        version = labels.get(version, version)
        self._check_version(name, version)
        if not any(r.version == version and r.state == "ready" for r in self._records(name)):
            raise ModelNotReady(
                f"version {version} of '{name}' is not ready; promote it when `sluice models` "
                "shows it ready"
            )
        return await self._change(
            name, lambda old: msgspec.structs.replace(old, weights={version: 100.0}, stable=version)
        )

    async def labels(self, request: Request) -> Response:
        """Body: ``{"labels": {"blue": "2"}}``; replaces the labels that were set this way."""
        name = request.path_params["model"]
        tree = await self._body(request, "labels")
        if type(tree.get("labels")) is not dict:
            raise InvalidRequest('the body needs \'labels\', such as {"blue": "2"}')
        labels = parse_traffic(tree, "the request").labels
        for label, version in labels.items():
            self._check_version(name, version)
            if label.isdigit() or not label:
                raise InvalidRequest(f"label '{label}' looks like a version; use a word")
        return await self._change(name, lambda old: msgspec.structs.replace(old, labels=labels))

    def _records(self, name: str) -> list[Any]:
        return self._facts.managed(name).records

    def _check_version(self, name: str, version: str) -> None:
        model = self._facts.managed(name)
        known = tuple(model.aspired.on_disk)
        if version not in known:
            raise UnknownVersion(name, version, known)

    async def _body(self, request: Request, *keys: str) -> dict[str, Any]:
        self._facts.managed(request.path_params["model"])
        body = await read_body(request, MAX_BODY)
        tree = parse_json(body, self._config.limits.max_json_depth)
        refuse_unknown(tree, frozenset(keys), "the request")
        return tree

    async def _change(self, name: str, change: Callable[[Traffic], Traffic]) -> Response:
        """Stores new traffic in the registry, then lets it take effect; one at a time a model."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            traffic = change(self._facts.managed(name).traffic)
            try:
                registry = self._registry_of(name)
            except KeyError:  # gone from its registry, and still draining
                raise UnknownModel(name) from None
            await asyncio.to_thread(registry.write_traffic, name, traffic)
            self._manager.set_traffic(name, traffic)
            if not self._config.registry.watch:
                # Nobody else would notice that a version is named now that is not loaded.
                await self._rescan(registry)
        return answer(self._facts.status(name))


def check_caller(request: Request, token: str) -> None:
    """Raises `NotAllowed` unless the caller has the token, or is on loopback where none is set."""
    if token:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise NotAllowed("the admin API needs the header 'Authorization: Bearer <admin.token>'")
        return
    if not is_this_machine(request.client.host if request.client is not None else ""):
        raise NotAllowed("the admin API answers loopback peers only; set admin.token to open it")
    if request.headers.get("x-forwarded-for") or request.headers.get("forwarded"):
        raise NotAllowed("the admin API is not for forwarded requests; set admin.token to open it")
    # A browser on this machine is a loopback peer too, whatever page it shows: neither a page of
    # somebody else's nor a name that was made to lead here may use it.
    for name, start in (("host", "//"), ("origin", "")):
        value = request.headers.get(name)
        if value and not is_this_machine(host_of(start + value)):
            raise NotAllowed(
                "the admin API is not for other hosts or their pages; set admin.token to open it"
            )


def host_of(url: str) -> str:
    """The host in a URL; empty for what is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is one of loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
