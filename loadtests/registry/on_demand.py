"""Thousands of models registered, tens loaded: what do those that are not loaded cost?

    python -m loadtests.registry.on_demand

Two gateways run at the same time: one with 2,000 models on demand, of which 50 are loaded, and one
with those 50 alone. The rounds alternate between them, each sends requests to the 50 in turn (HTTP,
binary, with h2load), and the figure is the median of the ratios. Both gateways watch their
directories meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from loadtests.commands import command, judged
from loadtests.compare import load, sluice
from loadtests.compare.cells import Goal
from loadtests.compare.processes import Server, get, resident_bytes
from loadtests.compare.summary import Figure
from loadtests.errors import BenchError
from loadtests.units import finite

RATIO_GOAL: Final = Goal(0.95, 1.0)
SHAPE: Final = load.Shape(64)
ROW: Final = np.zeros((1, 4), np.float32)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.registry.on_demand")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--duration", type=finite, default=5.0, help="seconds a run, about")
    parser.add_argument("--registered", type=int, default=2000)
    parser.add_argument("--loaded", type=int, default=50)
    parser.add_argument("--sluice", default=sluice.default_command(), metavar="CMD")
    return parser


def names(count: int) -> list[str]:
    return [f"model-{n:05d}" for n in range(count)]


def write_models(folder: Path, count: int, *, on_demand: bool) -> None:
    """Small ONNX models of one kind."""
    from loadtests.onnx_files import adding, save

    model = adding(1.0)
    for name in names(count):
        save(model, folder / name / "1" / "model.onnx")
        if on_demand:
            (folder / name / "model.yaml").write_text("on_demand: true\n")


def target(server: Server, count: int, file: Path) -> load.Target:
    """Requests to each of the models in turn: h2load goes round the URLs it is given."""
    found = [
        load.target("binary", (server.http, server.grpc), name, ROW, file) for name in names(count)
    ]
    first = found[0]
    return load.Target(first.url, first.file, (*first.options, *(each.url for each in found[1:])))


def load_models(server: Server, count: int) -> float:
    """Has them loaded by asking for their metadata; the seconds that took."""
    begin = time.perf_counter()
    for name in names(count):
        status, body = get(server.http, f"/v2/models/{name}", timeout_s=60.0)
        if status != 200:
            raise BenchError(f"{name} answers {status}: {body.decode(errors='replace')[:200]}")
    return time.perf_counter() - begin


def rate(what: load.Target, requests: int) -> float:
    """Requests a second. Raises `BenchError` for a run that does not count."""
    result = load.run(what, SHAPE, requests, timeout_s=300.0)
    if problems := result.problems():
        raise BenchError("; ".join(problems))
    return result.per_second


def measure(
    many: Server, few: Server, work: Path, rounds: int, seconds: float, loaded: int
) -> list[Figure]:
    """The figures."""
    took = load_models(many, loaded)
    load_models(few, loaded)
    sides = [target(server, loaded, work / f"{server.label}.body") for server in (few, many)]
    for side in sides:
        rate(side, 20 * loaded)
    requests = max(int(rate(sides[0], 40 * loaded) * seconds), loaded)
    ratios: list[float] = []
    for number in range(rounds):
        rates = [0.0, 0.0]
        for each in (0, 1) if number % 2 else (1, 0):
            rates[each] = rate(sides[each], requests)
        ratios.append(rates[1] / rates[0])
    status, page = get(many.http, "/metrics")
    if status != 200:
        raise BenchError(f"/metrics answers {status}")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    memory = [resident_bytes(server.process.pid) / 2**20 for server in (few, many)]
    return [
        Figure("requests/s on the loaded ones over the few alone", median(ratios), "x",
               RATIO_GOAL, spread),
        Figure("start until ready", many.ready_s, "s", None, f"{few.ready_s:.2f} with the few"),
        Figure("all of the loaded ones, one after the other", took, "s"),
        Figure("resident memory", memory[1], "MiB", None, f"{memory[0]:.0f} with the few"),
        Figure("size of /metrics", len(page) / 1024, "KiB"),
    ]  # fmt: skip


@contextlib.contextmanager
def served(command: str, work: Path, registered: int, loaded: int) -> Iterator[Sequence[Server]]:
    """Both gateways."""
    write_models(work / "many", registered, on_demand=True)
    write_models(work / "few", loaded, on_demand=False)
    with (
        sluice.serve(command, work / "many", work / "gateway-many") as many,
        sluice.serve(command, work / "few", work / "gateway-few") as few,
    ):
        many.label, few.label = "many", "few"
        yield many, few


@command("on_demand")
def main() -> int:
    """Measures and prints; 0: the target is met, 1: it is not, 2: it could not run."""
    args = arguments().parse_args()
    if args.rounds < 1 or args.duration <= 0 or not 0 < args.loaded <= args.registered:
        raise BenchError("--rounds, --duration and --loaded must be above 0, and "
                         "--registered no less than --loaded")  # fmt: skip
    load.version()
    with tempfile.TemporaryDirectory(prefix="sluicegate-on-demand-") as folder:
        work = Path(folder)
        with served(args.sluice, work, args.registered, args.loaded) as (many, few):
            found = measure(many, few, work, args.rounds, args.duration, args.loaded)
    return judged(found)


if __name__ == "__main__":
    sys.exit(main())
