"""What the comparison needs to know of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.compare.models import Model
from loadtests.compare.processes import Server
from loadtests.compare.wire import Floats, HttpRequest

Encode = Callable[[str, Floats], HttpRequest]
"""Name of the model on the server, rows → the request. For gRPC: the framed message."""
Decode = Callable[[bytes, Mapping[str, str]], Floats]
"""Body and headers (lower-case names) of an answer → its rows."""


@dataclass(frozen=True)
class Route:
    """One way to ask a server. ``grpc`` routes go over HTTP/2, all others over HTTP/1.1."""

    name: str
    """``grpc``, ``binary``, ``json`` (Open Inference Protocol), or ``native`` (the server's own)."""
    encode: Encode
    decode: Decode
    grpc: bool = False


@dataclass(frozen=True)
class Peer:
    """A server of the comparison."""

    name: str
    """Of its folder, and in tables."""
    routes: tuple[Route, ...]
    serve: Callable[[Path, Sequence[Model], Path, int], AbstractContextManager[Server]]
    """(environment, models, folder to work in, threads of a session) → the running, ready server.
    `Server.models` says which name each model has there; models that the server cannot hold are
    left out of it, and ``refusals`` says why."""
    packages: tuple[str, ...]
    """Whose versions the report names."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Model, or ``model/route`` → why it is not measured here."""
    extra: Callable[[], str] = str
    """What else must be there (Java): empty, or what is missing and what to type."""
