"""What is measured of each server, and what is left out, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.compare.load import Shape
from loadtests.compare.peers.base import Peer, Route

MODELS: Final = ("add", "mlp", "cnn", "embedding", "echo")
BUSY: Final = {"add": 64, "mlp": 64, "cnn": 16, "embedding": 16, "echo": 16}
"""Requests in flight, beside the runs with one."""
LIGHT: Final = ("add", "mlp")
"""Models of which the verifier asks often, and for several rows."""
TEXT: Final = "4 MiB of numbers are some 20 MB of JSON: it would measure the reading of numbers"
TEXT_BUSY: Final = "JSON of 20 MB a request is measured one at a time only"
STREAMS: Final = 4
"""Connections of busy gRPC runs; the requests in flight are shared among them."""


@dataclass(frozen=True)
class Cell:
    """One server, model and route at one concurrency."""

    server: str
    model: str
    route: Route
    shape: Shape

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Server, model, route, requests in flight."""
        return self.server, self.model, self.route.name, self.shape.concurrency

    @property
    def name(self) -> str:
        """As in progress and notes."""
        return "{} {}/{} c={}".format(*self.key)

    @property
    def verify_rate(self) -> float:
        """Requests a second of the verifier."""
        return 50.0 if self.model in LIGHT else 4.0

    @property
    def verify_rows(self) -> int:
        """Most rows in a request of the verifier."""
        return 4 if self.model in LIGHT else 1

    @property
    def verify_fewest(self) -> int:
        """Answers that must have been verified: a heavy request may take as long as a run."""
        return 2 if self.model in LIGHT else 1


@dataclass(frozen=True)
class LeftOut:
    """What is not measured. Empty ``model`` or ``route``: any; ``concurrency`` 0: any."""

    server: str
    model: str
    route: str
    reason: str
    concurrency: int = 0


def is_text(route: Route) -> bool:
    """Whether tensors are JSON on this route."""
    return "json" in (route.name, route.like)


def shapes(model: str, route: Route) -> list[Shape]:
    """One request in flight, and many."""
    busy = BUSY[model]
    return [Shape(1), Shape(STREAMS, busy // STREAMS) if route.grpc else Shape(busy)]


def cells_of(peer: Peer, models: Sequence[str]) -> tuple[list[Cell], list[LeftOut]]:
    """The cells of one server, model by model, and what is left out of them."""
    cells: list[Cell] = []
    left: list[LeftOut] = []
    for model in models:
        if reason := peer.refusals.get(model):
            left.append(LeftOut(peer.name, model, "", reason))
            continue
        routes = peer.routes_of(model)
        for route in routes:
            reason = peer.refusals.get(f"{model}/{route.name}")
            only = len(routes) == 1
            if not reason and model == "echo" and is_text(route) and not only:
                reason = TEXT
            if reason:
                left.append(LeftOut(peer.name, model, route.name, reason))
                continue
            alone, busy = shapes(model, route)
            cells.append(Cell(peer.name, model, route, alone))
            if model == "echo" and is_text(route):
                left.append(
                    LeftOut(peer.name, model, route.name, TEXT_BUSY, concurrency=busy.concurrency)
                )
            else:
                cells.append(Cell(peer.name, model, route, busy))
    return cells, left


def ours_for(model: str, route: str, like: str) -> str:
    """The route of ours that a server's route is held against.

    Where ours is not measured on that route (`echo` as JSON) it is the binary one.
    """
    wanted = like or route
    return "binary" if model == "echo" and wanted == "json" else wanted
