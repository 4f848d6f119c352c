"""A Triton server behind the gateway, beside the same server reached directly.

``python -m loadtests.runtimes.triton``: model ``add``, gRPC, by h2load. In each round Triton is
asked directly, through the gateway that passes each request on, and through the gateway that
forms the batches. The figures are medians of the rounds' ratios (or differences).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from loadtests.commands import add_sluice_option, add_triton_option, command, judged
from loadtests.compare import load, sluice, triton
from loadtests.compare.cells import Cell, Goal
from loadtests.compare.load import Shape
from loadtests.compare.measure import Contender, Run
from loadtests.compare.processes import Server
from loadtests.compare.runner import Plan, Runner, make_subjects
from loadtests.compare.summary import Figure
from loadtests.errors import BenchError
from loadtests.units import finite

DIRECT: Final = "triton"
PASSED_ON: Final = "passed on"
BATCHED: Final = "gateway batches"
MODEL: Final = "add"
THERE: Final = "add_1x"
"""The model's name in the Triton server: one instance of its Python backend."""
BATCHED_MODEL: Final = "add_batched"

BUSY: Final = Cell(MODEL, "grpc", Shape(4, 16))
ALONE: Final = Cell(MODEL, "grpc", Shape(1), "mean")
PASSED_ON_GOAL: Final = Goal(0.35, 0.45)
BATCHED_GOAL: Final = Goal(0.6, 0.8)
ADDED_GOAL: Final = Goal(500, 350, smaller_is_better=True)
"""Microseconds."""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.runtimes.triton")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=finite, default=5.0, help="seconds a run, about")
    add_sluice_option(parser)
    add_triton_option(parser)
    return parser


def write_directory(folder: Path, grpc: str) -> list[str]:
    """Two models that are one on the server: passed on as it comes, and batched here."""
    for name, more in ((MODEL, ""), (BATCHED_MODEL, "batching: gateway\n")):
        version = folder / name / "1"
        version.mkdir(parents=True)
        document = f"runtime: triton\nurl: grpc://{grpc}\nmodel: {THERE}\n{more}"
        (version / "remote.yaml").write_text(document)
    return [MODEL, BATCHED_MODEL]


def contenders(direct: Server, gateway: Server) -> list[Contender]:
    """The three ways to the model."""
    return [
        Contender(DIRECT, direct, THERE),
        Contender(PASSED_ON, gateway, MODEL),
        Contender(BATCHED, gateway, BATCHED_MODEL),
    ]


def figures(runs: Sequence[Run]) -> list[Figure]:
    """The three figures, from every run of both cells."""
    return [
        _figure(
            "requests/s over Triton directly, passed on, c=64",
            _by_round(runs, BUSY, PASSED_ON, lambda ours, theirs: ours.rate / theirs.rate),
            "x",
            PASSED_ON_GOAL,
        ),
        _figure(
            "requests/s over Triton directly, gateway batches, c=64",
            _by_round(runs, BUSY, BATCHED, lambda ours, theirs: ours.rate / theirs.rate),
            "x",
            BATCHED_GOAL,
        ),
        _figure(
            "mean latency added, passed on, c=1",
            _by_round(runs, ALONE, PASSED_ON, _added),
            "us",
            ADDED_GOAL,
        ),
    ]


def _added(ours: Run, theirs: Run) -> float:
    return ours.result.mean_us - theirs.result.mean_us


def _by_round(
    runs: Sequence[Run], cell: Cell, side: str, value: Callable[[Run, Run], float]
) -> list[float]:
    """`value(ours, theirs)` of each round; empty when any run of the two does not count."""
    mine = {run.round: run for run in runs if run.cell == cell.name and run.contender == side}
    theirs = {run.round: run for run in runs if run.cell == cell.name and run.contender == DIRECT}
    if mine.keys() != theirs.keys() or not all(
        run.valid for run in (*mine.values(), *theirs.values())
    ):
        return []
    return [value(mine[number], theirs[number]) for number in mine]


def _figure(name: str, values: list[float], unit: str, goal: Goal) -> Figure:
    if not values:
        return Figure(name, None, unit, goal, "a run does not count")
    detail = f"{min(values):.2f} to {max(values):.2f}"
    return Figure(name, median(values), unit, goal, detail)


def run(args: argparse.Namespace, work: Path) -> list[Figure]:
    """Starts the servers and measures."""
    if args.rounds < 1 or args.duration <= 0:
        raise BenchError("--rounds and --duration must be above 0")
    env = triton.find(args.triton_venv.absolute() if args.triton_venv else None)
    plan = Plan(args.rounds, args.duration, 1, work)
    subjects = make_subjects([MODEL], work, plan.threads)
    with ExitStack() as stack:
        models = [subject.model for subject in subjects.values()]
        direct = stack.enter_context(triton.serve(env, models, work, plan.threads))
        directory = work / "directory"
        served = write_directory(directory, direct.grpc)
        gateway = stack.enter_context(
            sluice.serve(args.sluice, directory, work / "gateway", served)
        )
        runner = Runner(plan, subjects)
        for cell in (BUSY, ALONE):
            runner.compare_models(cell, contenders(direct, gateway))
    return figures(runner.outcome.runs)


@command("triton")
def main() -> int:
    """Measures and prints; 0: every target is met, 1: one is not, 2: it could not run."""
    args = arguments().parse_args()
    load.version()
    with tempfile.TemporaryDirectory(prefix="sluicegate-triton-") as work:
        found = run(args, Path(work))
    return judged(found)


if __name__ == "__main__":
    sys.exit(main())
