"""What the two ways to another server, gRPC and HTTP, have in common."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.codecs.client_grpc import ModelMetadata, ServerMetadata
from gateway.errors import ModelLoadError
from gateway.model_settings import RemoteSettings
from gateway.remote_document import Location
from gateway.tensors import InferenceRequest, InferenceResponse
from runtimes.interface import Headers

CONNECT_SECONDS: Final = 2.0
"""Longest time for a connection to come about."""
TRACING: Final = (
    "traceparent", "tracestate", "x-request-id", "b3", "x-b3-traceid", "x-b3-spanid",
    "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags",
)  # fmt: skip
"""Headers that follow a request through all servers."""

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class There:
    """A model as the other server knows it. `name` and `version` are those of the model there,
    `ours` and `our_version` those that answers go by."""

    name: str
    version: str
    ours: str
    our_version: str


class Connection(ABC):
    """The way to one replica. Owned by the event loop.

    All methods raise `AttemptFailed`; `timeout` is in seconds. Being cancelled tells the server.
    """

    known: ServerMetadata | None = None
    """What the server said of itself; `None` before it was asked."""

    @abstractmethod
    async def infer(self, message: Any, timeout: float | None, headers: Pairs) -> Any:
        """Sends what `Transport.encode` made; the answer is for `Transport.decode`."""

    def stream(
        self, message: Any, timeout: float | None, headers: Pairs, *, wire: bool
    ) -> AsyncGenerator[InferenceResponse]:
        """The answers to one request of a decoupled model; with `wire`, undecoded where they
        have raw contents."""
        raise NotImplementedError

    @abstractmethod
    async def ready(self, timeout: float) -> str:
        """Asks the server, and for the model in it: empty if both are ready, else why not."""

    @abstractmethod
    async def model(self, timeout: float) -> ModelMetadata:
        """What the server says of the model."""

    @abstractmethod
    async def server(self, timeout: float) -> ServerMetadata:
        """What the server says of itself."""

    @abstractmethod
    async def close(self) -> None:
        """Ends what is under way and gives the sockets back."""


class Transport(ABC):
    """Makes connections, and turns requests into messages and answers back."""

    streams: bool = False
    """Whether connections have `stream`."""
    asks: bool = False
    """Whether messages depend on what the servers say of themselves."""

    def __init__(self, there: There, settings: RemoteSettings) -> None:
        self.there = there
        self.settings = settings
        self.fixed: Pairs = list(settings.headers.items())
        """Headers of every call, those that ask for readiness or metadata included."""
        names = dict.fromkeys((*TRACING, *settings.forward_headers))
        self._passed = [name for name in names if name not in settings.headers]

    @abstractmethod
    def connect(self, location: Location, address: str) -> Connection:
        """A connection to one address (an IP) of `location`, opened when first needed."""

    def learned(self, extensions: frozenset[str]) -> None:  # noqa: B027 - not of use to all
        """Told what all servers can do that are there: before the first request, and again when
        others come."""

    @abstractmethod
    def encode(self, request: InferenceRequest, timeout: float | None) -> Any:
        """The message for `Connection.infer`. Raises `SluiceError`."""

    @abstractmethod
    def decode(self, answer: Any, request: InferenceRequest) -> InferenceResponse:
        """The response in an answer. Raises `InferenceFailed`."""

    def headers(self, caller: Headers) -> Pairs:
        """What is sent beside the message: fixed, for tracing, and as the settings say."""
        pairs = self.fixed.copy()
        for name in self._passed:
            value = caller(name)
            # HTTP allows more in a value than gRPC does.
            if value is not None and value.isascii() and value.isprintable():
                pairs.append((name, value))
        return pairs

    @abstractmethod
    async def close(self) -> None:
        """Gives back what all connections share; they are closed."""


def authorities(ca_file: str | None) -> ssl.SSLContext | None:
    """TLS that trusts the authorities in a PEM file. Raises `ModelLoadError`."""
    if ca_file is None:
        return None
    name = Path(ca_file).name
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        raise ModelLoadError(f"ca_file '{name}' holds no certificate in PEM form") from None
    except OSError as error:
        raise ModelLoadError(f"ca_file '{name}': {error.strerror}") from None


def nobody(name: str) -> str | None:
    """The headers of a request that no single caller made."""
    return None


def texts(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(each) for each in values)
