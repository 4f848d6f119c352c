"""``python -m loadtests.compare``: see ``loadtests/README.md``."""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from loadtests.commands import add_sluice_option, add_triton_option, command
from loadtests.errors import BenchError
from loadtests.units import finite

from . import figures, load, machine, sluice, summary, triton
from .cells import Cell, all_cells
from .processes import ROOT
from .report import Report, markdown, write
from .runner import Plan, Runner, make_subjects, say

EPILOG = """\
exit codes: 0 every target that was measured is met, 1 one is missed or a cell is invalid,
2 the comparison could not run.
"""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=finite, default=5.0, help="seconds a run, about")
    parser.add_argument(
        "--cells",
        default="*",
        help="patterns with commas between, as 'add/grpc/*,mlp/*/c64*' (see --list)",
    )
    parser.add_argument(
        "--what", default="cells,idle,start", help="some of cells,idle,start (default: all)"
    )
    parser.add_argument("--many", type=int, metavar="N", help="also: a directory of N models")
    parser.add_argument("--only", choices=["sluicegate", "triton"], help="one side, no ratios")
    add_sluice_option(parser)
    add_triton_option(parser)
    parser.add_argument("--threads", type=int, default=1, help="threads of every session")
    parser.add_argument("--out", type=Path, default=ROOT / "loadtests" / "results", metavar="DIR")
    parser.add_argument("--list", action="store_true", help="print the cells and stop")
    return parser


def chosen(patterns: str) -> list[Cell]:
    """The cells that any of the patterns matches."""
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    found = [cell for cell in all_cells() if any(fnmatch.fnmatch(cell.name, one) for one in wanted)]
    if not found:
        raise BenchError(f"no cell matches {patterns!r}; --list prints them")
    return found


def run_cells(args: argparse.Namespace, cells: list[Cell], report: Report) -> None:
    """Starts the servers, runs the cells, fills in the report."""
    plan = report.plan
    env = None
    if args.only != "sluicegate":
        env = triton.find(args.triton_venv.absolute() if args.triton_venv else None)
        report.versions |= {f"triton's {name}": str(v) for name, v in env.versions.items()}
    names = list(dict.fromkeys(cell.model for cell in cells))
    subjects = make_subjects(names, plan.work, plan.threads)
    files = [subject.model for subject in subjects.values()]
    ours = theirs = None
    with ExitStack() as stack:
        if args.only != "triton":
            directory = plan.work / "directory"
            served = sluice.write_directory(directory, files, plan.threads)
            ours = stack.enter_context(
                sluice.serve(args.sluice, directory, plan.work / "gateway", served)
            )
            report.servers[sluice.NAME] = machine.server_version(ours)
            report.ready_s[sluice.NAME] = ours.ready_s
        if env is not None:
            theirs = stack.enter_context(triton.serve(env, files, plan.work, plan.threads))
            told = machine.server_version(theirs)
            report.servers[triton.NAME] = told
            report.ready_s[triton.NAME] = theirs.ready_s
            if "2.51.0" not in told:
                raise BenchError(f"tritonserver 2.51.0 is wanted, this one says {told}")
        runner = Runner(plan, subjects)
        report.outcome = runner.outcome
        runner.run(cells, ours, theirs)


def run(args: argparse.Namespace, work: Path) -> int:
    """The whole comparison; returns the exit code."""
    cells = chosen(args.cells)
    what = {word.strip() for word in args.what.split(",")} - {""}
    if unknown := what - {"cells", "idle", "start"}:
        raise BenchError(f"--what knows cells, idle and start, not {', '.join(sorted(unknown))}")
    if args.rounds < 1 or args.duration <= 0 or args.threads < 1:
        raise BenchError("--rounds, --duration and --threads must be above 0")
    command = shlex.join(["python", "-m", "loadtests.compare", *sys.argv[1:]])
    plan = Plan(args.rounds, args.duration, args.threads, work)
    report = Report(command, machine.describe(), machine.versions(), {}, {}, plan)
    interrupted = False
    try:
        if "cells" in what:
            run_cells(args, cells, report)
        if args.only != "triton":
            if "idle" in what:
                report.figures += figures.idle(args.sluice, work)
            if "start" in what:
                report.figures += figures.start(args.sluice, work)
            if args.many:
                report.figures += figures.many(args.sluice, args.many, plan)
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted: what was measured until now follows")
    if "cells" in what:
        report.rows = summary.rows(cells, report.outcome)
        report.figures = summary.tail(report.outcome) + report.figures
    print(markdown(report))
    for path in write(report, args.out):
        say(f"written: {path}")
    if interrupted:
        return 130
    verdicts = [row.verdict for row in report.rows] + [one.verdict for one in report.figures]
    return 1 if {"MISS", "INVALID"} & set(verdicts) else 0


@command("compare")
def main() -> int:
    """Parses the command line and runs."""
    args = arguments().parse_args()
    if args.list:
        print("\n".join(cell.name for cell in chosen(args.cells)))
        return 0
    load.version()
    with tempfile.TemporaryDirectory(prefix="sluicegate-compare-") as work:
        return run(args, Path(work))


if __name__ == "__main__":
    sys.exit(main())
