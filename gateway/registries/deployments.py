"""Deployments as a registry: models that were created over the admin API, each by a URI.

One document each in the state directory; it is written when a change has proved good, so a
gateway that is killed serves what it did before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import Origin
from gateway.artifacts.origins import origin_of
from gateway.errors import ConfigError, FetchError, RegistryError, SluiceError, printable
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredModel, AspiredVersion, Snapshot
from gateway.registries.choice import loading_key, stand_ins, wanted_versions
from gateway.registries.deployment_documents import Deployment, Version, of_text, to_text
from gateway.registries.traffic import Traffic, traffic_tree
from gateway.state import StateDir
from gateway.telemetry.logs import log
from gateway.uris import public

FOLDER: Final = "deployments"
FILE: Final = "file://"

MLFLOW: Final = "mlflow+"

MODEL_FILES: Final = (".onnx", ".pt", ".pth", ".pt2", ".py")
"""Endings by which a URI of a store names one file, and no folder."""

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
        return sorted(self._documents.copy())

    def get(self, name: str) -> Deployment | None:
        """One deployment, as it was stored last."""
        return self._documents.get(name)

    def scan(self) -> Snapshot:
        """See `Registry.scan`; from memory."""
        # Copied in one step, as other threads store and delete.
        nothing: frozenset[str] = frozenset()
        found = {name: (each, nothing) for name, each in self._documents.copy().items()}
        found.update(self._trials.copy())
        return {name: self._aspired(*found[name]) for name in sorted(found)}

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
                source = deployment.versions[version].source
                errors.append(f"version {version}: {without_uri(str(error), source)}")
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
            version: name
            for version, each in deployment.versions.items()
            if (name := single_file(each.source))
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
        return AspiredVersion(version, Path(), key, public(each.source), origin)

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

    def write_traffic(self, model: str, traffic: Traffic) -> Traffic:
        """See `Registry.write_traffic`."""
        deployment = self._documents.get(model)
        if deployment is None:
            raise RegistryError(f"there is no deployment '{model}'")
        try:
            self.put(msgspec.structs.replace(deployment, traffic=traffic_tree(traffic)))
        except SluiceError as error:
            raise RegistryError(str(error)) from None
        return traffic


def single_file(source: str) -> str:
    """The name of the one file that a pinned URI names; empty for folders and archives, and where
    nobody can tell before it is fetched."""
    if source.startswith(FILE):
        here = Path(source.removeprefix(FILE))
        return here.name if here.is_file() else ""
    scheme, path = source.partition(":")[0], urlsplit(source).path
    if scheme in ("http", "https"):
        name = unquote(path).rpartition("/")[2]
    elif path.endswith(MODEL_FILES) and (scheme != "hf" or path.strip("/").count("/")):
        name = path.rpartition("/")[2]
    else:
        name = ""
    return "" if is_archive(name) else name


def without_uri(text: str, uri: str) -> str:
    """What went wrong with a URI, without what is secret in it."""
    for raw in (uri, printable(uri), printable(uri, 200)):
        text = text.replace(raw, printable(public(uri), 200))
    return text
