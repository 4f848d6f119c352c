"""What the URI of a deployment means: resolved once, when it is created, and pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.artifacts.origins import local_path, origin_of
from gateway.errors import InvalidRequest, NotAllowed, printable
from gateway.registries.deployments import FILE

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
        return resolve(uri)
    if "://" in uri and scheme != "file":
        origin_of(uri)  # what cannot be one is said here
        return uri
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
