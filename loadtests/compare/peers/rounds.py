"""The rounds: each server in turn is started, measured in all its cells, and stopped."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from loadtests.compare import bare, load, machine, measure
from loadtests.compare.load import Shape
from loadtests.compare.models import Model
from loadtests.compare.peers import environments
from loadtests.compare.peers.base import Peer
from loadtests.compare.peers.cells import BUSY, SCORING, Cell, LeftOut, cells_of
from loadtests.compare.peers.launch import START_S
from loadtests.compare.peers.outcome import BARE, LOOP, Outcome, Run
from loadtests.compare.peers.runs import (
    PROBE_S,
    addressed,
    enough,
    failed,
    lost,
    made,
    named,
    one_line,
    route_text,
)
from loadtests.compare.processes import Server
from loadtests.compare.verify import verifier
from loadtests.errors import BenchError
from loadtests.kernel import cores

STEADY: Final = 0.1
"""Warm: two of them one after the other differ by less than this share."""
WARM_MOST_S: Final = 3.0
"""A cell is warmed up for this long at most; after that it is what it is."""
TRY_S: Final = 0.3
"""Of each batch size of the bare loop."""
STARTS: Final = 2
"""Attempts to start a server, before the table says that it does not."""
H2LOAD_S: Final = 60.0
"""A run of h2load that takes longer does not count."""
OVER: Final = "its turn took too long"
STOP_S: Final = 30.0
"""What a turn has for a stop of the server."""
CELL_S: Final = 4.0
"""What a turn has for a cell beside the run itself."""


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
    every_route: bool = True
    """Or only the fastest of each server, and some JSON."""


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
        self._requests: dict[tuple[str, str, str, int, str], int] = {}
        self._cells: dict[str, list[Cell]] = {}
        self._until = math.inf

    def run(self) -> Outcome:
        """Everything; the outcome is filled in as the rounds go."""
        ready = [peer for peer in self.peers if self._prepare(peer)]
        turns: list[Peer | None] = [*ready, *([None] if self.with_bare else [])]
        for number in range(1, self.plan.rounds + 1):
            first = (number - 1) % len(turns) if turns else 0
            began = time.perf_counter()
            for peer in turns[first:] + turns[:first]:
                if peer is None:
                    self._bare(number)
                else:
                    self._turn(peer, number)
            say(f"round {number} took {time.perf_counter() - began:.0f} s")
        return self.outcome

    def _prepare(self, peer: Peer) -> bool:
        """Whether the server can be run; if not, the table says why."""
        reason = environments.missing(self.plan.environments, peer.name) or peer.extra()
        if not reason and peer.packages:
            folder = environments.environment(self.plan.environments, peer.name)
            try:
                self.outcome.versions[peer.name] = environments.versions(folder, peer.packages)
            except (BenchError, OSError, subprocess.SubprocessError) as error:
                reason = f"its environment cannot be used: {error}"
        if reason:
            self._give_up(peer.name, "", reason)
            return False
        cells, left = cells_of(peer, list(self.subjects), every=self.plan.every_route)
        routes = [route for each in self.peers for route in each.routes]
        if not self.plan.every_route and all(route.like != SCORING for route in routes):
            cells = [cell for cell in cells if cell.route.name != SCORING]
            left = [each for each in left if each.route != SCORING]
        self._cells[peer.name] = cells
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
        """All starts of one server. What is not done by the end of its time is not done at all."""
        groups = list(self._groups(peer))
        cells = len(self._cells[peer.name])
        limit_s = len(groups) * (START_S + STOP_S) + cells * (self.plan.duration_s + CELL_S)
        self._until = time.perf_counter() + limit_s
        for names in groups:
            which = names[0] if peer.one_model else ""
            if (peer.name, which) in self._absent:
                continue
            reasons: list[str] = []
            for attempt in range(1, STARTS + 1):
                work_name = f"{peer.name}-{number}-{which}-{attempt}"
                reason = OVER if self._is_over() else self._start(peer, names, number, work_name)
                if not reason:
                    break
                reasons.append(reason)
                say(f"round {number}  {peer.name} did not start, attempt {attempt}: {reason}")
            else:
                self.broken = True
                self._give_up(peer.name, which, f"round {number}: {reasons[0]}")
                continue
            self.outcome.notes += [
                f"round {number}: {peer.name} {which} did not start at first ({reason}), then did"
                for reason in reasons
            ]
            if self._is_over():
                self.broken = True
                self._give_up(peer.name, which, f"behind round {number}: {OVER}")

    def _is_over(self) -> bool:
        return time.perf_counter() > self._until

    def _limit_s(self) -> float:
        """For one run of h2load."""
        return max(1.0, min(H2LOAD_S, self._until - time.perf_counter()))

    def _start(self, peer: Peer, names: Sequence[str], number: int, work_name: str) -> str:
        """Starts, measures, stops; why the server did not start, or empty."""
        work = self.plan.work / work_name
        work.mkdir()
        say(f"round {number}  {peer.name} starts ({', '.join(names)})")
        models = [self.subjects[name].model for name in names]
        folder = environments.environment(self.plan.environments, peer.name)
        cells = [cell for cell in self._cells[peer.name] if cell.model in names]
        began = False
        try:
            with peer.serve(folder, models, work, self.plan.threads) as server:
                began = True
                self.outcome.ready_s.setdefault(peer.name, []).append(server.ready_s)
                if not peer.packages:
                    self.outcome.versions[peer.name] = {"says": machine.server_version(server)}
                self._warm_all(server, cells, peer.warm_s)
                for cell in cells:
                    self._record(self._cell(server, cell, number))
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            if not began:
                return one_line(error)
            say(f"round {number}  {peer.name} did not stop well: {one_line(error)}")
        return ""

    def _warm_all(self, server: Server, cells: Sequence[Cell], seconds: float) -> None:
        """Puts load on every model; what fails here is left to the cell to say."""
        first = {(cell.model, cell.variant): cell for cell in reversed(cells)}
        for cell in first.values():
            target, spent, requests = self._target(server, cell), 0.0, cell.shape.concurrency
            while spent < seconds and not self._is_over():
                result = load.run(target, cell.shape, requests, timeout_s=self._limit_s())
                if result.problems():
                    break
                spent += result.seconds
                requests = enough(result, cell)

    def _cell(self, server: Server, cell: Cell, number: int) -> Run:
        """One run. Whatever keeps it from being made is its problem."""
        peer = next(peer for peer in self.peers if peer.name == cell.server)
        if server.process.poll() is not None:
            return failed(cell, number, f"the server had ended with {server.process.returncode}")
        if self._is_over():
            return failed(cell, number, OVER)
        try:
            return self._measured(server, cell, number, counter=peer.counter)
        except (BenchError, OSError, ValueError) as error:
            return failed(cell, number, one_line(error))

    def _measured(self, server: Server, cell: Cell, number: int, *, counter: bool) -> Run:
        plan, subject = self.plan, self.subjects[cell.model]
        name, address = named(server, cell), addressed(server, cell)
        target = self._target(server, cell)
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
            one = None
            if cell.route.grpc:
                one = load.run(target, Shape(1), 1, timeout_s=self._limit_s())
            before = measure.read_counter(server, name) if counter else None
            alone = cell.shape.concurrency == 1
            log = plan.work / "times.log" if alone else None
            checking.go()
            result = load.run(target, cell.shape, requests, timeout_s=self._limit_s(), log=log)
            verdict = checking.stop()
        problems = measure.wrong(result, verdict, cell.verify_fewest)
        if one is not None:
            problems += lost(result, one.data_bytes)
        if before is not None:
            expected = (before.success or 0) + result.requests + verdict.sent
            after = measure.settled(server, name, expected)
            problems += measure.judge(result, verdict, before, after, cell.verify_fewest)[1]
        return made(cell, number, result, verdict, problems)

    def _target(self, server: Server, cell: Cell) -> load.Target:
        with np.load(self.subjects[cell.model].pool) as arrays:
            row = arrays["rows"][:1]
        request = cell.route.encode(named(server, cell), row)
        file = self.plan.work / "request.body"
        return load.prepare(request, addressed(server, cell), file, grpc=cell.route.grpc)

    def _warm_up(self, target: load.Target, cell: Cell) -> int:
        """Puts load on the server until its rate is steady; returns how many requests a run takes.

        Raises `BenchError` where an answer is missing.
        """
        requests, spent, before = 2 * cell.shape.concurrency, 0.0, 0.0
        while True:
            result = load.run(target, cell.shape, requests, timeout_s=self._limit_s())
            if result.problems():
                raise BenchError(f"{target.url}: {'; '.join(result.problems())}")
            spent, rate = spent + result.seconds, result.per_second
            steady = abs(rate - before) <= STEADY * rate
            if steady or spent >= WARM_MOST_S:
                break
            before = rate if result.seconds >= PROBE_S / 2 else 0.0
            requests = enough(result, cell)
        known = max(int(rate * self.plan.duration_s), cell.shape.concurrency, 2)
        return self._requests.setdefault(cell.key, known)

    def _bare(self, number: int) -> None:
        """One row a call of one loop for the latency, the best batch of a loop a core for the
        rate."""
        for name, subject in self.subjects.items():
            path, threads = subject.model.path, self.plan.threads
            if name not in self.outcome.batches:
                with np.load(subject.pool) as arrays:
                    size = arrays["rows"][0].nbytes
                self.outcome.batches[name], _ = bare.best_batch(
                    path, threads, TRY_S, row_bytes=size, loops=cores(), passes=1
                )
            best = self.outcome.batches[name]
            for batch, concurrency, loops in ((1, 1, 1), (best, BUSY[name], cores())):
                loop = bare.measure(path, threads, batch, self.plan.duration_s, loops)
                times = loop.mean_us, loop.p50_us, loop.p99_us
                rate = loop.rows_per_second
                self._record(Run(BARE, name, LOOP, "", concurrency, number, rate, *times))

    def _record(self, run: Run) -> None:
        self.outcome.runs.append(run)
        name = "{}{} {}/{} c={}".format(run.server, run.variant, *run.key[1:])
        text = f"round {run.round}  {name:<36} {run.rate:10,.1f}/s  mean {run.mean_us:10,.0f} us"
        say(text + "".join(f"\n    does not count: {problem}" for problem in run.problems))
