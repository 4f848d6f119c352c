"""All cells, all contenders, round by round."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loadtests.errors import BenchError

from . import bare, load, models
from .cells import Cell
from .measure import Contender, Run, Subject, measure, measure_bare
from .processes import Server
from .sluice import NAME as SLUICE

WARM_UP_S = 0.3
"""Seconds of load before each run."""


@dataclass(frozen=True)
class Plan:
    """How long and how often. ``duration_s`` is about the length of one run, in seconds."""

    rounds: int
    duration_s: float
    threads: int
    work: Path


@dataclass
class Outcome:
    """Every run, and for cells that could not be run at all, why."""

    runs: list[Run] = field(default_factory=list)
    percentile_runs: list[Run] = field(default_factory=list)
    bare_batches: dict[int, float] = field(default_factory=dict)
    """Batch size → rows a second of the bare loop."""


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def make_subjects(names: Iterable[str], work: Path, threads: int) -> dict[str, Subject]:
    """The model files, and a file of rows and answers for each."""
    subjects = {}
    for name in names:
        model = models.make(name, work / "models")
        rows, answers = models.samples(model, threads=threads)
        pool = work / f"{name}.npz"
        np.savez(pool, rows=rows, answers=answers)
        subjects[name] = Subject(model, pool)
    return subjects


class Runner:
    """Prepares each contender of each cell once, then runs the rounds."""

    def __init__(self, plan: Plan, subjects: dict[str, Subject]) -> None:
        self._plan = plan
        self._subjects = subjects
        self.outcome = Outcome()

    def run(self, cells: Sequence[Cell], ours: Server | None, triton: Server | None) -> Outcome:
        """Interleaves: in every round every cell, in every cell every contender in turn."""
        line_up = {cell.name: self._contenders(cell, ours, triton) for cell in cells}
        for cell in cells:
            line_up[cell.name] = [who for who in line_up[cell.name] if self._prepare(who, cell)]
        for number in range(1, self._plan.rounds + 1):
            for cell in cells:
                turn = line_up[cell.name]
                first = number % len(turn) if turn else 0
                for who in turn[first:] + turn[:first]:
                    self._one(who, cell, number)
        return self.outcome

    def compare_models(self, cell: Cell, sides: Sequence[Contender]) -> Outcome:
        """The same cell on any contenders, for figures outside the table."""
        ready = [who for who in sides if self._prepare(who, cell)]
        for number in range(1, self._plan.rounds + 1):
            for who in ready:
                self._one(who, cell, number)
        return self.outcome

    def _contenders(
        self, cell: Cell, ours: Server | None, triton: Server | None
    ) -> list[Contender]:
        found = [Contender(SLUICE, ours, cell.model)] if ours else []
        if cell.rival == "bare":
            found.append(Contender("bare", None, cell.model))
        elif triton:
            for instances in (1, 2):
                label = f"triton {instances}x"
                found.append(Contender(label, triton, f"{cell.model}_{instances}x"))
        return found

    def _prepare(self, who: Contender, cell: Cell) -> bool:
        """Sizes the contender's runs; ``False`` (and an invalid run) if it cannot be run."""
        subject = self._subjects[cell.model]
        if who.server is None:
            if not self.outcome.bare_batches:
                seconds = min(1.5, self._plan.duration_s)
                _, rates = bare.best_batch(subject.model.path, self._plan.threads, seconds)
                self.outcome.bare_batches = rates
            rates = self.outcome.bare_batches
            who.batch = max(rates, key=lambda batch: rates[batch])
            return True
        with np.load(subject.pool) as arrays:
            row = arrays["rows"][:1]
        file = self._plan.work / f"{cell.name}-{who.label}.body".replace("/", "-")
        addresses = (who.server.http, who.server.grpc)
        who.target = load.target(cell.protocol, addresses, who.model, row, file)
        try:
            rate = load.calibrate(
                who.target, cell.shape, seconds=min(1.0, self._plan.duration_s), timeout_s=60
            )
        except BenchError as error:
            self._record(Run(cell.name, who.label, 0, load.Result(0), 0.0, problems=[str(error)]))
            return False
        who.requests = max(int(rate * self._plan.duration_s), 2 * cell.shape.concurrency)
        return True

    def _one(self, who: Contender, cell: Cell, number: int) -> None:
        plan, subject = self._plan, self._subjects[cell.model]
        if who.server is None:
            seconds, threads = plan.duration_s, plan.threads
            self._record(measure_bare(who, cell, subject, number, seconds=seconds, threads=threads))
            return
        assert who.target is not None
        warm_up = max(int(who.requests * WARM_UP_S / plan.duration_s), cell.shape.concurrency)
        load.run(who.target, cell.shape, warm_up, timeout_s=60)
        log = plan.work / "times.log"
        # At c=1 the log costs the generator 1 % of a request; elsewhere it gets its own run.
        alone = cell.shape.concurrency == 1
        run = measure(who, cell, subject, number, log=log if alone else None)
        self._record(run)
        if cell.percentiles and run.valid:
            whole, who.requests = who.requests, max(who.requests // 3, cell.shape.concurrency)
            logged = measure(who, cell, subject, number, log=log)
            who.requests = whole
            self.outcome.percentile_runs.append(logged)

    def _record(self, run: Run) -> None:
        self.outcome.runs.append(run)
        text = f"round {run.round}  {run.cell:<20} {run.contender:<11}"
        text += f" {run.rate:10,.0f}/s"
        if not math.isnan(run.result.mean_us):
            text += f"  mean {run.result.mean_us:8,.0f} us"
        say(text + "".join(f"\n    does not count: {problem}" for problem in run.problems))
