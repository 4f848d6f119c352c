"""What the records of a run come to: its `Point`, and the ticks that are shown meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from loadtests.bench.confidence import (
    BATCHES,
    FEWEST,
    SHORTEST_S,
    grouped,
    mean_interval,
    percentile_interval,
)
from loadtests.bench.health import Usage, client_of
from loadtests.bench.histogram import Counts, Ints
from loadtests.bench.messages import Slice
from loadtests.bench.plan import Load
from loadtests.bench.recorder import Cell, Recorder
from loadtests.bench.results import OVERRUN, UNANSWERED, Interval, Point, Server, Tick
from loadtests.bench.watch import Watch

MOST_TICKS: Final = 1200
SILENCE_S: Final = 1.0
EXPECTED: Final = 10.0


def tick_of(seconds: float) -> int:
    """ns of a tick: a second, less in a short run, more in a very long one; a whole number of them
    makes the run."""
    ticks = min(max(round(seconds), min(BATCHES, int(seconds / SHORTEST_S)), 1), MOST_TICKS)
    return -(-int(seconds * 1e9) // ticks)


class Usages:
    """Processor time of the processes that send, and how late their timers were."""

    def __init__(self, processes: int) -> None:
        self._slices: list[list[tuple[int, float, float]]] = [[] for _ in range(processes)]
        self._lags: list[tuple[int, Counts]] = []
        self._own: tuple[int, float] = (time.monotonic_ns(), time.process_time())

    def add(self, process: int, part: Slice) -> None:
        """What a slice says."""
        self._slices[process].append((part.at, part.cpu_s, part.thread_s))
        if part.lags:
            self._lags.append((part.at, Counts.of(np.array(part.lags, np.int64))))

    def mark(self, at: int) -> None:
        """The measurement begins at `at`: what this process itself uses counts from now."""
        self._own = (at, time.process_time())

    def own(self) -> float:
        """Cores that this process has used since `mark`."""
        at, before = self._own
        wall = (time.monotonic_ns() - at) / 1e9
        return (time.process_time() - before) / wall if wall > 0 else 0.0

    def between(self, start: int, end: int) -> list[Usage]:
        """Of each process, between the reports nearest to the two times."""
        found = []
        for slices in self._slices:
            if not slices:
                continue
            times = np.array([each[0] for each in slices])
            first = slices[int(np.argmin(np.abs(times - start)))]
            last = slices[int(np.argmin(np.abs(times - end)))]
            if last[0] > first[0]:
                wall = (last[0] - first[0]) / 1e9
                found.append(Usage(wall, last[1] - first[1], last[2] - first[2]))
        return found

    def lags(self, start: int, end: int) -> Counts:
        """Between the two times."""
        return Counts.merged(counts for at, counts in self._lags if start <= at <= end)


class Live:
    """The second that has just passed, for those who watch: requests by when they ended."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._latencies: list[Ints] = []
        self._failed = 0
        self._sent: dict[int, int] = {}
        self._sent_before = 0
        self._names: dict[int, list[str]] = {}
        self._versions: Counter[str] = Counter()
        self._cpu: dict[int, float] = {}
        self._cpu_before = 0.0

    def add(self, process: int, part: Slice, records: npt.NDArray[Any]) -> None:
        """What a slice says."""
        names = self._names.setdefault(process, [""])
        names += part.versions
        well = records["outcome"] == 0
        good = records[well]
        self._latencies.append(self._recorder.latency_of(good))
        self._failed += len(records) - len(good)
        self._sent[process] = part.sent
        self._cpu[process] = part.cpu_s
        known = good["version"][good["version"] > 0]
        for code, count in zip(*np.unique(known, return_counts=True), strict=True):
            self._versions[names[int(code)]] += int(count)

    def tick(self, at_s: float, seconds: float, server: Server | None) -> Tick:
        """The tick, and begins the next one."""
        latencies = np.concatenate([np.empty(0, np.int64), *self._latencies])
        sent, cpu = sum(self._sent.values()), sum(self._cpu.values())
        p50, p99 = (
            (float(each) for each in np.percentile(latencies, (50, 99), method="higher"))
            if len(latencies)
            else (None, None)
        )
        tick = Tick(
            at_s=at_s,
            seconds=seconds,
            sent=sent - self._sent_before,
            ok=len(latencies),
            failed=self._failed,
            p50_us=p50,
            p99_us=p99,
            versions=dict(self._versions),
            client_cpu=max(cpu - self._cpu_before, 0.0) / seconds,
            unanswered=0,  # `ok` alone is in the percentiles
            **_of_server(server),
        )
        self._sent_before, self._cpu_before = sent, cpu
        self.clear()
        return tick

    def clear(self) -> None:
        """Forgets what has not been shown."""
        self._latencies.clear()
        self._failed = 0
        self._versions.clear()


def point_of(
    load: Load,
    recorder: Recorder,
    usages: Usages,
    watch: Watch,
    *,
    go: int,
    start: int,
    tick: int,
    steady: bool,
) -> Point:
    """The whole of a run. Times are ns of `time.monotonic_ns`."""
    end = start + int(load.seconds * 1e9)
    count = -(-(end - start) // tick)
    cells = [recorder.cells.get(each, Cell()) for each in range(count)]
    errors: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    for cell in cells:
        errors += cell.errors
        versions += cell.versions
    batches = grouped(count)
    answers = [recorder.answered.get(each, 0) for each in range(count)]
    latency = [Counts.merged(cell.latencies for cell in cells[part]) for part in batches]
    service = [
        Counts.merged(each for cell in cells[part] for each in cell.service) for part in batches
    ]
    failed = Counts.merged(each for cell in cells for each in cell.failed)
    whole = Counts.merged(cell.latencies for cell in cells)
    whole_service = Counts.merged(each for cell in cells for each in cell.service)
    seconds = load.seconds
    rate = sum(answers) / seconds
    return Point(
        load=load,
        warmup_s=(start - go) / 1e9,
        steady=steady,
        seconds=seconds,
        sent=sum(cell.sent for cell in cells),
        ok=sum(cell.ok for cell in cells),
        errors=dict(errors.most_common()),
        rate=rate,
        rate_ci=_rate_interval(answers, batches, tick, rate),
        latency=whole.latency(*_intervals(latency)),
        service=whole_service.latency(*_intervals(service)),
        error_latency=failed.latency() if len(failed) else None,
        versions=dict(versions.most_common()),
        ticks=_ticks(recorder, usages, watch, start, tick, count),
        client=client_of(
            load,
            usages.between(start, end),
            lags=usages.lags(start, end),
            late=Counts.merged(recorder.late),
            behind=Counts.merged(recorder.behind),
            waited=Counts.merged(recorder.waited),
            median_us=whole.percentile(50),
            overruns=errors[OVERRUN],
            own_cpu=usages.own(),
        ),
        server=watch.between(start, end),
        silent_s=silence(answers, tick / 1e9, (whole.percentile(50) or 0) / 1e6),
    )


def silence(answers: list[int], tick_s: float, median_s: float) -> float:
    """Seconds without an answer, in stretches that are long (`SILENCE_S`, and three times the
    median latency) and in which, by the rate of the whole, `EXPECTED` answers should have come.
    `answers` are counts by tick, of those that are answered well."""
    total = len(answers) * tick_s
    found = 0.0
    stretch = 0
    for count in [*answers, 1]:
        if not count:
            stretch += 1
            continue
        seconds = stretch * tick_s
        wanted = sum(answers) * seconds / total if total else 0.0
        # Ticks are not exact: a stretch of one second may be 0.999 s.
        if seconds > max(SILENCE_S, 3 * median_s) * 0.99 and wanted >= EXPECTED:
            found += seconds
        stretch = 0
    return found


def _intervals(batches: list[Counts]) -> tuple[Interval | None, Interval | None]:
    return percentile_interval(batches, 50), percentile_interval(batches, 99)


def _rate_interval(
    answers: list[int], batches: list[slice], tick: int, rate: float
) -> Interval | None:
    lengths = [(part.stop - part.start) * tick / 1e9 for part in batches]
    if len(batches) < FEWEST or min(lengths) < SHORTEST_S * 0.99:
        return None
    found = [sum(answers[part]) / length for part, length in zip(batches, lengths, strict=True)]
    return mean_interval(found, rate)


def _ticks(
    recorder: Recorder, usages: Usages, watch: Watch, start: int, tick: int, count: int
) -> list[Tick]:
    first = min(min(recorder.cells, default=0), 0)
    ticks = []
    for number in range(first, count):
        cell = recorder.cells.get(number, Cell())
        latencies = cell.latencies
        begin, end = start + number * tick, start + (number + 1) * tick
        p50, p99 = latencies.percentile(50), latencies.percentile(99)
        ticks.append(
            Tick(
                at_s=number * tick / 1e9,
                seconds=tick / 1e9,
                sent=cell.sent,
                ok=cell.ok,
                failed=cell.errors.total(),
                p50_us=None if p50 is None else float(p50),
                p99_us=None if p99 is None else float(p99),
                versions=dict(cell.versions),
                client_cpu=sum((e.cpu_s / e.wall_s for e in usages.between(begin, end)), 0.0),
                unanswered=sum(cell.errors[kind] for kind in UNANSWERED),
                **_of_server(watch.around(begin, end)),
            )
        )
    return ticks


def _of_server(server: Server | None) -> dict[str, float | None]:
    if server is None or not server.executions:
        return {}
    return {
        "batch_rows": server.batch_rows,
        "queue_us": server.queue_us,
        "execute_us": server.execute_us,
    }
