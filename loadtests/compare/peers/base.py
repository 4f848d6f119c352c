"""What the comparison needs to know of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtests.compare.wire import Floats, HttpRequest, Rows

if TYPE_CHECKING:  # verifiers import this too, and should start quickly
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

Encode = Callable[[str, Rows], HttpRequest]
"""Name of the model on the server, rows (FP32 or INT64, one or more) → the request. The path says
where it goes; for gRPC that is ``/package.Service/Method``, and the body is the framed message."""
Decode = Callable[[bytes, Mapping[str, str]], Floats]
"""Body and headers (lower-case names) of an answer with status 200 → its rows. For gRPC: the
message without its frame, and no headers. Raises `ValueError` for anything else."""


HEAVY: Final = ("cnn", "embedding")
"""Models that take milliseconds: everywhere they get a worker (an instance) a core. On some servers
the light ones have one: see the notes."""


@dataclass(frozen=True)
class Route:
    """One way to ask a server. ``grpc`` routes go over HTTP/2, all others over HTTP/1.1."""

    name: str
    """``grpc``, ``binary``, ``json`` (Open Inference Protocol), ``native`` (the server's own)."""
    encode: Encode
    decode: Decode
    grpc: bool = False
    like: str = ""
    """Which of our routes a ``native`` one is held against: ``binary``, ``invocations``, ..."""


@dataclass(frozen=True)
class Peer:
    """A server of the comparison.

    Its ``peer.py`` is imported by the runner and (for ``native`` routes) by the verifier, in our
    environment: it imports nothing of the server's. What runs in the server's environment
    (``serve.py``) imports nothing of ours.
    """

    name: str
    """Of its folder, and in tables."""
    routes: tuple[Route, ...]
    serve: Callable[[Path, Sequence[Model], Path, int], AbstractContextManager[Server]]
    """(environment, models, empty folder to work in, threads of a session) → the running server,
    ready and with all models loaded. The environment is a virtual environment's folder.
    `Server.models` says which name each model has there, where that differs."""
    packages: tuple[str, ...]
    """Distributions of its environment whose versions the report names; empty: what the running
    server says of itself."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """``model``, ``model/route`` → why it is not measured here."""
    extra: Callable[[], str] = str
    """What else must be there (Java): empty, or what is missing and what to type."""
    best: tuple[str, ...] = ()
    """The fastest routes, which are always measured: ``route`` (with every model) or
    ``model/route``. Empty: all."""
    variants: tuple[str, ...] = ("",)
    """What is behind a model's name where a server holds it several times, configured in several
    ways (``_1x``, ``_2x``); the best of them counts, cell by cell."""
    warm_s: float = 1.0
    """Seconds of load for each model after a start, before anything is measured."""
    one_model: bool = False
    """Whether a server holds one model only; it is then started for each."""
    counter: bool = False
    """Whether ``/metrics`` shows ``nv_inference_request_success`` of each model."""
    native_models: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    """Model → its routes, where they are not those of `routes` (``echo`` as raw bytes)."""

    def routes_of(self, model: str) -> tuple[Route, ...]:
        """The routes of one model."""
        return self.native_models.get(model, self.routes)
