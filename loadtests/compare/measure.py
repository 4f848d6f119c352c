"""One run of one cell on one server, and whether it counts."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import bare, load
from .cells import Cell
from .models import Model
from .processes import Server, get
from .verify import Verdict, verifier

_SAMPLE = re.compile(rb"^(nv_inference_request_(?:success|failure))\{([^}]*)\} +([\d.eE+]+)", re.M)


@dataclass(frozen=True)
class Subject:
    """A model file, and the rows and answers that the verifier knows of it."""

    model: Model
    pool: Path


@dataclass
class Contender:
    """One side of a cell: a model on a server, or the bare loop (``server`` is ``None``)."""

    label: str
    server: Server | None
    model: str
    """The name the model has there."""
    target: load.Target | None = None
    requests: int = 0
    """Requests of one run, sized so that it takes the time asked for."""
    batch: int = 1
    """Rows of one call of the bare loop."""


@dataclass
class Run:
    """What one run gave. ``rate`` is requests/s, or rows/s of every caller for a bare cell."""

    cell: str
    contender: str
    round: int
    result: load.Result
    rate: float
    verdict: Verdict = field(default_factory=Verdict)
    counted: int | None = None
    """By how much the server's own success counter rose."""
    problems: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether the run counts."""
        return not self.problems


@dataclass(frozen=True)
class Counter:
    """The server's own count of requests of one model; ``success`` is ``None`` if not shown."""

    success: int | None
    failure: int


def read_counter(server: Server, model: str, version: str = "1") -> Counter:
    """Reads the Prometheus text."""
    _, text = get(server.metrics, "/metrics")
    return parse_counter(text, model, version)


def parse_counter(text: bytes, model: str, version: str) -> Counter:
    """``nv_inference_request_success`` and ``_failure`` of one model, labels added up."""
    wanted = {f'model="{model}"'.encode(), f'version="{version}"'.encode()}
    success: int | None = None
    failure = 0
    for name, labels, value in _SAMPLE.findall(text):
        if not wanted <= {label.strip() for label in labels.split(b",")}:
            continue
        if name.endswith(b"success"):
            success = (success or 0) + int(float(value))
        else:
            failure += int(float(value))
    return Counter(success, failure)


def settled(server: Server, model: str, expected: int, wait_s: float = 3.0) -> Counter:
    """The counter once it reached ``expected``, or what it is after ``wait_s`` seconds.

    A server may count a request a moment after it has answered it.
    """
    until = time.perf_counter() + wait_s
    while True:
        now = read_counter(server, model)
        if (now.success or 0) >= expected or time.perf_counter() > until:
            return now
        time.sleep(0.1)


def wrong(result: load.Result, verdict: Verdict, fewest: int = 2) -> list[str]:
    """Every reason why h2load or the verifier say that the run does not count.

    ``fewest``: answers that must have been verified.
    """
    problems = result.problems()
    if verdict.mismatches or verdict.errors:
        problems.append(
            f"verifier: {verdict.mismatches} mismatches and {verdict.errors} errors in "
            f"{verdict.sent} requests ({verdict.first_problem})"
        )
    elif verdict.sent < fewest:
        problems.append(f"verifier: only {verdict.sent} requests in the time of the run")
    return problems


def judge(
    result: load.Result, verdict: Verdict, before: Counter, after: Counter, fewest: int = 2
) -> tuple[int | None, list[str]]:
    """By how much the counter rose, and every reason why the run does not count."""
    problems = wrong(result, verdict, fewest)
    if after.success is None:
        return None, [*problems, "the server shows no nv_inference_request_success for the model"]
    rise = after.success - (before.success or 0)
    if rise != (expected := result.requests + verdict.sent):
        problems.append(
            f"the server counted {rise} successes, not {expected} "
            f"({result.requests} of h2load, {verdict.sent} of the verifier)"
        )
    if after.failure != before.failure:
        problems.append(f"the server counted {after.failure - before.failure} failures")
    return rise, problems


def measure(
    who: Contender, cell: Cell, subject: Subject, number: int, *, log: Path | None = None
) -> Run:
    """Runs h2load and the verifier side by side and holds both against the server's counter."""
    assert who.server is not None and who.target is not None
    address = who.server.grpc if cell.protocol == "grpc" else who.server.http
    before = read_counter(who.server, who.model)
    with verifier(
        cell.protocol,
        address,
        who.model,
        subject.pool,
        rate=cell.verify_rate,
        max_rows=cell.verify_rows,
        exact=subject.model.exact,
    ) as checking:
        checking.go()
        result = load.run(who.target, cell.shape, who.requests, timeout_s=180, log=log)
        verdict = checking.stop()
    expected = (before.success or 0) + result.requests + verdict.sent
    after = settled(who.server, who.model, expected)
    rise, problems = judge(result, verdict, before, after)
    rate = result.per_second
    if cell.rival == "bare":
        rate = (result.requests + verdict.rows) / result.seconds
    return Run(cell.name, who.label, number, result, rate, verdict, rise, problems)


def measure_bare(
    who: Contender, cell: Cell, subject: Subject, number: int, *, seconds: float, threads: int
) -> Run:
    """Runs the bare loop for as long as a server would be measured."""
    rate = bare.rows_per_second(subject.model.path, threads, who.batch, seconds)
    result = load.Result(int(rate * seconds), seconds, rate)
    return Run(cell.name, who.label, number, result, rate)
