"""``models:/`` and ``runs:/`` URIs of deployments, in the registry that this gateway knows.

That is the first MLflow registry among its sources, else the one that MLflow's own environment
variables name.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from gateway.artifacts.mlflow import Entry, MlflowOrigin
from gateway.config import Config
from gateway.errors import FetchError, InvalidRequest, NotFound, RegistryError, printable
from gateway.registries.mlflow.uri import Place, parse_place, parse_source

if TYPE_CHECKING:
    from gateway.registries.mlflow.client import Client

HOW: Final = (
    "write models:/NAME/VERSION, models:/NAME@ALIAS, models:/NAME/latest, models:/m-ID or "
    "runs:/RUN/PATH"
)

_MODEL: Final = re.compile(r"models:/+([^/@:]+)(?:/([0-9]+|latest)|@([^/@:]+))")
_LOGGED: Final = re.compile(r"models:/+(m-[0-9a-f]{32})")
_RUN: Final = re.compile(r"runs:/+([0-9A-Za-z_-]+)/(.+)")
_PINNED: Final = re.compile(r"(mlflow\+.+?)/((?:models|runs):/.+)")


class At:
    """A registry's server, in which the version asked for is what a URI names."""

    def __init__(self, client: Client, uri: str) -> None:
        self._client = client
        self._uri = uri

    def artifact_uri(self, name: str, version: str) -> str:
        """See `gateway.artifacts.mlflow.Server`; no version stands for our URI."""
        return self._client.artifact_uri(name, version) if version else self._uri

    def logged_model_uri(self, model_id: str) -> str:
        return self._client.logged_model_uri(model_id)

    def run_uri(self, run_id: str) -> str:
        return self._client.run_uri(run_id)

    def entries(self, path: str) -> Sequence[Entry]:
        return self._client.entries(path)

    def content(self, path: str, start: int) -> Iterator[bytes]:
        return self._client.content(path, start)

    def serves(self, host: str) -> bool:
        return self._client.serves(host)


class MlflowUris:
    """For threads; asks the registry."""

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ) -> None:
        self._sources = [s for s in config.sources if s.startswith("mlflow")]
        self._local = config.mlflow.local_artifacts
        self._environment = environment
        self._clients: dict[str, Client] = {}
        self._lock = threading.Lock()

    def resolve(self, uri: str) -> str:
        """The URI that means the same for good: the registry, then version, logged model or run.

        Raises `InvalidRequest`, `NotFound`, `RegistryError`.
        """
        place = self._place()
        if _LOGGED.fullmatch(uri) or _RUN.fullmatch(uri):
            scheme, _, rest = uri.partition(":")
            return f"{place.name}/{scheme}:/{rest.strip('/')}"
        match = _MODEL.fullmatch(uri)
        if match is None:
            raise InvalidRequest(f"'{printable(uri)}' names no version in MLflow; {HOW}")
        name, version, alias = match.groups()
        client = self._client(place)
        if alias is not None:
            version = self._of_alias(client, name, alias)
        versions = {each.version: each for each in client.versions(name)}
        if version == "latest" and versions:
            version = max(versions, key=int)
        if version not in versions:
            has = ", ".join(sorted(versions, key=int)) or "none, or there is no such model"
            raise NotFound(f"'{printable(uri)}' is not in {place.name}; it has: {has}")
        return f"{place.name}/models:/{name}/{version}"

    def _of_alias(self, client: Client, name: str, alias: str) -> str:
        registered = client.registered(name)
        aliases = registered.by_alias if registered is not None else {}
        if alias not in aliases:
            has = ", ".join(sorted(aliases)) or "none"
            raise NotFound(
                f"registered model '{printable(name)}' has no alias '{printable(alias)}'; it has: "
                f"{has}"
            )
        return aliases[alias]

    def origin(self, source: str, created: float) -> MlflowOrigin:
        """Where the files of a URI from `resolve` are; asks nobody. Raises `FetchError`."""
        from gateway.registries.mlflow.opening import rules

        match = _PINNED.fullmatch(source)
        assert match is not None
        name, uri = match.groups()
        try:
            place = self._place(name)
            client = self._client(place)
        except RegistryError as error:
            raise FetchError(str(error)) from None
        version = _MODEL.fullmatch(uri)
        logged = _LOGGED.fullmatch(uri)
        if version is not None:
            model, number = version[1], version[2]
            server: Client | At = client
        else:
            model, number = uri.partition(":/")[2], ""
            server = At(client, uri)
        return MlflowOrigin(
            place.name,
            uri,
            logged[1] if logged else str(created),
            model,
            number,
            server,
            rules(place, self._local),
        )

    # --- the registry

    def _place(self, name: str = "") -> Place:
        """The registry of that name; without one, the one that this gateway knows."""
        places = [parse_source(source, self._environment).place for source in self._sources]
        if name:
            found = next((place for place in places if place.name == name), None)
            if found is not None:
                return found
        if not name and places:
            return places[0]
        try:
            own = parse_source("mlflow://", self._environment).place
        except RegistryError:
            own = None
        if own is not None and name in ("", own.name):
            return own
        if name.startswith("mlflow+http"):
            return parse_place(name.removeprefix("mlflow+"), name)
        raise RegistryError(
            f"this gateway knows no MLflow registry{f' {name}' if name else ''}; start it with "
            "MLFLOW_TRACKING_URI in its environment, or with mlflow+http://HOST:PORT as a source"
        )

    def _client(self, place: Place) -> Client:
        from gateway.registries.mlflow.opening import open_client

        with self._lock:
            client = self._clients.get(place.name)
            if client is None:
                client = self._clients[place.name] = open_client(place)
            return client
