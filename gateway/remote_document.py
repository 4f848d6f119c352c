"""Settings of models on other servers: ``remote:`` in ``model.yaml``, or ``remote.yaml``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from gateway.artifacts.addresses import is_metadata_host
from gateway.config import read_yaml
from gateway.errors import ConfigError, InvalidModelSettings, printable
from gateway.known_keys import refuse_unknown_keys
from gateway.model_settings import RemoteSettings

REMOTE_YAML: Final = "remote.yaml"
Scheme = Literal["grpc", "grpcs", "http", "https"]
SCHEMES: Final[tuple[Scheme, ...]] = ("grpc", "grpcs", "http", "https")
REMOTE_RUNTIMES: Final = ("oip", "triton")

_WELL_KNOWN: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]+")
_HEADER: Final = re.compile(r"[a-z0-9_.-]+")
_OURS: Final = frozenset(
    ("connection", "content-encoding", "content-length", "content-type", "expect", "host",
     "inference-header-content-length", "keep-alive", "te", "trailer", "transfer-encoding",
     "upgrade", "user-agent")
)  # fmt: skip
"""Headers that only the transport can set."""


class RemoteDocument(RemoteSettings, frozen=True, kw_only=True):
    """The content of a version's ``remote.yaml``."""

    runtime: Literal["oip", "triton"] = "oip"


@dataclass(frozen=True)
class Location:
    """One of ``remote.urls``, taken apart. `prefix` is an HTTP path without its last ``/``."""

    scheme: Scheme
    host: str
    port: int
    prefix: str = ""

    @property
    def over_grpc(self) -> bool:
        return self.scheme in ("grpc", "grpcs")

    @property
    def secure(self) -> bool:
        return self.scheme in ("grpcs", "https")

    @property
    def authority(self) -> str:
        """``HOST:PORT``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


def location(url: str) -> Location:
    """Takes a URL apart. Raises `InvalidModelSettings` for one that cannot be called."""
    shown = printable(url)
    example = "write it like grpc://host:8001 or http://host:8000"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidModelSettings(f"url '{shown}' is not a URL; {example}") from None
    scheme = next((name for name in SCHEMES if name == parts.scheme), None)
    if scheme is None:
        raise InvalidModelSettings(
            f"url '{shown}' does not begin with one of "
            f"{', '.join(f'{name}://' for name in SCHEMES)}; {example}"
        )
    if "@" in parts.netloc:
        raise InvalidModelSettings(
            "a url holds a user or password; send them as a header: headers: {authorization: ...}"
        )
    host = parts.hostname or ""
    if not _HOST.fullmatch(host):
        raise InvalidModelSettings(f"url '{shown}' names no host; {example}")
    port = port or _WELL_KNOWN.get(scheme)
    if not port:
        raise InvalidModelSettings(f"url '{shown}' names no port; {example}")
    prefix = parts.path.rstrip("/")
    if parts.query or parts.fragment or (prefix and scheme in ("grpc", "grpcs")):
        raise InvalidModelSettings(f"url '{shown}' goes on behind the port; {example}")
    return Location(scheme, host, port, prefix)


def normalised(tree: Any, where: str) -> Any:
    """`tree` with ``url: X`` as ``urls: [X]``. Raises `InvalidModelSettings` for both."""
    if not isinstance(tree, dict) or "url" not in tree:
        return tree
    if "urls" in tree:
        raise InvalidModelSettings(f"{where}: 'url' and 'urls' are both there; keep 'urls'")
    rest = {key: value for key, value in tree.items() if key != "url"}
    return {"urls": [tree["url"]], **rest}


def check(settings: RemoteSettings, where: str) -> None:
    """Raises `InvalidModelSettings` for settings that no server can be reached with."""
    try:
        _check(settings)
    except InvalidModelSettings as error:
        raise InvalidModelSettings(f"{where}: {error}") from None


def _check(settings: RemoteSettings) -> None:
    if not settings.urls:
        raise InvalidModelSettings("'urls' is empty; name the server: urls: ['grpc://host:8001']")
    locations = [location(url) for url in settings.urls]
    for each in locations:
        if is_metadata_host(each.host):
            raise InvalidModelSettings(
                f"url '{each}' is a link-local address or a cloud's metadata service; no model is "
                "called there"
            )
    if len(set(locations)) < len(locations):
        raise InvalidModelSettings("'urls' names one address twice; name each replica once")
    schemes = {each.scheme for each in locations}
    if len(schemes) > 1:
        raise InvalidModelSettings(
            f"'urls' mixes {' and '.join(sorted(schemes))}; reach all replicas of a model by one"
        )
    if settings.ca_file is not None and not locations[0].secure:
        raise InvalidModelSettings(
            f"'ca_file' is for TLS, but the urls are {locations[0].scheme}://; use grpcs:// or "
            "https://, or remove 'ca_file'"
        )
    for name, value in settings.headers.items():
        _check_header(name, "headers")
        if not value.isascii() or not value.isprintable():
            raise InvalidModelSettings(f"headers: the value of '{name}' is not printable ASCII")
    for name in settings.forward_headers:
        _check_header(name, "forward_headers")


def _check_header(name: str, key: str) -> None:
    shown = printable(name)
    if name != name.lower():
        raise InvalidModelSettings(f"{key}: write '{shown}' in lower case")
    if not _HEADER.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
        raise InvalidModelSettings(f"{key}: '{shown}' cannot be sent as a header")
    if name in _OURS:
        raise InvalidModelSettings(f"{key}: '{shown}' is set by the gateway itself; remove it")


def read_remote_yaml(path: Path, where: str) -> RemoteDocument:
    """A version's ``remote.yaml``. Raises `InvalidModelSettings`."""
    try:
        tree = normalised(read_yaml(path), where)
    except ConfigError as error:
        raise InvalidModelSettings(str(error).replace(str(path), where)) from None
    refuse_unknown_keys(tree, RemoteDocument, where)
    try:
        document = msgspec.convert(tree, RemoteDocument)
    except msgspec.ValidationError as error:
        raise InvalidModelSettings(f"{where}: {error}") from None
    check(document, where)
    return document
