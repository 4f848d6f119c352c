"""The three routes of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadtests.compare import wire
from loadtests.compare.peers.base import Route
from loadtests.compare.wire import Floats, HttpRequest, Rows

GRPC_HEADERS: Final = {"content-type": "application/grpc", "te": "trailers"}


def grpc_request(model: str, rows: Rows) -> HttpRequest:
    """The framed ``ModelInferRequest``."""
    body = wire.grpc_frame(wire.grpc_request(model, rows))
    return HttpRequest(wire.GRPC_INFER_PATH, body, dict(GRPC_HEADERS))


def grpc_answer(message: bytes, headers: Mapping[str, str]) -> Floats:
    """The rows of a ``ModelInferResponse``."""
    return wire.grpc_answer(message)


def http_answer(body: bytes, headers: Mapping[str, str]) -> Floats:
    """The rows of an answer, binary or JSON as its headers say."""
    return wire.http_answer(body, headers.get(wire.JSON_LENGTH_HEADER.lower()))


GRPC: Final = Route("grpc", grpc_request, grpc_answer, grpc=True)
BINARY: Final = Route("binary", wire.binary_request, http_answer)
JSON: Final = Route("json", wire.json_request, http_answer)
ALL: Final = (GRPC, BINARY, JSON)
ROUTES: Final = {route.name: route for route in ALL}
