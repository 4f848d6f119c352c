"""A whole benchmark: what the server says, the levels or the search, the document of it all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from typing import Protocol as Interface

import msgspec

from loadtests.bench import machine
from loadtests.bench.facts import Facts, look
from loadtests.bench.objective import Objective, caveats
from loadtests.bench.plan import Load, Protocol, Target
from loadtests.bench.point import run_point
from loadtests.bench.results import Point, Result, Search, Tick
from loadtests.bench.search import Bounds, Found, find
from loadtests.bench.server import ServerStats
from loadtests.bench.sustained import backlog
from loadtests.bench.sweep import ordered, rest
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire
from loadtests.payloads.encode import encode
from loadtests.payloads.sources import open_payloads

SAMPLES: Final = 64
SAMPLE_BYTES: Final = 64 << 20
"""Random requests take at most this much memory together; there is always one."""
KEY: Final = "x-sluice-key"
CALIBRATION: Final = 2.0
"""Seconds of the closed loop that tells where a search for a rate begins."""
FEWER: Final = "there are fewer levels than were asked for"
CONFIRM: Final = 3
"""A confirmation is this many times as long as a step of the search."""


@dataclass(frozen=True)
class Requests:
    """Where the requests come from (`open_payloads`), and their routing keys."""

    source: str = ""
    rows: int = 1
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    key: str = ""
    """One routing key for all."""
    keys: int = 0
    """So many different routing keys, in turn."""
    seed: int = 1


@dataclass(frozen=True)
class Seek:
    """A search for the highest load that meets ``objective``."""

    objective: Objective
    low: float
    high: float
    opened: bool
    """For a rate; else for a concurrency."""


@dataclass(frozen=True)
class Order:
    """What is to be measured: the levels, or a search with ``template``."""

    target: Target
    requests: Requests
    template: Load
    levels: Sequence[Load] = ()
    seek: Seek | None = None
    order: str = "ascending"
    rest_s: float = 10.0
    command: str = ""
    any_encoding: bool = False
    """Over HTTP: JSON where the server does not say that it takes tensors as bytes."""


class Watch(Interface):
    """Who is told how it goes."""

    def begin(self, load: Load, what: str) -> None:
        """A level begins; ``what`` says which of how many, or why."""

    def tick(self, tick: Tick) -> None:
        """A second of it."""

    def end(self, point: Point) -> None:
        """It is over."""


Measure = Callable[..., Point]
"""`run_point`, or what stands for it."""


class Unfit(BenchError):
    """The requests that were asked for do not fit the model, or cannot be read."""


class Interrupted(Exception):
    """It ended early: by Ctrl-C, or by ``cause``. ``result`` has the levels that were finished
    until then (`None`: none)."""

    def __init__(self, result: Result | None, cause: BenchError | None = None) -> None:
        super().__init__("interrupted")
        self.result = result
        self.cause = cause


def bench(order: Order, watch: Watch, measure: Measure = run_point) -> Result:
    """Measures. Raises `BenchError` (`Unreachable`, `Unfit`), or `Interrupted` with what there is,
    where it was stopped or could not go on."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    facts = look(order.target)
    if order.any_encoding and not facts.binary:
        target = msgspec.structs.replace(order.target, protocol=Protocol.JSON)
        order = dataclasses.replace(order, target=target)
    described = machine.describe(order.target)
    try:
        wires, words = payloads(order.target, order.requests, facts)
    except BenchError as error:
        raise Unfit(str(error)) from None
    with ServerStats(order.target) as stats:
        run = Run(order, watch, measure, wires, stats)
        interrupted = False
        cause: BenchError | None = None
        try:
            if order.seek is None:
                run.sweep()
            else:
                run.search(order.seek)
        except KeyboardInterrupt:
            interrupted = True
            run.notes.append(f"interrupted: {FEWER}")
        except BenchError as error:
            if not run.points:
                raise
            interrupted, cause = True, error
            run.notes.append(f"it could not go on ({error}): {FEWER}")
    result = Result(
        started=started,
        command=order.command,
        target=order.target,
        payload=words,
        machine=described,
        versions=machine.versions(facts.server),
        points=run.points,
        search=run.found,
        expected_split=facts.split,
        notes=[*facts.notes, *dict.fromkeys(run.notes), *caveats(run.points)],
        keys=order.requests.key
        or (f"{order.requests.keys} in turn" if order.requests.keys else ""),
    )
    if interrupted:
        raise Interrupted(result if run.points else None, cause) from None
    return result


def payloads(target: Target, requests: Requests, facts: Facts) -> tuple[list[Wire], str]:
    """The requests as bytes, and where they came from in words. Raises `BenchError`."""
    if facts.metadata is None and not requests.source:
        raise BenchError(
            f"the server does not say what {target.model} takes; give the requests with --data FILE"
        )

    def opened(count: int) -> tuple[list[Wire], str]:
        samples, words = open_payloads(
            requests.source,
            facts.metadata,
            rows=requests.rows,
            shapes=requests.shapes or None,
            count=count,
            seed=requests.seed,
            ranges=requests.ranges or None,
        )
        return [encode(sample, target) for sample in samples], words

    count = SAMPLES
    if not requests.source:
        probe, _ = opened(1)
        count = max(1, min(SAMPLES, SAMPLE_BYTES // max(len(probe[0].body), 1)))
    wires, words = opened(count)
    if not wires:
        raise BenchError(f"--data {requests.source} holds no requests")
    return with_keys(wires, requests), words


def with_keys(wires: list[Wire], requests: Requests) -> list[Wire]:
    """With routing keys; those that many requests share have the same bytes."""
    if requests.key:
        keys = [requests.key]
    elif requests.keys:
        keys = [f"bench-{index}" for index in range(requests.keys)]
    else:
        return wires
    count = max(len(wires), len(keys))
    return [
        dataclasses.replace(
            wires[index % len(wires)],
            headers=(*wires[index % len(wires)].headers, (KEY, keys[index % len(keys)])),
        )
        for index in range(count)
    ]


class Run:
    """The measuring itself; ``points`` grows as it goes."""

    def __init__(
        self, order: Order, watch: Watch, measure: Measure, wires: list[Wire], stats: ServerStats
    ) -> None:
        self._order = order
        self._watch = watch
        self._measure = measure
        self._wires = wires
        self._stats = stats
        self._begun = False
        self.points: list[Point] = []
        self.notes: list[str] = []
        self.found: Search | None = None

    def point(self, load: Load, what: str) -> Point:
        """One level, after a rest."""
        if self._begun:
            note = rest(self._stats, self._order.rest_s)
            if note:
                self.notes.append(note)
        self._begun = True
        self._watch.begin(load, what)
        point = self._measure(self._order.target, load, self._wires, progress=self._watch.tick)
        self._watch.end(point)
        return point

    def sweep(self) -> None:
        """All levels."""
        loads = ordered(self._order.levels, self._order.order, self._order.template.seed)
        for index, load in enumerate(loads):
            what = f"level {index + 1} of {len(loads)}" if len(loads) > 1 else ""
            self.points.append(self.point(load, what))
        self.points.sort(key=lambda point: (point.load.rate, point.load.concurrency))

    def search(self, seek: Seek) -> None:
        """The highest load that meets the objective. ``points`` has the last run of each load."""
        objective = seek.objective.with_errors()
        tried: list[tuple[float, bool]] = []
        kept: dict[float, Point] = {}
        self.found = Search(objective.text, None, tried, finished=False)

        def meets(value: float, confirm: bool) -> bool:
            load = self._load(value, seek.opened, CONFIRM if confirm else 1)
            what = "confirming" if confirm else f"step {len(tried) + 1} of the search"
            point = self.point(load, what)
            kept[value] = point
            self.points = [kept[each] for each in sorted(kept)]
            answer = objective.met(point) and not backlog(point)
            tried.append((value, answer))
            return answer

        found = find(meets, self._bounds(seek))
        self.found = Search(objective.text, found.best, found.tried)
        self._explain(seek, objective, found, kept)

    def _load(self, value: float, opened: bool, times: int = 1) -> Load:
        template = self._order.template
        load = msgspec.structs.replace(template, seconds=template.seconds * times)
        if opened:
            return msgspec.structs.replace(load, rate=value, concurrency=0)
        return msgspec.structs.replace(load, rate=0.0, concurrency=round(value))

    def _bounds(self, seek: Seek) -> Bounds:
        """A search for a rate begins at half of what a closed loop gets through."""
        if not seek.opened:
            return Bounds(seek.low, seek.high, start=8.0, whole=True)
        load = msgspec.structs.replace(
            self._load(16, opened=False), seconds=min(CALIBRATION, self._order.template.seconds)
        )
        point = self.point(load, "where to begin")
        return Bounds(seek.low, seek.high, start=max(point.rate / 2, seek.low))

    def _explain(
        self, seek: Seek, objective: Objective, found: Found, kept: dict[float, Point]
    ) -> None:
        unit = "/s" if seek.opened else " in flight"
        if found.best is None:
            lowest = kept[min(kept)]
            missed = [*objective.missed(lowest), backlog(lowest)]
            why = "; ".join(filter(None, missed)) or "met once, but not when confirmed"
            self.notes.append(f"even {min(kept):g}{unit} does not meet {objective.text}: {why}")
            return
        best = kept[found.best]
        if found.at_limit:
            self.notes.append(
                f"{found.best:g}{unit} is the highest load of the search and meets the objective; "
                f"search higher with {'--rates' if seek.opened else '--concurrencies'} LOW:HIGH"
            )
        for bound in objective.unsure(best):
            self.notes.append(
                f"{bound.text} lies within the confidence interval at {found.best:g}{unit} "
                f"({bound.shown(best)}): a run of the same load may miss it; measure longer"
            )
        failed = [value for value, met in found.tried if not met and value > found.best]
        if failed and (why := backlog(kept[min(failed)])):
            self.notes.append(f"{min(failed):g}{unit} cannot be sustained: {why}")
        if failed and kept[min(failed)].client.bottleneck:
            self.notes.append(
                f"{min(failed):g}{unit} was missed while the client was the limit: the server may "
                "do better; give --processes, or send from another machine"
            )
