"""Servers side by side, one after the other under the same load: ``python -m
loadtests.compare.peers``. ``install [NAME...]`` makes their environments first."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loadtests.commands import add_sluice_option, command
from loadtests.compare import load, machine, models, sluice
from loadtests.compare.peers import NAMES, OURS, document, environments, find, publish
from loadtests.compare.peers.base import Peer
from loadtests.compare.peers.cells import MODELS, LeftOut
from loadtests.compare.peers.document import Facts
from loadtests.compare.peers.outcome import BARE, Outcome
from loadtests.compare.peers.rounds import Plan, Runner, Subject, say
from loadtests.compare.peers.sluicegate.peer import with_command
from loadtests.compare.peers.table import lines
from loadtests.compare.processes import ROOT, guarded
from loadtests.errors import BenchError
from loadtests.report import draw
from loadtests.units import finite

EPILOG = """\
exit codes: 0 every run that was made counts (what is not installed is in the table with its
reason), 1 one does not count or a server did not start, 2 nothing could be measured.
"""
EVERYTHING = (*NAMES, BARE)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare.peers", description=__doc__, epilog=EPILOG
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=environments.default_root(),
        metavar="DIR",
        help="where the servers are installed (default: beside this Python's packages)",
    )
    commands = parser.add_subparsers(dest="command", metavar="install")
    install = commands.add_parser("install", help="makes the environments that are missing")
    install.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{environments.EMBEDDING} or a server"
    )
    install.add_argument("--environments", type=Path, default=argparse.SUPPRESS, metavar="DIR")
    parser.add_argument(
        "--servers",
        default=",".join(EVERYTHING),
        metavar="NAMES",
        help=f"with commas between, of {', '.join(EVERYTHING)} (default: all)",
    )
    parser.add_argument(
        "--models",
        default=",".join(MODELS),
        metavar="NAMES",
        help=f"with commas between, of {', '.join(MODELS)} (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=finite, default=1.0, help="seconds a run, about")
    parser.add_argument("--threads", type=int, default=1, help="threads of every session")
    parser.add_argument(
        "--routes",
        choices=("best", "all"),
        default="best",
        help="best: the fastest of each server, and JSON with add (default)",
    )
    add_sluice_option(parser)
    parser.add_argument("--out", type=Path, default=ROOT / "loadtests" / "results", metavar="DIR")
    parser.add_argument(
        "--publish",
        nargs="?",
        type=Path,
        const=ROOT / "docs" / "comparison",
        metavar="DIR",
        help="also write the page, its data and its plots there (default: docs/comparison)",
    )
    return parser


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    """Names out of a list with commas, in the order of ``known``."""
    wanted = {word.strip() for word in text.split(",")} - {""}
    if unknown := sorted(wanted - set(known)):
        names = ", ".join(known)
        raise BenchError(f"{option}: {', '.join(unknown)} is not known; there are: {names}")
    if not wanted:
        raise BenchError(f"{option} names nothing; there are: {', '.join(known)}")
    return [name for name in known if name in wanted]


def install(names: Sequence[str], root: Path) -> int:
    """Makes environments, all that are missing by default; one that fails keeps none other."""
    known = (environments.EMBEDDING, *NAMES)
    wanted = chosen(",".join(names), known, "install") if names else known
    failures = 0
    for name in wanted:
        try:
            environments.install(root, name, say)
        except (BenchError, OSError) as error:
            failures += 1
            say(f"{error}")
            continue
        if name != environments.EMBEDDING and (lacking := find(name).extra()):
            failures += 1
            say(f"{name}: {lacking}")
    return 1 if failures else 0


def subjects(names: Sequence[str], plan: Plan, outcome: Outcome) -> dict[str, Subject]:
    """The model files and the verifier's rows; one that cannot be made is in the outcome."""
    found = {}
    weights = environments.weights(plan.environments)
    for name in names:
        try:
            model = models.make(name, plan.work / "files", weights)
        except BenchError as error:
            outcome.left_out.append(LeftOut("all", name, "", str(error)))
            say(f"{name}: {error}")
            continue
        pool = plan.work / f"{name}.npz"
        rows, answers = models.samples(model, threads=plan.threads)
        np.savez(pool, rows=rows, answers=answers)
        found[name] = Subject(model, pool)
    return found


def line_up(names: Sequence[str], command: str) -> list[Peer]:
    """The servers; ours is started by ``command``."""
    return [with_command(command) if name == OURS else find(name) for name in names if name != BARE]


def versions(command: str) -> dict[str, str]:
    """Of the client; of this environment's packages too, if it is them that ``command`` starts."""
    found = machine.versions()
    if command == sluice.default_command():
        return found
    return {name: found[name] for name in ("python", "h2load") if name in found}


def run(args: argparse.Namespace, work: Path) -> int:
    """The whole comparison; returns the exit code."""
    if args.rounds < 1 or args.duration <= 0 or args.threads < 1:
        raise BenchError("--rounds, --duration and --threads must be above 0")
    servers = chosen(args.servers, EVERYTHING, "--servers")
    wanted = chosen(args.models, MODELS, "--models")
    if args.publish:
        draw.available()  # not after 25 minutes
    root = args.environments.absolute()
    every = args.routes == "all"
    plan = Plan(args.rounds, args.duration, args.threads, root, work, every)
    command = shlex.join(["python", "-m", "loadtests.compare.peers", *sys.argv[1:]])
    facts = Facts(command, machine.describe(), versions(args.sluice), plan)
    outcome = Outcome()
    runner = Runner(
        plan,
        line_up(servers, args.sluice),
        subjects(wanted, plan, outcome),
        with_bare=BARE in servers,
        outcome=outcome,
    )
    interrupted = False
    try:
        runner.run()
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted: what was measured until now follows")
    if not outcome.runs:
        reasons = dict.fromkeys(each.reason for each in outcome.left_out)
        raise BenchError(f"nothing was measured: {'; '.join(reasons) or 'interrupted'}")
    print(document.markdown(facts, outcome))
    for path in document.write(facts, outcome, args.out, stem(facts)):
        say(f"written: {path}")
    if interrupted:
        return 130
    if args.publish:
        for path in publish.publish(facts, outcome, args.publish):
            say(f"published: {path}")
    invalid = any(not line.valid for line in lines(outcome))
    return 1 if invalid or runner.broken else 0


def stem(facts: Facts) -> str:
    """Of the files: the date of the run."""
    date = facts.machine["date"].replace(" UTC", "").replace(":", "").replace(" ", "-")
    return f"peers-{date}"


@command("compare")
def main() -> int:
    """Parses the command line and runs."""
    args = arguments().parse_args()
    if args.command == "install":
        return install(args.names, args.environments.absolute())
    load.version()
    with guarded(), tempfile.TemporaryDirectory(prefix="sluicegate-peers-") as work:
        return run(args, Path(work))


if __name__ == "__main__":
    sys.exit(main())
