"""What ``mlflow+http://...``, ``mlflow://`` and ``models:/...`` name: pure."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from gateway.errors import RegistryError, printable

EXAMPLES: Final = "mlflow+http://HOST:PORT or mlflow+sqlite:///PATH.db"
DATABASES: Final = ("sqlite", "postgresql", "mysql", "mssql")

_MODEL: Final = re.compile(r"models:/([^/@:]+)(?:/([^/@:]+)|@([^/@:]+))")


@dataclass(frozen=True)
class Place:
    """Where a registry is."""

    kind: Literal["http", "sql"]
    url: str
    """``http://HOST:PORT/PREFIX`` without a slash at the end, or SQLAlchemy's URL."""

    @property
    def name(self) -> str:
        """As sources have it: scheme, host, port and path or database, and nothing secret."""
        return "mlflow+" + bare(self.url)

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        if self.kind != "sql" or not self.url.startswith("sqlite:///"):
            return None
        return Path(self.url.removeprefix("sqlite:///").partition("?")[0]).absolute()


@dataclass(frozen=True)
class Source:
    """One source: a registry, or one model in it with one choice of its versions."""

    place: Place
    model: str = ""
    """Empty: all models that the configuration selects."""
    version: str = ""
    """As in ``mlflow.versions``: ``3``, ``@champion`` or ``latest``."""

    @property
    def name(self) -> str:
        """As people know it, and `trust.code` covers it."""
        if not self.model:
            return self.place.name
        mark = "" if self.version.startswith("@") else "/"
        return f"{self.place.name}/models:/{self.model}{mark}{self.version}"


def parse_source(source: str, environment: Mapping[str, str] = os.environ) -> Source:
    """What a source names. Raises `RegistryError`."""
    if source.startswith("models:"):
        match = _MODEL.fullmatch(source)
        if match is None:
            raise RegistryError(
                f"source '{printable(source)}' must be models:/NAME/VERSION, models:/NAME@ALIAS or "
                "models:/NAME/latest"
            )
        model, version, alias = match.groups()
        if alias == "*":
            raise RegistryError(
                f"source '{printable(source)}': '@*' is no one alias; serve the registry with "
                "mlflow.versions: '@*'"
            )
        if version is not None and version != "latest" and not is_version(version):
            raise RegistryError(
                f"source '{printable(source)}': '{version}' is no version; give a number or "
                f"'latest', or an alias as models:/{model}@{version}"
            )
        return Source(_from_environment(source, environment), model, version or f"@{alias}")
    scheme, separator, rest = source.partition("://")
    if separator and scheme == "mlflow":
        if rest.strip("/"):
            where = shown(source).partition("://")[2]
            raise RegistryError(
                f"source '{shown(source)}': say how the registry is reached, "
                f"mlflow+http://{where} or mlflow+https://{where}"
            )
        return Source(_from_environment(source, environment))
    if separator and scheme.startswith("mlflow+"):
        return Source(parse_place(source.removeprefix("mlflow+"), f"source '{shown(source)}'"))
    raise RegistryError(f"source '{shown(source)}' is no MLflow registry; give {EXAMPLES}")


def parse_place(url: str, what: str) -> Place:
    """A registry's URL as MLflow has it; `what` says where it stands. Raises `RegistryError`."""
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.query or parts.fragment:
            raise RegistryError(f"{what} must be http(s)://HOST:PORT, perhaps with a path")
        if parts.username is not None or parts.password is not None:
            raise RegistryError(
                f"{what} holds a user or password, which would be shown; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return Place("http", url.rstrip("/"))
    if scheme.partition("+")[0] in DATABASES:
        place = Place("sql", url)
        if scheme == "sqlite" and (place.file is None or place.file.is_dir()):
            raise RegistryError(f"{what} must name a file: mlflow+sqlite:///mlflow.db")
        return place
    raise RegistryError(
        f"{what}: '{printable(scheme)}' is no registry that can be read; give {EXAMPLES}"
    )


def _from_environment(source: str, environment: Mapping[str, str]) -> Place:
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        if url := environment.get(name, "").strip():
            return parse_place(url, f"source '{source}': {name} '{shown(url)}'")
    raise RegistryError(
        f"source '{printable(source)}' needs MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI in the "
        f"environment; or give {EXAMPLES}"
    )


def is_version(text: str) -> bool:
    """Whether it is a version's number."""
    return re.fullmatch(r"[1-9][0-9]{0,17}", text) is not None


def bare(url: str) -> str:
    """A URL without user, password and query. As SQLAlchemy has it, a password may hold ``?`` and
    ``/``; what may be a part of one is left out."""
    scheme, separator, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if rest.startswith("/"):
        pass  # no host, and no user
    elif "@" in place:
        place = place.rpartition("@")[2]
    elif "@" in query and re.match(r"[^:/]*:[0-9]+/", place):
        place = "…"  # port and database, or the beginning of a password
    elif "@" in query and ":" in place:
        place = rest.partition("@")[2].partition("?")[0]
    return scheme + separator + place


def shown(url: str) -> str:
    """A URL for people, without what may be secret."""
    return printable(bare(url), 200)
