"""What a run of a cell needs: names, addresses, how many requests, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtests.compare import load
from loadtests.compare.peers import oip
from loadtests.compare.peers.cells import Cell
from loadtests.compare.peers.outcome import Run
from loadtests.compare.processes import Server
from loadtests.compare.verify import Verdict

PROBE_S: Final = 0.3
"""About the length of one of the runs that warm a cell up."""


def named(server: Server, cell: Cell) -> str:
    """What the server calls the model."""
    return server.models.get(cell.model, cell.model) + cell.variant


def addressed(server: Server, cell: Cell) -> str:
    """Where it is asked."""
    return server.grpc if cell.route.grpc else server.http


def enough(result: load.Result, cell: Cell) -> int:
    """How many requests take about `PROBE_S`, at most ten times as many as just now."""
    wanted = min(int(result.per_second * PROBE_S), 10 * result.requests)
    return max(wanted, cell.shape.concurrency)


def lost(result: load.Result, each: int) -> list[str]:
    """Whether an answer had no tensors: h2load takes a gRPC error for a success.

    ``each`` is how many bytes one answer has: all answers of a route have the same.
    """
    expected = result.requests * each
    if each and abs(result.data_bytes - expected) < each:
        return []
    return [f"h2load got {result.data_bytes} bytes, not {expected}: some answers were errors"]


def route_text(cell: Cell) -> str:
    """What the verifier calls the route; see `loadtests.compare.peers.route`."""
    if oip.ROUTES.get(cell.route.name) is cell.route:
        return cell.route.name
    return f"{cell.server}:{cell.model}:{cell.route.name}"


def made(
    cell: Cell, number: int, result: load.Result, verdict: Verdict, problems: Sequence[str]
) -> Run:
    """A run that was made, whether it counts or not."""
    return Run(
        *(cell.server, cell.model, cell.route.name, cell.route.like, cell.shape.concurrency),
        *(number, result.per_second, result.mean_us, result.p50_us, result.p99_us),
        *(result.requests, verdict.sent),
        problems=tuple(dict.fromkeys(problems)),
        variant=cell.variant,
    )


def failed(cell: Cell, number: int, problem: str) -> Run:
    """A run that could not be made."""
    return made(cell, number, load.Result(0), Verdict(), [problem])


def one_line(error: BaseException, most: int = 300) -> str:
    """An error's text on one line; the beginning and the end of a long one."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
