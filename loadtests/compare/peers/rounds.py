"""The rounds: each server in turn is started, measured in all its cells, and stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from loadtests.compare import bare, load, measure
from loadtests.compare.load import Shape
from loadtests.compare.models import Model
from loadtests.compare.peers import environments, oip
from loadtests.compare.peers.base import Peer
from loadtests.compare.peers.cells import BUSY, Cell, LeftOut, cells_of
from loadtests.compare.peers.outcome import BARE, LOOP, Outcome, Run
from loadtests.compare.processes import Server
from loadtests.compare.verify import Verdict, verifier
from loadtests.errors import BenchError

WARM_UP_S: Final = 0.3
CALIBRATE_S: Final = 0.5
"""At most: the first runs of a cell, which also say how many requests a run takes."""
TRY_S: Final = 0.3
"""Of each batch size of the bare loop."""
STARTS: Final = 2
"""Attempts to start a server, before the table says that it does not."""
SAME: Final = 0.001
"""How far apart the bytes of answers may be: a number in them may have a digit more."""
H2LOAD_S: Final = 120.0
"""A run of h2load that takes longer does not count."""


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """How long and how often. ``duration_s`` is about the length of one run, in seconds."""

    rounds: int
    duration_s: float
    threads: int
    environments: Path
    work: Path


@dataclass
class Subject:
    """A model file, and the file of rows and answers that the verifier knows of it."""

    model: Model
    pool: Path


@dataclass
class Runner:
    """Servers in rotated order, one at a time; nothing else runs meanwhile."""

    plan: Plan
    peers: Sequence[Peer]
    subjects: dict[str, Subject]
    with_bare: bool = True
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self._absent: set[tuple[str, str]] = set()
        self.broken = False
        self._requests: dict[tuple[str, str, str, int], int] = {}
        self._cells: dict[str, list[Cell]] = {}

    def run(self) -> Outcome:
        """Everything; the outcome is filled in as the rounds go."""
        ready = [peer for peer in self.peers if self._prepare(peer)]
        turns: list[Peer | None] = [*ready, *([None] if self.with_bare else [])]
        for number in range(1, self.plan.rounds + 1):
            first = (number - 1) % len(turns) if turns else 0
            for peer in turns[first:] + turns[:first]:
                if peer is None:
                    self._bare(number)
                else:
                    self._turn(peer, number)
        return self.outcome

    def _prepare(self, peer: Peer) -> bool:
        """Whether the server can be run; if not, the table says why."""
        reason = environments.missing(self.plan.environments, peer.name) or peer.extra()
        if not reason:
            folder = environments.environment(self.plan.environments, peer.name)
            try:
                self.outcome.versions[peer.name] = environments.versions(folder, peer.packages)
            except (BenchError, OSError, subprocess.SubprocessError) as error:
                reason = f"its environment cannot be used: {error}"
        if reason:
            self._give_up(peer.name, "", reason)
            return False
        self._cells[peer.name], left = cells_of(peer, list(self.subjects))
        self.outcome.left_out += left
        return bool(self._cells[peer.name])

    def _give_up(self, server: str, model: str, reason: str) -> None:
        self._absent.add((server, model))
        self.outcome.left_out.append(LeftOut(server, model, "", reason))
        say(f"{server} {model or 'all models'}: not measured: {reason}")

    def _groups(self, peer: Peer) -> Iterator[list[str]]:
        """The models of one start of the server."""
        names = list(dict.fromkeys(cell.model for cell in self._cells[peer.name]))
        if not peer.one_model:
            yield names
            return
        for name in names:
            yield [name]

    def _turn(self, peer: Peer, number: int) -> None:
        for names in self._groups(peer):
            which = names[0] if peer.one_model else ""
            if (peer.name, which) in self._absent:
                continue
            for attempt in range(1, STARTS + 1):
                reason = self._start(peer, names, number, f"{peer.name}-{number}-{which}-{attempt}")
                if not reason:
                    break
                say(f"round {number}  {peer.name} did not start, attempt {attempt}: {reason}")
            else:
                self.broken = True
                self._give_up(peer.name, which, f"round {number}: {reason}")

    def _start(self, peer: Peer, names: Sequence[str], number: int, work_name: str) -> str:
        """Starts, measures, stops; why the server did not start, or empty."""
        work = self.plan.work / work_name
        work.mkdir()
        say(f"round {number}  {peer.name} starts ({', '.join(names)})")
        models = [self.subjects[name].model for name in names]
        folder = environments.environment(self.plan.environments, peer.name)
        began = False
        try:
            with peer.serve(folder, models, work, self.plan.threads) as server:
                began = True
                self.outcome.ready_s.setdefault(peer.name, []).append(server.ready_s)
                for cell in self._cells[peer.name]:
                    if cell.model in names:
                        self._record(self._cell(server, cell, number))
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            if not began:
                return one_line(error)
            say(f"round {number}  {peer.name} did not stop well: {one_line(error)}")
        return ""

    def _cell(self, server: Server, cell: Cell, number: int) -> Run:
        """One run. Whatever keeps it from being made is its problem."""
        peer = next(peer for peer in self.peers if peer.name == cell.server)
        if server.process.poll() is not None:
            return failed(cell, number, f"the server had ended with {server.process.returncode}")
        try:
            return self._measured(server, cell, number, counter=peer.counter)
        except (BenchError, OSError, ValueError) as error:
            return failed(cell, number, one_line(error))

    def _measured(self, server: Server, cell: Cell, number: int, *, counter: bool) -> Run:
        plan, subject = self.plan, self.subjects[cell.model]
        name = server.models.get(cell.model, cell.model)
        address = server.grpc if cell.route.grpc else server.http
        with np.load(subject.pool) as arrays:
            row = arrays["rows"][:1]
        file = plan.work / "request.body"
        request = cell.route.encode(name, row)
        target = load.prepare(request, address, file, grpc=cell.route.grpc)
        with verifier(
            route_text(cell),
            address,
            name,
            subject.pool,
            rate=cell.verify_rate,
            max_rows=cell.verify_rows,
            exact=subject.model.exact,
        ) as checking:
            requests = self._warm_up(target, cell)
            one = load.run(target, Shape(1), 1, timeout_s=H2LOAD_S)
            before = measure.read_counter(server, name) if counter else None
            alone = cell.shape.concurrency == 1
            log = plan.work / "times.log" if alone else None
            checking.go()
            result = load.run(target, cell.shape, requests, timeout_s=H2LOAD_S, log=log)
            verdict = checking.stop()
        problems = measure.wrong(result, verdict, cell.verify_fewest)
        if cell.route.grpc:
            problems += lost(result, one.data_bytes)
        if before is not None:
            expected = (before.success or 0) + result.requests + verdict.sent
            after = measure.settled(server, name, expected)
            problems += measure.judge(result, verdict, before, after, cell.verify_fewest)[1]
        return made(cell, number, result, verdict, problems)

    def _warm_up(self, target: load.Target, cell: Cell) -> int:
        """Puts load on the server; returns how many requests a run takes."""
        plan, fewest = self.plan, max(cell.shape.concurrency, 2)
        known = self._requests.get(cell.key)
        if known is not None:
            few = max(int(known * WARM_UP_S / plan.duration_s), fewest)
            load.run(target, cell.shape, min(few, known), timeout_s=H2LOAD_S)
            return known
        seconds = min(CALIBRATE_S, plan.duration_s)
        rate = load.calibrate(target, cell.shape, seconds=seconds, timeout_s=H2LOAD_S, first=2)
        self._requests[cell.key] = known = max(int(rate * plan.duration_s), fewest)
        return known

    def _bare(self, number: int) -> None:
        """One row a call for the latency, the best batch for the rate."""
        for name, subject in self.subjects.items():
            path, threads = subject.model.path, self.plan.threads
            if name not in self.outcome.batches:
                self.outcome.batches[name] = best_batch(path, threads)
            for batch, concurrency in ((1, 1), (self.outcome.batches[name], BUSY[name])):
                loop = bare.measure(path, threads, batch, self.plan.duration_s)
                times = loop.mean_us, loop.p50_us, loop.p99_us
                rate = loop.rows_per_second
                self._record(Run(BARE, name, LOOP, "", concurrency, number, rate, *times))

    def _record(self, run: Run) -> None:
        self.outcome.runs.append(run)
        name = "{} {}/{} c={}".format(*run.key)
        text = f"round {run.round}  {name:<36} {run.rate:10,.1f}/s  mean {run.mean_us:10,.0f} us"
        say(text + "".join(f"\n    does not count: {problem}" for problem in run.problems))


def best_batch(path: Path, threads: int) -> int:
    """The batch size with the most rows a second."""
    found = {size: bare.rows_per_second(path, threads, size, TRY_S) for size in bare.BATCHES}
    return max(found, key=lambda size: found[size])


def lost(result: load.Result, each: int) -> list[str]:
    """Whether some answers had no tensors: h2load takes a gRPC error for a success.

    ``each`` is how many bytes one answer has.
    """
    expected = result.requests * each
    if each and abs(result.data_bytes - expected) <= expected * SAME:
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
    )


def failed(cell: Cell, number: int, problem: str) -> Run:
    """A run that could not be made."""
    return made(cell, number, load.Result(0), Verdict(), [problem])


def one_line(error: BaseException, most: int = 300) -> str:
    """An error's text on one line; the beginning and the end of a long one."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
