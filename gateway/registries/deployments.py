"""Deployments as a registry: models that were created over the admin API, each by a URI.

One document each in the state directory; it is written when a change has proved good, so a
gateway that is killed serves what it did before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from gateway.artifacts.base import Origin
from gateway.artifacts.origins import origin_of
from gateway.errors import ConfigError, FetchError, RegistryError, SluiceError
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredModel, AspiredVersion, Snapshot
from gateway.registries.choice import loading_key, stand_ins, wanted_versions
from gateway.registries.deployment_documents import Deployment, Version, of_text, to_text
from gateway.registries.traffic import Traffic, traffic_tree
from gateway.state import StateDir
from gateway.telemetry.logs import log

FOLDER: Final = "deployments"
FILE: Final = "file://"

MLFLOW: Final = "mlflow+"

OriginOf = Callable[[str, float], Origin]
"""From a pinned URI in MLflow, and when it was pinned, to its files. Raises `FetchError`."""


class DeploymentsRegistry:
    """See `Registry`. `scan` and `write_traffic` are for any thread, one at a time."""

    source = "deployments"
    trouble = ""

    def __init__(self, state: StateDir, in_mlflow: OriginOf) -> None:
        self._state = state
        self._in_mlflow = in_mlflow
        self._documents = self._read()
        self._trials: dict[str, tuple[Deployment, frozenset[str]]] = {}
        self._pinned: dict[str, frozenset[str]] = {}
        self._hint = asyncio.Event()

    def _read(self) -> dict[str, Deployment]:
        found: dict[str, Deployment] = {}
        try:
            files = sorted((self._state.path / FOLDER).glob("*.yaml"))
        except OSError:
            files = []
        for file in files:
            content = self._state.read(FOLDER, file.name)
            if file.name.startswith(".") or content is None:
                continue
            try:
                deployment = of_text(content, f"deployment '{file.stem}'")
            except RegistryError as error:
                log.error("%s; it is left out", error)
                continue
            found[deployment.name] = deployment
        return found

    # --- reading

    def names(self) -> list[str]:
        """Every deployment."""
        return sorted(self._documents)

    def get(self, name: str) -> Deployment | None:
        """One deployment, as it was stored last."""
        return self._documents.get(name)

    def scan(self) -> Snapshot:
        """See `Registry.scan`; from memory."""
        snapshot: dict[str, AspiredModel] = {}
        for name in sorted({*self._documents, *self._trials}):
            trial = self._trials.get(name)
            if trial is not None:
                snapshot[name] = self._aspired(*trial)
            else:
                snapshot[name] = self._aspired(self._documents[name], frozenset())
        return snapshot

    def _aspired(self, deployment: Deployment, tried: frozenset[str]) -> AspiredModel:
        name = deployment.name
        traffic = deployment.split()
        settings = self._settings(deployment)
        pinned = self._pinned.get(name, frozenset()) | tried
        wanted = wanted_versions(deployment.versions, settings, traffic, pinned)
        spare = stand_ins(deployment.versions, wanted, settings.versions)
        found: dict[str, AspiredVersion] = {}
        errors: list[str] = []
        for version in (*wanted, *spare):
            try:
                found[version] = self._version(version, deployment.versions[version], settings)
            except FetchError as error:
                errors.append(f"version {version}: {error}")
        return AspiredModel(
            name,
            {v: found[v] for v in wanted if v in found},
            settings,
            traffic,
            tuple(deployment.versions),
            "; ".join(errors),
            {v: found[v] for v in spare if v in found},
        )

    def _settings(self, deployment: Deployment) -> ModelSettings:
        """The settings, with the file of each version that is a single one."""
        settings = deployment.model_settings()
        files = {
            version: path.name
            for version, each in deployment.versions.items()
            if each.source.startswith(FILE)
            and (path := Path(each.source.removeprefix(FILE))).is_file()
        }
        if not files:
            return settings
        return msgspec.structs.replace(settings, version_files={**files, **settings.version_files})

    def _version(self, version: str, each: Version, settings: ModelSettings) -> AspiredVersion:
        key = (loading_key(settings), each.source, each.created)
        if each.source.startswith(FILE):
            path = Path(each.source.removeprefix(FILE))
            if path.is_file():
                path = path.parent
            return AspiredVersion(version, path, key, each.source)
        if each.source.startswith(MLFLOW):
            origin = self._in_mlflow(each.source, each.created)
        else:
            origin = origin_of(each.source, folder=version)
        return AspiredVersion(version, Path(), key, each.source, origin)

    async def watch(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """See `Registry.watch`. Nothing changes but by us."""
        while True:
            await self._hint.wait()
            self._hint.clear()
            await changed(self.scan())

    def hint(self) -> None:
        """See `Registry.hint`."""
        self._hint.set()

    def pin(self, model: str, versions: frozenset[str]) -> None:
        """See `Registry.pin`."""
        if versions:
            self._pinned[model] = versions
        else:
            self._pinned.pop(model, None)

    # --- writing

    def try_out(self, deployment: Deployment, versions: frozenset[str]) -> None:
        """From now on snapshots hold this one, with all of `versions`, and nothing is stored."""
        self._trials[deployment.name] = (deployment, versions)

    def end_trial(self, name: str) -> None:
        """Snapshots hold again what is stored."""
        self._trials.pop(name, None)

    def put(self, deployment: Deployment) -> None:
        """Stores a deployment. Blocking; raises `RegistryError`."""
        try:
            self._state.write(to_text(deployment), FOLDER, f"{deployment.name}.yaml")
        except ConfigError as error:
            raise RegistryError(str(error)) from None
        self._documents[deployment.name] = deployment

    def delete(self, name: str) -> None:
        """Forgets a deployment. Blocking; raises `RegistryError`."""
        try:
            self._state.delete(FOLDER, f"{name}.yaml")
        except OSError as error:
            raise RegistryError(f"cannot delete deployment '{name}': {error.strerror}") from None
        self._documents.pop(name, None)
        self._pinned.pop(name, None)

    def write_traffic(self, model: str, traffic: Traffic) -> None:
        """See `Registry.write_traffic`."""
        deployment = self._documents.get(model)
        if deployment is None:
            raise RegistryError(f"there is no deployment '{model}'")
        try:
            self.put(msgspec.structs.replace(deployment, traffic=traffic_tree(traffic)))
        except SluiceError as error:
            raise RegistryError(str(error)) from None
