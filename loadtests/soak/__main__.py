"""``python -m loadtests.soak``: see ``loadtests/README.md``."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from loadtests.commands import add_sluice_option, command
from loadtests.compare import machine, sluice
from loadtests.compare.processes import ROOT
from loadtests.errors import BenchError
from loadtests.report import soak as report
from loadtests.report.draw import available
from loadtests.soak.models import SETTINGS, Directory
from loadtests.soak.results import Soak
from loadtests.soak.session import Plan, soak
from loadtests.units import finite

EPILOG = """\
exit codes: 0 everything held, 1 something did not, 2 the soak could not start.
"""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.soak", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("--minutes", type=finite, default=20.0)
    parser.add_argument("--pace", type=finite, default=1.0, help="trouble, more (2) or less (0.5)")
    parser.add_argument("--load", type=finite, default=1.0, help="requests/s, as a factor")
    parser.add_argument(
        "--rest",
        type=finite,
        default=12.0,
        help="seconds without requests before each look at what is held at rest",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "loadtests" / "results", metavar="DIR")
    add_sluice_option(parser)
    return parser


def run(args: argparse.Namespace, work: Path) -> int:
    """Starts the gateway, soaks it, writes the report; 1 when something did not hold."""
    if args.minutes <= 0 or args.pace <= 0 or args.load <= 0:
        raise BenchError("--minutes, --pace and --load must be above 0")
    if args.rest < 0:
        raise BenchError("--rest must not be below 0")
    available()
    directory = Directory(work / "models")
    with sluice.serve(args.sluice, directory.folder, work / "gateway", list(SETTINGS)) as server:
        plan = Plan(args.minutes * 60, args.pace, args.load, args.rest, args.seed)
        found = asyncio.run(soak(server, directory, plan))
    return write(found, args)


def write(found: Soak, args: argparse.Namespace) -> int:
    """The files and the last lines."""
    found = replace(
        found,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "loadtests.soak", *sys.argv[1:]]),
        machine=machine.describe(),
        versions=machine.versions(),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    for note in found.notes:
        print(note)
    print(f"\n{args.minutes:g} minutes, {len(found.events)} events\n")
    for verdict in found.verdicts:
        word = "met" if verdict.passed else "MISS"
        print(f"{verdict.name:53} {verdict.found:>28}  allowed {verdict.allowed:14} {word}")
    for name, text in report.files(found).items():
        (args.out / name).write_text(text)
    print(f"\nwritten: {args.out}/soak.json and beside it")
    return int(not all(verdict.passed for verdict in found.verdicts))


@command("soak")
def main() -> int:
    """Parses the command line and runs."""
    args = arguments().parse_args()
    with tempfile.TemporaryDirectory(prefix="sluicegate-soak-") as work:
        return run(args, Path(work))


if __name__ == "__main__":
    sys.exit(main())
