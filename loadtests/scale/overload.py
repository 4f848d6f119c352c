"""What happens above capacity: goodput, latency of what is accepted, memory.

A server that is offered more than it can do should do as much as it can, answer what it takes
nearly as fast as before, and refuse the rest early. Capacity is the better of two closed loops of
h2load that keep the server busy; then requests leave at independent times (open loop, Poisson), at
0.5 to 3 times that rate, whether or not answers come. What was measured while the client was the
bottleneck, or while the server was not overloaded at all, is no verdict on the server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from gateway.codecs.messages import ModelInferRequest
from loadtests.bench.plan import Load, Protocol, Target
from loadtests.bench.point import run_point
from loadtests.bench.results import Point
from loadtests.compare import load, sluice, wire
from loadtests.compare.models import make_add
from loadtests.compare.processes import Server, resident_bytes
from loadtests.errors import BenchError
from loadtests.kernel import cores
from loadtests.payloads.base import Wire
from loadtests.scale import pinned
from loadtests.scale import study as names
from loadtests.scale.drive import Bench, drive
from loadtests.scale.processes import peak_bytes, reset_peak
from loadtests.scale.study import OFFERED, Check, Study
from loadtests.scale.waiting import drained

LEVELS: Final = (0.5, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0)
QUICK: Final = (0.5, 0.8, 2.0)
REFERENCE: Final = 0.8
"""The level whose 99th percentile the others are held against."""
GOODPUT: Final = 0.9
TAIL: Final = 2.0
MEMORY: Final = 1.5
FALLS: Final = 0.95
"""Share of what is offered that, where less is answered well, is too little for chance."""
BUDGET_S: Final = 290.0
CONNECTIONS: Final = 16
"""A server allows so many streams on each (1,024, say); together they must be more than what it
lets wait, or else requests would wait in the client."""
REFUSALS: Final = frozenset({"429", "RESOURCE_EXHAUSTED"})
"""Answered early and plainly: what should happen to what is too much."""
LATE: Final = frozenset({"504", "DEADLINE_EXCEEDED"})
"""Of requests with a deadline: it passed while they waited."""
MIB: Final = 2**20

SLEEPER: Final = '''"""Takes 4 ms a batch and 1 ms a row, and no processor for it, as with a GPU."""

import time


class Sleeper:
    signature = {"inputs": {"x": ("FP32", [-1, 4])}, "outputs": {"y": ("FP32", [-1, 4])}}

    def infer(self, inputs):
        time.sleep(0.004 + 0.001 * len(inputs["x"]))
        return {"y": inputs["x"] + 1}
'''

RunPoint = Callable[[Target, Load, Sequence[Wire]], Point]


@dataclass(frozen=True)
class Scenario:
    """A model under load."""

    name: str
    """Of the study and its files."""
    title: str
    model: str
    busy: int
    """Requests in flight that keep the server busy; a multiple of `CONNECTIONS`."""
    deadline_ms: int = 0
    """That callers give with each request; 0: none."""


SCENARIOS: Final = (
    Scenario("overload-model", "Overload, the model dominates", "sleeper", 256),
    Scenario(
        "overload-model-deadline",
        "Overload, the model dominates, callers have a deadline of 250 ms",
        "sleeper",
        256,
        250,
    ),
    Scenario("overload-server", "Overload, the server dominates", "add", 256),
    Scenario(
        "overload-server-deadline",
        "Overload, the server dominates, callers have a deadline of 100 ms",
        "add",
        256,
        100,
    ),
)


def write(folder: Path) -> Path:
    """Both models."""
    models = folder / "models"
    sluice.write_directory(models, [make_add(folder / "add.onnx")], 1)
    version = models / "sleeper" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(SLEEPER)
    return models


def payload(scenario: Scenario) -> Wire:
    """One row over gRPC; the deadline as the protocol's own parameter, in µs."""
    rows = np.zeros((1, 4), np.float32)
    message = ModelInferRequest.FromString(wire.grpc_request(scenario.model, rows))
    if scenario.deadline_ms:
        message.parameters["timeout"].int64_param = scenario.deadline_ms * 1000
    return Wire(wire.GRPC_INFER_PATH, message.SerializeToString())


@dataclass
class Level:
    """One offered load, and what came of it."""

    offered: float
    point: Point
    memory: int
    """Largest resident memory, in bytes."""

    @property
    def p99_us(self) -> float:
        """Of what was answered well: from when it was due, unless the client was too late to
        send, which is not the server's doing."""
        of = self.point.service if self.point.client.bottleneck else self.point.latency
        return of.at(99) if of.count else 0.0

    def share(self, kinds: frozenset[str]) -> float:
        """Of the requests, those that ended so."""
        ended = sum(count for kind, count in self.point.errors.items() if kind in kinds)
        return ended / max(self.point.sent, 1)


def measure(bench: Bench, run: RunPoint = run_point) -> list[Study]:
    """One study a scenario."""
    models = write(bench.work / "overload")
    found = []
    with divided(bench) as halves:
        share = bench.budget_s / len(SCENARIOS)
        for scenario in SCENARIOS:
            bench.begin(share)
            study = Study(scenario.name, scenario.title, OFFERED)
            found.append(study)
            with bench.serve(models, [scenario.model]) as server:
                before = resident_bytes(server.process.pid)
                bench.say(f"{study.name}: capacity")
                limit = find(bench, study, scenario, server)
                levels = _levels(bench, study, scenario, server, run) if study.capacity else []
            fill(study, levels, before, limit, deadline=bool(scenario.deadline_ms))
            study.note(
                f"Capacity: {study.capacity:,.0f} requests/s, by h2load ({scenario.busy} in "
                f"flight). {halves}"
            )
            if scenario.deadline_ms:
                study.note("The deadline is the request's parameter `timeout`.")
    return found


@contextmanager
def divided(bench: Bench) -> Iterator[str]:
    """The gateway on one half of the cores and the client on the other; says so."""
    halves = pinned.halves()
    command = bench.command
    if halves is not None:
        bench.command = pinned.command(halves[0], command)
    try:
        with pinned.on(halves[1]) if halves is not None else nullcontext():
            yield (
                "The client shares the cores with the gateway."
                if halves is None
                else f"The gateway has {len(halves[0])} core(s), the client the other "
                f"{len(halves[1])}."
            )
    finally:
        bench.command = command


def capacity(bench: Bench, scenario: Scenario, server: Server) -> tuple[float, str]:
    """Requests/s of the better of two closed loops, and why it is the client's rather than the
    server's; empty: it is not. Raises `BenchError` where not every answer is a good one."""
    rows = np.zeros((1, 4), np.float32)
    addresses = server.http, server.grpc
    what = load.target("grpc", addresses, scenario.model, rows, bench.work / "body")
    shape = load.Shape(CONNECTIONS, scenario.busy // CONNECTIONS)
    found = drive(server, what, shape, 1.0 if bench.quick else 4.0, readings=2)
    best = max(found, key=lambda each: each.rate)
    if not best.bottleneck:
        return best.rate, ""
    return best.rate, f"h2load used {best.client:.2f} cores when the capacity was found"


def find(bench: Bench, study: Study, scenario: Scenario, server: Server) -> str:
    """Writes the capacity into the study; why it is not the server's, or nothing."""
    try:
        study.capacity, why = capacity(bench, scenario, server)
    except BenchError as error:
        return f"no capacity was found: {error}"
    if why:
        study.limited.append("finding the capacity")
    return why


def _levels(
    bench: Bench, study: Study, scenario: Scenario, server: Server, run: RunPoint
) -> list[Level]:
    """Every level of load."""
    target = Target(scenario.model, Protocol.GRPC, f"http://{server.http}", server.grpc)
    wires = [payload(scenario)]
    # Overload is noticed by a queue that goes on growing for a second or so.
    seconds, warmup = (1.0, 1.5) if bench.quick else (4.0, 2.0)
    levels: list[Level] = []
    worst = ""
    for offered in LEVELS if not bench.quick else QUICK:
        if bench.over:
            study.skipped.append(
                f"{offered:g} and above not measured: {bench.budget_s:.0f} s were over"
            )
            break
        bench.say(f"{study.name}: {offered:g} x {study.capacity:,.0f}/s")
        reset_peak(server.process.pid)
        point = run(
            target,
            Load(
                rate=offered * study.capacity,
                connections=CONNECTIONS,
                seconds=seconds,
                warmup_s=warmup,
                # On one core a second process would only take from the first.
                processes=min(cores(), 2),
            ),
            wires,
        )
        levels.append(Level(offered, point, peak_bytes(server.process.pid)))
        if point.client.bottleneck:
            study.limited.append(f"{offered:g}")
            worst = point.client.bottleneck
        drained(server)
    if worst:
        study.note(f"The client, at the last of those levels: {worst}")
    return levels


def fill(
    study: Study, levels: Sequence[Level], before: int, limit: str = "", *, deadline: bool = False
) -> None:
    """Measures and checks from the levels. ``before``: resident bytes before any load; ``limit``:
    why the capacity is not the server's; ``deadline``: whether the callers gave one."""
    offered = study.measure(names.SENT, "requests/s", judged=False)
    goodput = study.measure(names.GOODPUT, "requests/s", judged=False)
    tail = study.measure(names.TAIL, "ms", judged=False)
    refused = study.measure(names.REFUSED, "%", judged=False)
    late = study.measure(names.LATE, "%", judged=False)
    failed = study.measure(names.FAILED, "%", judged=False)
    memory = study.measure(names.MEMORY, "MiB", judged=False)
    for level in levels:
        at, point = level.offered, level.point
        offered.add(at, point.sent / point.seconds)
        goodput.add(at, point.rate)
        tail.add(at, level.p99_us / 1e3)
        refused.add(at, 100 * level.share(REFUSALS))
        late.add(at, 100 * level.share(LATE))
        failed.add(at, 100 * (point.error_rate - level.share(REFUSALS | LATE)))
        memory.add(at, level.memory / MIB)
    if kinds := failures(levels):
        study.note(f"Not answered well, and no refusal: {kinds}.")
    judge(study, levels, before, limit, deadline=deadline)


def failures(levels: Sequence[Level]) -> str:
    """What went wrong without being a refusal, and how often."""
    total: Counter[str] = Counter()
    for level in levels:
        total.update(level.point.errors)
    found = [f"{kind} {count:,}" for kind, count in total.items() if kind not in REFUSALS]
    if "overrun" in total:
        found.append("where overrun is what was due while 10,000 requests had no answer yet")
    return ", ".join(found)


def judge(
    study: Study, levels: Sequence[Level], before: int, limit: str = "", *, deadline: bool = False
) -> None:
    """What must hold above capacity.

    Levels in which the client was the bottleneck are left out. A bound that the others miss is
    missed; one that they hold is met only if none was left out, and if it was an overload.
    """
    above = [level for level in levels if level.offered >= 1]
    reference = next((level for level in levels if level.offered == REFERENCE), None)
    sound = [level for level in above if not level.point.client.bottleneck]
    if not limit and (reference is None or not above):
        limit = f"no level at {REFERENCE:g}, or none from 1 on, was measured"
    limit = limit or _idle(study, levels)
    if not limit and not sound:
        limit = "the client was the bottleneck at every level from 1 on"
    own = [level for level in levels if not level.point.client.bottleneck]
    failing = REFUSALS | LATE if deadline else REFUSALS

    def check(
        name: str, value: Callable[[], float], bound: float, how: str = "", *, at_most: bool = True
    ) -> Check:
        if limit:
            made = Check(name, 0.0, "", bound, at_most, unmeasured=limit)
        else:
            made = Check(name, value(), "", bound, at_most)
            if made.met:
                made.unmeasured = how
        study.checks.append(made)
        return made

    partly = "" if len(sound) == len(above) else "the client was the bottleneck at some levels"
    against = partly
    if reference is not None and reference.point.client.bottleneck:
        against = f"the client was the bottleneck at {REFERENCE:g}"
    most = max([study.capacity, *(level.point.rate for level in levels)])
    check(
        "worst goodput above capacity, of the maximum",
        # Nobody can answer more than is offered.
        lambda: min(
            level.point.rate / max(min(most, level.offered * study.capacity), 1e-9)
            for level in sound
        ),
        GOODPUT,
        partly,
        at_most=False,
    )
    tail = check(
        f"worst p99 over that at {REFERENCE:g}",
        lambda: (
            max(level.p99_us for level in sound) / max(reference.p99_us if reference else 0, 1.0)
        ),
        TAIL,
        against,
    )
    if against != partly:
        tail.unmeasured = tail.unmeasured or against
    check(
        "memory in overload over that before",
        lambda: max(level.memory for level in sound) / before,
        MEMORY,
        partly,
    )
    check("requests that failed otherwise", lambda: _count(own, failing), 0, partly)
    if deadline:
        passed = check(
            "requests whose deadline passed",
            lambda: sum(round(level.share(LATE) * level.point.sent) for level in own),
            0,
            partly,
        )
        passed.explained = "the callers asked for it; a request ends when its deadline does"


def _count(levels: Sequence[Level], but: frozenset[str]) -> float:
    """Requests that were not answered well, for other reasons than these."""
    return sum(
        count for level in levels for kind, count in level.point.errors.items() if kind not in but
    )


def _idle(study: Study, levels: Sequence[Level]) -> str:
    """Why the highest level was no overload; empty: it was one."""
    top = max(levels, key=lambda level: level.offered)
    wanted = top.offered * study.capacity
    if top.offered > 1 and (top.share(REFUSALS) > 0 or top.point.rate < FALLS * wanted):
        return ""
    return f"at {top.offered:g} nothing was refused and all was answered: it was no overload"
