"""``python -m loadtests.soak``: see ``loadtests/README.md``."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from loadtests.commands import add_sluice_option
from loadtests.compare import machine, sluice
from loadtests.compare.__main__ import ended
from loadtests.compare.processes import ROOT, Server
from loadtests.errors import BenchError
from loadtests.report import soak as report
from loadtests.report.soak import Sample, Soak
from loadtests.soak import verdicts
from loadtests.soak.bad_input import BadInput
from loadtests.soak.callers import Caller, Callers
from loadtests.soak.ledger import End, Ledger
from loadtests.soak.models import SETTINGS, Directory
from loadtests.soak.trouble import Trouble
from loadtests.soak.watch import Watch

EPILOG = """\
exit codes: 0 nothing was lost and nothing grew, 1 something did, 2 the soak could not run.
"""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.soak", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--pace", type=float, default=1.0, help="trouble, more (2) or less (0.5)")
    parser.add_argument("--load", type=float, default=1.0, help="requests/s, as a factor")
    parser.add_argument(
        "--rest",
        type=float,
        default=12.0,
        help="seconds without requests before each look at what is held at rest: connections that "
        "are idle are closed by then",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "loadtests" / "results", metavar="DIR")
    add_sluice_option(parser)
    return parser


async def soak(server: Server, directory: Directory, args: argparse.Namespace) -> Soak:
    """The whole of it."""
    ledger = Ledger()
    watch = Watch(server.process.pid, ledger)
    await warm(server, args)
    before = Watch(server.process.pid, Ledger()).take()
    callers = Callers(server.http, server.grpc, ledger, args.seed)
    bad = BadInput(server.http, server.grpc, args.seed)
    trouble = Trouble(f"http://{server.http}", directory, callers, args.seed)
    mix = [Caller(one.name, one.rate * args.load, one.ask) for one in callers.all()]
    mix.append(Caller("bad input", 10 * args.load, bad.ask))
    until = time.monotonic() + args.minutes * 60
    jobs: list[Awaitable[None]] = [callers.drive(caller) for caller in mix]
    jobs += [watch.every(max(1.0, args.minutes * 60 / 600)), progress(watch, ledger, until)]
    running = [asyncio.ensure_future(job) for job in jobs]
    making = [asyncio.ensure_future(job) for job in trouble.all(args.pace)]
    try:
        while time.monotonic() < until:
            for task in (*running, *making):
                if task.done():
                    task.result()  # only ends by failing
            if server.process.poll() is not None:
                raise BenchError(f"the gateway ended with {server.process.returncode}")
            await asyncio.sleep(0.2)
        trouble.ended = True
        await asyncio.wait(making, timeout=120)  # a swap that has begun is finished
    finally:
        callers.ended = True
        for task in (*running, *making):
            task.cancel()
        await asyncio.gather(*running, *making, return_exceptions=True)
        await callers.close()
        await bad.close()
        await asyncio.to_thread(trouble.close)
    samples = list(watch.samples)
    await asyncio.sleep(args.rest)
    after = Watch(server.process.pid, Ledger()).take()
    found = verdicts.all_of(ledger, samples, before, after)
    notes = [
        f"{caller}: {end} {number:,}" for (caller, end), number in sorted(ledger.counts.items())
    ]
    return Soak(samples, trouble.events, found, notes=[*notes, *ledger.problems])


async def warm(server: Server, args: argparse.Namespace) -> None:
    """Each kind of request a few times, so that what is made once is there."""
    ledger = Ledger()
    callers = Callers(server.http, server.grpc, ledger, args.seed)
    tasks = [asyncio.ensure_future(callers.drive(caller)) for caller in callers.all()]
    await asyncio.sleep(min(5.0, args.rest))
    callers.ended = True
    await asyncio.gather(*tasks)
    await callers.close()
    if verdicts.bad_ends(ledger):
        raise BenchError(f"before the soak began: {ledger.problems[0]}")
    await asyncio.sleep(args.rest)


async def progress(watch: Watch, ledger: Ledger, until: float) -> None:
    """A line every ten seconds, on standard error."""
    while True:
        await asyncio.sleep(10)
        last: Sample = watch.samples[-1]
        p99 = "-" if last.p99_us is None else f"{last.p99_us / 1000:.1f} ms"
        print(
            f"{max(0.0, until - time.monotonic()):6.0f} s left  {ledger.total():9,} requests  "
            f"{verdicts.bad_ends(ledger)} bad  {ledger.total(End.KILLED)} killed  p99 {p99}  "
            f"{last.memory_mib:.1f} MiB  {last.descriptors} fds  {last.threads} threads",
            file=sys.stderr,
            flush=True,
        )


def run(args: argparse.Namespace, work: Path) -> int:
    """Starts the gateway, soaks it, writes the report; 1 when something did not hold."""
    if args.minutes <= 0 or args.pace <= 0 or args.load <= 0:
        raise BenchError("--minutes, --pace and --load must be above 0")
    directory = Directory(work / "models")
    with sluice.serve(args.sluice, directory.folder, work / "gateway", list(SETTINGS)) as server:
        found = asyncio.run(soak(server, directory, args))
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
    for name, text in report.files(found).items():
        (args.out / name).write_text(text)
    for note in found.notes:
        print(note)
    print(f"\n{args.minutes:g} minutes, {len(found.events)} events\n")
    for verdict in found.verdicts:
        word = "met" if verdict.passed else "MISS"
        print(f"{verdict.name:44} {verdict.found:>28}  allowed {verdict.allowed:14} {word}")
    print(f"\nwritten: {args.out}/soak.json and beside it")
    return int(not all(verdict.passed for verdict in found.verdicts))


def main() -> int:
    """Parses the command line and runs."""
    args = arguments().parse_args()
    signal.signal(signal.SIGTERM, ended)
    try:
        with tempfile.TemporaryDirectory(prefix="sluicegate-soak-") as work:
            return run(args, Path(work))
    except BenchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
