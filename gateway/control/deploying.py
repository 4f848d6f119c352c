"""Deployments: models that are created, changed and deleted over the admin API.

A change is tried out first: what it needs is loaded beside what serves. Only when all of it is
ready is the change stored and traffic moved; where something fails, all is as it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from gateway.control.changes import Changes
from gateway.control.controls import Controls
from gateway.control.documents import Control
from gateway.control.outcome import load_now, wait
from gateway.errors import (
    Conflict,
    InvalidRequest,
    ModelLoadError,
    ModelNotReady,
    NotFound,
    printable,
    without_folders,
)
from gateway.facts import Facts
from gateway.history.base import History
from gateway.lifecycle.manager import Manager
from gateway.registries.base import Registry
from gateway.registries.deployment_documents import (
    Asked,
    Deployment,
    Version,
    check_name,
    new_traffic,
    without_old,
)
from gateway.registries.deployment_sources import Resolve, pinned
from gateway.registries.deployments import FILE, DeploymentsRegistry
from gateway.registries.traffic import Traffic, traffic_tree
from gateway.uris import public

DRAIN_SECONDS: Final = 60.0
"""Longest time for which a deletion waits for requests that are running."""


class Deploying:
    """The service behind the routes of deployments. For the event loop.

    Its methods raise `InvalidRequest`, `InvalidModelSettings`, `Conflict`, `NotFound`,
    `NotAllowed`, `FetchError`, `RegistryError`, `ModelLoadError` and `ModelNotReady`.
    """

    def __init__(
        self,
        registry: DeploymentsRegistry,
        controls: Controls,
        changes: Changes,
        facts: Facts,
        manager: Manager,
        history: History,
        owner_of: Callable[[str], Registry],
        apply: Callable[[], None],
        resolve: Resolve,
        seconds: float,
    ) -> None:
        self._registry = registry
        self._controls = controls
        self._changes = changes
        self._facts = facts
        self._manager = manager
        self._history = history
        self._owner_of = owner_of
        self._apply = apply
        self._resolve = resolve
        self._seconds = seconds
        self.started = False
        """Whether the other sources have said what they have; before that no name is known to be
        free."""

    # --- asking

    def names(self) -> list[str]:
        """Every deployment."""
        return self._registry.names()

    def describe(self, name: str) -> dict[str, Any]:
        """A deployment and its versions."""
        deployment = self._get(name)
        status = self._facts.status(name) if name in self._manager.models else {}
        loaded = {each["version"]: each for each in status.get("versions", ())}
        return {
            "name": name,
            "state": status.get("state", "loading"),
            "flavor": deployment.flavor or loaded.get(deployment.newest, {}).get("runtime", ""),
            "uri": public(deployment.versions[deployment.newest].uri),
            "versions": [
                {
                    "version": version,
                    "uri": public(each.uri),
                    "source": public(each.source),
                    "created": each.created,
                    "state": loaded.get(version, {}).get("state", "known"),
                    "cause": loaded.get(version, {}).get("cause", ""),
                    "share": loaded.get(version, {}).get("share", 0.0),
                }
                for version, each in deployment.versions.items()
            ],
            "settings": deployment.settings,
            "traffic": traffic_tree(deployment.split()),
            "created": deployment.created,
            "updated": deployment.updated,
        }

    # --- changing

    async def create(self, asked: Asked, who: str, *, local: bool) -> dict[str, Any]:
        """A new deployment, with version 1; answers when it is ready."""
        name = check_name(asked.name)
        uri = asked.uri
        if uri is None:
            raise InvalidRequest("the body needs 'uri', such as models:/iris/1")

        self._check_started()

        async def work() -> dict[str, Any]:
            if self._registry.get(name) is not None:
                raise Conflict(f"there is a deployment '{name}' already; update it, or delete it")
            self._check_free(name)
            source = await asyncio.to_thread(pinned, uri, self._resolve, local=local)
            now = time.time()
            versions = {"1": Version(uri=uri, source=source, created=now)}
            traffic = new_traffic(asked.traffic, Traffic(), versions, "1")
            new = Deployment(
                name=name,
                versions=versions,
                settings=asked.settings or {},
                traffic=traffic_tree(traffic),
                flavor=asked.flavor or "",
                created=now,
                updated=now,
            )
            why = asked.message or f"created from {public(uri)}"
            with self._history.because(name, "load", who, why):
                await self._with_control(name, lambda: self._try(None, new))
            return self.describe(name)

        return await self._changes.exclusively(name, work)

    async def update(self, name: str, asked: Asked, who: str, *, local: bool) -> dict[str, Any]:
        """Another version, settings or split; answers when all of it is ready and in effect."""
        if asked.name not in (None, name):
            raise InvalidRequest(
                f"a deployment keeps its name: '{name}' cannot become '{printable(asked.name)}'; "
                "create another one"
            )

        self._check_started()

        async def work() -> dict[str, Any]:
            old = self._get(name)
            versions, number = dict(old.versions), None
            if asked.uri is not None:
                source = await asyncio.to_thread(pinned, asked.uri, self._resolve, local=local)
                number = str(int(old.newest) + 1)
                versions[number] = Version(uri=asked.uri, source=source, created=time.time())
            traffic = new_traffic(asked.traffic, old.split(), versions, number)
            new = msgspec.structs.replace(
                old,
                versions=versions,
                settings=old.settings if asked.settings is None else asked.settings,
                traffic=traffic_tree(traffic),
                flavor=old.flavor if asked.uri is None else asked.flavor or "",
                updated=time.time(),
            )
            what = "updated"
            if asked.uri is not None:
                what = f"version {number} from {public(asked.uri)}"
            action = "load" if number is not None or asked.settings is not None else "split"
            with self._history.because(name, action, who, asked.message or what):
                await self._try(old, new)
            return self.describe(name)

        return await self._changes.exclusively(name, work)

    async def delete(self, name: str, who: str, message: str) -> None:
        """Unloads a deployment and forgets it; what it has begun it finishes."""

        self._check_started()

        async def work() -> None:
            self._get(name)
            with self._history.because(name, "unload", who, message or "deployment deleted"):
                await asyncio.to_thread(self._registry.delete, name)
                await self._put_control(Control(model=name))
                self._apply()
            await wait(lambda: name not in self._manager.models, DRAIN_SECONDS)

        await self._changes.exclusively(name, work)

    # --- parts

    def _check_started(self) -> None:
        if not self.started:
            raise ModelNotReady("the gateway is starting; try again in a moment")

    def _get(self, name: str) -> Deployment:
        deployment = self._registry.get(name)
        if deployment is None:
            known = self._registry.names()
            has = f"; there are: {', '.join(known[:20])}" if known else "; there are none"
            raise NotFound(f"there is no deployment '{printable(name)}'{has}")
        return deployment

    def _check_free(self, name: str) -> None:
        try:
            owner = self._owner_of(name)
        except KeyError:
            return
        if owner is not self._registry:
            raise Conflict(
                f"'{name}' is a model of this gateway already, from {owner.source}; take another "
                "name"
            )

    async def _try(self, old: Deployment | None, new: Deployment) -> None:
        """Loads what `new` needs beside what `old` serves, then puts it in the place of that."""
        name = new.name
        settings = new.model_settings()
        tried = new if old is None else msgspec.structs.replace(new, traffic=old.traffic)
        self._registry.try_out(tried, frozenset({*new.split().named(), new.newest}))
        stored = False
        try:
            self._apply()
            if not settings.on_demand:  # those are loaded by the first request
                await self._settled(name)
            await asyncio.to_thread(self._registry.put, without_old(new))
            stored = True
            self._registry.end_trial(name)
            self._apply()
            self._check_not_refused(new)
        except BaseException:
            self._registry.end_trial(name)
            if stored and old is not None:
                await asyncio.to_thread(self._registry.put, old)
            self._apply()
            raise

    async def _settled(self, name: str) -> None:
        """Waits until every version that is wanted is ready; raises where one is not."""
        why = await load_now(self._manager, name, None, self._seconds)
        if why:
            raise ModelLoadError(f"cannot deploy '{name}': {self._shown(name, why)}")

    def _shown(self, name: str, text: str) -> str:
        """A cause without folders that the caller did not name."""
        managed = self._manager.models.get(name)
        versions = managed.aspired.versions.values() if managed is not None else ()
        if any(each.source.startswith(FILE) for each in versions):
            return text
        return without_folders(text)

    def _check_not_refused(self, new: Deployment) -> None:
        """Raises `Conflict` where a version gets nothing of the split, as its signature differs."""
        managed = self._manager.models.get(new.name)
        refused = managed.refused if managed is not None else {}
        weights = new.split().weights
        why = [f"version {v}: {text}" for v, text in refused.items() if weights.get(v)]
        if why:
            raise Conflict("; ".join(why))

    # --- what was decided by hand

    async def _with_control(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Runs `work` with a model that is to be loaded whatever was decided about its name."""
        before = self._controls.of(name)
        await self._put_control(
            Control(model=name, loaded=None if self._controls.at_once(name) else True)
        )
        try:
            await work()
        except BaseException:
            await self._put_control(before)
            raise

    async def _put_control(self, control: Control) -> None:
        if control != self._controls.of(control.model):
            await asyncio.to_thread(self._controls.documents.write, control)
            self._controls.put(control)
