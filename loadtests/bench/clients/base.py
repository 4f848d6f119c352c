"""What the clients have in common."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from loadtests.bench.plan import Target
from loadtests.bench.results import CONNECTION as CONNECTION
from loadtests.errors import BenchError, Unreachable
from loadtests.payloads.base import Wire

CONNECT_S: Final = 10.0
"""Seconds within which a connection must be made."""
PROTOCOL: Final = "protocol"
"""The outcome of a request whose answer broke the protocol."""
BEGINNING: Final = 4096
"""Bytes of an answer in which the version is looked for."""

_VERSION: Final = re.compile(rb'"model_version"\s*:\s*"([^"\\]*)"')


class Call:
    """One request on its way. Times are ns of `time.monotonic_ns`."""

    __slots__ = (
        "due", "ended", "issued", "keep", "left", "number", "retried", "slot", "stream", "via",
    )  # fmt: skip

    def __init__(self, number: int, due: int, issued: int, slot: int = -1) -> None:
        self.number = number
        """Which payload, once round the list of them."""
        self.due = due
        self.issued = issued
        self.left = 0
        """When it was written; 0: it was not."""
        self.slot = slot
        """Closed loop: the place that it takes; -1: none."""
        self.ended = False
        """Whoever is asked to send one that has ended does not."""
        self.keep = False
        """Whether the answer's body is wanted."""
        self.retried = False
        self.via: object = None
        """The connection that it is on."""
        self.stream = 0


Done = Callable[[Call, str, str, bytes], None]
"""How a client says that a call has ended: with the outcome (empty: answered well), the version
that answered (empty: not known), and the body or the error's text, if it was to be kept. Never
called from within `Client.send`."""


class Client(Protocol):
    """Sends calls; each is reported to `Done` once, or taken back by `cancel`."""

    async def open(self) -> None:
        """Connects. Raises `Unreachable` where nobody answers."""

    def send(self, call: Call) -> None:
        """Writes it, or keeps it until it can be written. Sets `Call.left` then."""

    def cancel(self, call: Call) -> None:
        """Forgets a call that has been ended by the caller."""

    async def close(self) -> None:
        """Ends all connections."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    prefix: str = ""
    """Path in front of those of the requests."""

    @property
    def authority(self) -> str:
        """``host:port``, as in headers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def http_address(target: Target) -> Address:
    """Of ``http://host:port`` or ``https://host:port``. Raises `BenchError` for anything else."""
    return _address(target.http, target, {"http": 80, "https": 443}, "http://127.0.0.1:8080")


def grpc_address(target: Target) -> Address:
    """Of ``host:port``, also with ``grpc://`` or ``grpcs://`` before it. Raises `BenchError`."""
    text = target.grpc if "://" in target.grpc else f"grpc://{target.grpc}"
    if target.ca_file and text.startswith("grpc://"):
        text = f"grpcs://{text.removeprefix('grpc://')}"
    return _address(text, target, {"grpc": 8081, "grpcs": 443}, "127.0.0.1:8081")


def _address(text: str, target: Target, ports: dict[str, int], example: str) -> Address:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.scheme not in ports:
        raise BenchError(
            f"address {text!r} is not one for {target.protocol}; write it as {example}"
        )
    tls = None
    if parts.scheme in ("https", "grpcs"):
        tls = tls_context(target)
        if parts.scheme == "grpcs":
            tls.set_alpn_protocols(["h2"])
    return Address(host, port or ports[parts.scheme], tls, parts.path.rstrip("/"))


def tls_context(target: Target) -> ssl.SSLContext:
    """Checks certificates against `Target.ca_file`, or the system's authorities. Raises
    `BenchError` for a file that cannot be read."""
    try:
        return ssl.create_default_context(cafile=target.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise BenchError(
            f"certificates in {target.ca_file!r} cannot be read ({error}); give a PEM file"
        ) from None


def headers_of(wire: Wire, target: Target) -> tuple[tuple[str, str], ...]:
    """The request's headers, and those of the target that are not yet among them; names in lower
    case."""
    every = (*wire.headers, *(each for each in target.headers if each not in wire.headers))
    return tuple((name.lower(), value) for name, value in every)


def shared(lists: Sequence[tuple[tuple[str, str], ...]]) -> frozenset[tuple[str, str]]:
    """The headers that all requests have."""
    first, *others = (frozenset(each) for each in lists)
    return first.intersection(*others)


def nobody(address: Address, error: object) -> Unreachable:
    """The error where no connection can be made."""
    what = str(error) or type(error).__name__
    return Unreachable(
        f"nobody answers at {address.authority} ({what}); is the server running, and is this its "
        "address?"
    )


def json_version(beginning: bytes) -> str:
    """``model_version`` of a JSON answer, from its beginning; empty where there is none."""
    found = _VERSION.search(beginning)
    return found[1].decode("utf-8", "replace") if found else ""


def proto_version(message: bytes) -> str:
    """``model_version`` of a serialized ``ModelInferResponse``, from its beginning, where servers
    write its first two fields first; empty where there is none."""
    at, end = 0, len(message)
    while at + 1 < end:
        key, size = message[at], message[at + 1]
        stop = at + 2 + size
        if key not in (0x0A, 0x12) or size > 127 or stop > end:
            return ""
        if key == 0x12:
            return message[at + 2 : stop].decode("utf-8", "replace")
        at = stop
    return ""
