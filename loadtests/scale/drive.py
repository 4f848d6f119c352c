"""What every study works with: the gateway's command, a folder, time; and closed-loop load.

The load is h2load's (`loadtests.compare.load`): it costs a few µs a request, where a client in
Python would cost as much as the gateway and hide what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from loadtests.compare import load, sluice
from loadtests.compare.processes import Server
from loadtests.errors import BenchError
from loadtests.scale.processes import children_cpu, cpu_seconds, machine_cpu
from loadtests.scale.study import Study

BUSY: Final = 0.9
"""Cores from which on h2load, which has one thread, is what limits the rate."""
LONGEST_RUN_S: Final = 60.0
GOOD: Final = 0.97
"""Share of the bytes of good answers that must have come: versions' numbers differ in length."""
READINGS: Final = 3
"""Of one size, so that it is known how much they differ by chance."""


@dataclass
class Bench:
    """What a study is given."""

    command: str
    """What starts the gateway; ``DIR --http ADDRESS --grpc ADDRESS`` is added."""
    work: Path
    quick: bool = False
    """A smoke run: a few small sizes, a fraction of a second each."""
    budget_s: float = 120.0
    """Seconds for one study; sizes that are not begun by then are left out, and it says so."""
    say: Callable[[str], None] = print
    _began: float = field(default_factory=time.monotonic)
    _servers: int = 0

    def begin(self, budget_s: float) -> None:
        """The clock of a study starts."""
        self._began, self.budget_s = time.monotonic(), budget_s

    @property
    def seconds(self) -> float:
        """How long one run takes, about."""
        return 0.15 if self.quick else 1.2

    @property
    def over(self) -> bool:
        """Whether the study's time is over."""
        return time.monotonic() - self._began > self.budget_s

    def within(self, study: Study, sizes: Sequence[int], what: str = "") -> Iterator[int]:
        """The sizes, for as long as there is time; a note names those that are left out."""
        for at, size in enumerate(sizes):
            if self.over:
                left = ", ".join(f"{each:,}" for each in sizes[at:])
                study.skipped.append(
                    f"{what or study.size}: {left} not measured, {self.budget_s:.0f} s were over"
                )
                return
            self.say(f"{study.name}: {what or study.size} {size:,}")
            yield size

    def serve(
        self, directory: Path, names: Sequence[str] = (), options: str = ""
    ) -> AbstractContextManager[Server]:
        """A running gateway in its default configuration, but for ``options``."""
        self._servers += 1
        return sluice.serve(
            f"{self.command} {options}".strip(),
            directory,
            self.work / f"gateway-{self._servers}",
            names,
            ready_timeout_s=300,
            stop_grace_s=1.0,
        )


@dataclass(frozen=True)
class Driven:
    """One closed-loop run. Cores are averages over the run."""

    rate: float
    """Requests/s."""
    mean_us: float
    p99_us: float | None
    client: float
    server: float
    others: float = 0.0
    """Cores that other processes of the machine used."""
    opening_us: float | None = None
    """Until each connection was answered once; only of a run that is measured from there on."""
    cpu_s: float = 0.0
    """The server's processor time, in seconds."""
    requests: int = 0

    @property
    def cpu_us(self) -> float:
        """The server's processor time a request, in µs: it depends less on what else the machine
        does than the rate."""
        return self.server / self.rate * 1e6

    @property
    def bottleneck(self) -> bool:
        """Whether the rate is the client's more than the server's."""
        return self.client >= BUSY


def drive(
    server: Server,
    what: load.Target,
    shape: load.Shape,
    seconds: float,
    *,
    log: Path | None = None,
    readings: int = READINGS,
    each: int = 0,
) -> list[Driven]:
    """Posts ``what`` for about ``seconds``, in so many runs, after a short calibration that warms
    up.

    With ``each`` every request in flight is followed by so many at least, and rates, latencies and
    processor time are those of connections that are there: what it took to make them is left out.
    With ``log`` (a file to be used for it) the 99th percentile is known, and the mean is that of
    single requests. Raises `BenchError` for a run in which not every answer was a good one.
    """
    rough = load.calibrate(what, shape, seconds=seconds / 4, timeout_s=LONGEST_RUN_S)
    requests = max(int(rough * seconds / readings), shape.concurrency, 1)
    # h2load takes a gRPC error for a success; it has no body.
    one = 0 if "--h1" in what.options else load.run(what, load.Shape(1), 1, timeout_s=60).data_bytes
    if not each:
        return [_one(server, what, shape, requests, log, one) for _ in range(readings)]
    requests = max(requests, each * shape.concurrency)
    found = []
    for _ in range(readings):
        opening = _one(server, what, shape, shape.concurrency, None, one)
        driven = _one(server, what, shape, requests, log, one, settled=log is not None)
        used = max(driven.cpu_s - opening.cpu_s, 0.0)
        rest = requests - shape.concurrency
        found.append(replace(driven, server=used / rest * driven.rate))
    return found


def _one(
    server: Server,
    what: load.Target,
    shape: load.Shape,
    requests: int,
    log: Path | None,
    answer: int,
    *,
    settled: bool = False,
) -> Driven:
    before, client = cpu_seconds(server.process.pid), children_cpu()
    everything, began = machine_cpu(), time.monotonic()
    result = load.run(what, shape, requests, timeout_s=LONGEST_RUN_S, log=log, settled=settled)
    client, used = children_cpu() - client, cpu_seconds(server.process.pid) - before
    if problems := result.problems():
        raise BenchError(f"{what.url}: {'; '.join(problems)}")
    if result.data_bytes < GOOD * answer * requests:
        raise BenchError(
            f"{what.url}: with {shape.concurrency} in flight, "
            f"{1 - result.data_bytes / (answer * requests):.0%} of the answers were errors"
        )
    others = max(machine_cpu() - everything - client - used, 0.0)
    took = max(result.seconds, 1e-6)
    return Driven(
        result.per_second,
        result.mean_us,
        result.p99_us,
        client / took,
        used / took,
        others / max(time.monotonic() - began, took),
        result.opening_us,
        used,
        requests,
    )


def note_run(study: Study, what: str, found: Sequence[Driven]) -> None:
    """Says in the study where the client was the limit, and what else the machine did."""
    for driven in found:
        study.others = max(study.others, driven.others)
        if driven.bottleneck and what not in study.limited:
            study.limited.append(what)
