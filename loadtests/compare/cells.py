"""What is measured, and the targets it is held against."""

from __future__ import annotations

from dataclasses import dataclass

from .load import Shape


@dataclass(frozen=True)
class Goal:
    """A bound on a figure: ``at_least`` must be reached, ``aim`` is what we want."""

    at_least: float
    aim: float
    smaller_is_better: bool = False

    def verdict(self, value: float) -> str:
        """``AIM``, ``PASS`` or ``MISS``."""
        for word, bound in (("AIM", self.aim), ("PASS", self.at_least)):
            if (value <= bound) if self.smaller_is_better else (value >= bound):
                return word
        return "MISS"

    def describe(self) -> tuple[str, str]:
        """Both bounds as text."""
        sign = "<= " if self.smaller_is_better else ">= "
        return f"{sign}{self.at_least:g}", f"{sign}{self.aim:g}"


@dataclass(frozen=True)
class Cell:
    """One model, one protocol, one concurrency."""

    model: str
    protocol: str
    """``grpc``, ``binary`` (HTTP/1.1, binary tensors) or ``json`` (HTTP/1.1)."""
    shape: Shape
    figure: str = "rate"
    """``rate`` (requests/s) or ``mean`` (mean latency): what the ratio is of."""
    goal: Goal | None = None
    rival: str = "triton"
    """``triton`` or ``bare`` (a loop over onnxruntime, without any server)."""
    percentiles: bool = False
    """Whether a shorter second run, with every request's time logged, gives p50 and p99."""
    verify_rate: float = 50.0
    """Requests a second of the verifier."""
    verify_rows: int = 4
    """Most rows in a request of the verifier."""

    @property
    def name(self) -> str:
        """As ``add/grpc/c64-4x16``; short for ``cMANY-CONNECTIONSxSTREAMS``."""
        shape = self.shape
        return f"{self.model}/{self.protocol}/c{shape.concurrency}-{shape.clients}x{shape.streams}"


RATES = {
    ("add", "grpc"): Goal(2.3, 3.0),
    ("add", "binary"): Goal(1.3, 1.6),
    ("add", "json"): Goal(1.3, 1.6),
    ("mlp", "grpc"): Goal(1.8, 2.5),
    ("mlp", "binary"): Goal(1.0, 1.4),
}
"""Requests/s at c=64 (gRPC: 4 connections with 16 streams each), ours over Triton's."""

LATENCIES = {
    ("add", "grpc"): Goal(0.9, 0.7, smaller_is_better=True),
    ("add", "binary"): Goal(0.65, 0.5, smaller_is_better=True),
    ("add", "json"): Goal(0.65, 0.5, smaller_is_better=True),
}
"""Mean latency at c=1, ours over Triton's."""

CNN = Goal(0.95, 0.99)
TAIL = Goal(2.5, 2.0, smaller_is_better=True)
MEMORY_MIB = Goal(200, 120, smaller_is_better=True)
START_S = Goal(2.0, 1.0, smaller_is_better=True)

TAIL_CELL = "add/grpc/c64-4x16"


def all_cells() -> list[Cell]:
    """Every cell, in the order of the report."""
    cells = []
    for model in ("add", "mlp"):
        for protocol in ("grpc", "binary", "json"):
            grpc = protocol == "grpc"
            key = (model, protocol)
            cells.append(Cell(model, protocol, Shape(1), "mean", LATENCIES.get(key)))
            cells.append(Cell(model, protocol, Shape(4, 4) if grpc else Shape(16)))
            busy = Shape(4, 16) if grpc else Shape(64)
            tail = protocol != "json"
            cells.append(Cell(model, protocol, busy, goal=RATES.get(key), percentiles=tail))
            if grpc:
                cells.append(Cell(model, protocol, Shape(64)))
    bare = Cell("cnn", "grpc", Shape(4, 4), goal=CNN, rival="bare", verify_rate=2.0, verify_rows=1)
    return [*cells, bare]
