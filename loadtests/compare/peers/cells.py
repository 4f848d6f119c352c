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
JSON_TOO: Final = ("add",)
"""Models that are asked as JSON too where a server has a faster route."""
SCORING: Final = "invocations"
"""Our route that is measured only where there is a server to hold against it."""
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
    variant: str = ""
    """See `Peer.variants`."""

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """Server, model, route, requests in flight, variant."""
        return self.server, self.model, self.route.name, self.shape.concurrency, self.variant

    @property
    def verify_rate(self) -> float:
        """Requests a second of the verifier: few beside one in flight, whose time is measured."""
        alone = self.shape.concurrency == 1
        if self.model in LIGHT:
            return 10.0 if alone else 50.0
        return 2.0 if alone else 4.0

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
    return bool({"json", SCORING} & {route.name, route.like})


def shapes(model: str, route: Route) -> list[Shape]:
    """Many requests in flight, and then, when everything is warm, one."""
    busy = BUSY[model]
    return [Shape(STREAMS, busy // STREAMS) if route.grpc else Shape(busy), Shape(1)]


def cells_of(
    peer: Peer, models: Sequence[str], *, every: bool = True
) -> tuple[list[Cell], list[LeftOut]]:
    """The cells of one server, model by model, and what is left out of them by rule.

    Without ``every``: its fastest routes, and JSON with the models of `JSON_TOO`.
    """
    cells: list[Cell] = []
    left: list[LeftOut] = []
    for model in models:
        if reason := peer.refusals.get(model):
            left.append(LeftOut(peer.name, model, "", reason))
            continue
        for route in peer.routes_of(model):
            if not (every or is_chosen(peer, model, route)):
                continue
            reason = peer.refusals.get(f"{model}/{route.name}")
            if not reason and model == "echo" and "json" in (route.name, route.like):
                reason = TEXT
            if reason:
                left.append(LeftOut(peer.name, model, route.name, reason))
                continue
            busy, alone = shapes(model, route)
            large = model == "echo" and is_text(route)
            if large:
                load = busy.concurrency
                left.append(LeftOut(peer.name, model, route.name, TEXT_BUSY, concurrency=load))
            for shape in [alone] if large else [busy, alone]:
                cells += [Cell(peer.name, model, route, shape, each) for each in peer.variants]
    return cells, left


def is_chosen(peer: Peer, model: str, route: Route) -> bool:
    """Whether a route is measured with a model without being asked for."""
    if not peer.best or {route.name, f"{model}/{route.name}"} & set(peer.best):
        return True
    return route.name == "json" and model in JSON_TOO
