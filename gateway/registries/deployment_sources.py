"""What the URI of a deployment means: resolved once, when it is created, and pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httpx

from gateway.artifacts.origins import local_path, origin_of
from gateway.errors import FetchError, InvalidRequest, NotAllowed, printable
from gateway.registries.deployments import FILE, without_uri
from gateway.uris import has_dots, public

KNOWN: Final = (
    "models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN/PATH, s3://, gs://, az://, hf://, "
    "http(s)://, oci://, or a path"
)
MLFLOW: Final = ("models", "runs")

Resolve = Callable[[str], str]
"""From ``models:/`` or ``runs:/`` to a URI that means the same for good; blocking."""


def pinned(uri: str, resolve: Resolve, *, local: bool) -> str:
    """The URI that means from now on what `uri` means now; blocking.

    `local` says that the caller may name files of this machine. Raises `InvalidRequest`,
    `NotAllowed`, `FetchError` or `RegistryError`.
    """
    uri = uri.strip()
    scheme, separator, rest = uri.partition(":")
    if not uri or (separator and not rest.strip("/")):
        raise InvalidRequest(f"'uri' names no model; give {KNOWN}")
    if separator and scheme in MLFLOW:
        check_dots(uri)
        return resolve(uri)
    if "://" in uri and scheme != "file":
        check_dots(uri)
        try:
            origin_of(uri)
        except FetchError as error:
            if isinstance(error.__context__, ImportError):
                raise  # an extra is missing here, and the URI may be right
            raise InvalidRequest(without_uri(str(error), uri)) from None
        return str(httpx.URL(uri)) if scheme in ("http", "https") else uri
    if not local:
        raise NotAllowed(
            f"'{printable(uri)}' is a path of the gateway's machine, which only callers on it may "
            f"give; use {KNOWN.rpartition(',')[0]}"
        )
    if not uri.startswith(("/", "file:///")):
        raise InvalidRequest(f"'{printable(uri)}' is no whole path; give /PATH, or {KNOWN}")
    path = local_path(uri)
    if not path.exists():
        raise InvalidRequest(f"'{printable(uri)}' does not exist on the gateway's machine")
    return FILE + str(path)


def check_dots(uri: str) -> None:
    """Raises `InvalidRequest` for a URI that names something else than it says."""
    if has_dots(uri):
        raise InvalidRequest(
            f"'{printable(public(uri), 200)}' holds '.' or '..'; give the URI that it means"
        )
