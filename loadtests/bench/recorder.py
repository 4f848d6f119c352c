"""What was sent and how it ended: written down in the process that sends, counted in the one that
asked for it.

A process that sends must not spend its time on histograms: it packs 24 bytes a request, and hands
them on ten times a second. They become HdrHistograms where nobody waits for them.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from loadtests.bench.histogram import Counts, Ints
from loadtests.bench.messages import LIMIT, RECORD, RECORD_FORMAT, Slice
from loadtests.bench.results import UNANSWERED

MAX_NAMES: Final = 1000
"""Versions and kinds of errors that are told apart."""
OTHERS: Final = "others"

_pack: Final = struct.Struct(RECORD_FORMAT).pack


class Notebook:
    """Of a process that sends."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._records = bytearray()
        self._outcomes: dict[str, int] = {"": 0}
        self._versions: dict[str, int] = {"": 0}
        self._told = [1, 1]

    def write(
        self, due: int, issued: int, left: int, done: int, outcome: str, version: str
    ) -> None:
        """One request that ended. Times are ns of `time.monotonic_ns`; `left` 0: it never did."""
        code = self._outcomes.get(outcome)
        if code is None:
            code = _named(self._outcomes, outcome)
        number = self._versions.get(version)
        if number is None:
            number = _named(self._versions, version)
        self._records += _pack(
            due - self._start,
            min(max(issued - due, 0) // 1000, LIMIT),
            min(max(left - due, 0) // 1000, LIMIT - 1) if left else LIMIT,
            min(max(done - due, 0) // 1000, LIMIT),
            code,
            number,
        )

    def take(self) -> tuple[bytes, list[str], list[str]]:
        """The records since the last time, and the names of outcomes and versions that are new."""
        records, self._records = bytes(self._records), bytearray()
        outcomes = list(self._outcomes)[self._told[0] :]
        versions = list(self._versions)[self._told[1] :]
        self._told = [len(self._outcomes), len(self._versions)]
        return records, outcomes, versions


def _named(names: dict[str, int], name: str) -> int:
    if len(names) >= MAX_NAMES:
        name = OTHERS
    return names.setdefault(name, len(names))


class Cell:
    """The requests that were due within one tick."""

    __slots__ = ("errors", "failed", "good", "sent", "service", "unanswered", "versions")

    def __init__(self) -> None:
        self.sent = 0
        self.good: list[Counts] = []
        self.service: list[Counts] = []
        self.failed: list[Counts] = []
        self.unanswered: list[Counts] = []
        """The timeout, as often as there was no answer."""
        self.errors: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()

    def fold(self) -> None:
        """Takes less memory from now on."""
        for name in ("good", "service", "failed", "unanswered"):
            listed = getattr(self, name)
            if len(listed) > 1:
                setattr(self, name, [Counts.merged(listed)])

    @property
    def ok(self) -> int:
        """Answered well."""
        return self.sent - self.errors.total()

    @property
    def latencies(self) -> Counts:
        """Of those answered well, and of those that were not answered at all."""
        return Counts.merged([*self.good, *self.unanswered])


class Recorder:
    """Counts the records of all processes by ticks of `tick` ns; `closed` loops count latency from
    when a request was issued. What has no answer counts as having taken `timeout_s`, as the least
    that one would have taken: percentiles without it would be those of the fortunate.

    Until `begin` says when the measurement began, records are only kept.
    """

    def __init__(self, processes: int, *, closed: bool, timeout_s: float = 30.0) -> None:
        self._closed = closed
        self._timeout_us = int(timeout_s * 1e6)
        self._outcomes: list[list[str]] = [[""] for _ in range(processes)]
        self._versions: list[list[str]] = [[""] for _ in range(processes)]
        self._kept: list[tuple[int, npt.NDArray[Any]]] = []
        self._start: int | None = None
        self._tick = 1
        self._end = 0
        self.cells: dict[int, Cell] = {}
        """By tick, from the beginning of the measurement; negative: the warm-up."""
        self.answered: Counter[int] = Counter()
        """Tick → requests answered well in it, whenever they were due."""
        self.late: list[Counts] = []
        self.behind: list[Counts] = []
        """How long after they were due the process got to them, and"""
        self.waited: list[Counts] = []
        """how long requests waited for a connection, of those measured."""

    def add(self, process: int, part: Slice) -> npt.NDArray[Any]:
        """The records of a slice, of `RECORD`."""
        self._outcomes[process] += part.outcomes
        self._versions[process] += part.versions
        records = np.frombuffer(part.records, RECORD)
        if self._start is None:
            self._kept.append((process, records))
        elif len(records):
            self._count(process, records)
        return records

    def latency_of(self, records: npt.NDArray[Any]) -> Ints:
        """µs."""
        done = records["done"].astype(np.int64)
        # Not from when it left: the wait for a connection is a wait, too.
        found: Ints = done - records["issued"] if self._closed else done
        return found

    def kept(self) -> npt.NDArray[Any]:
        """All records so far, where the beginning is not known yet."""
        return np.concatenate([np.empty(0, RECORD), *(records for _, records in self._kept)])

    def begin(self, start: int, seconds: float, tick: int) -> None:
        """Says when the measurement began and how long it lasts; ns since the first request could
        be due."""
        self._start, self._tick = start, tick
        self._end = start + int(seconds * 1e9)
        kept, self._kept = self._kept, []
        for process, records in kept:
            if len(records):
                self._count(process, records)

    def _count(self, process: int, records: npt.NDArray[Any]) -> None:
        assert self._start is not None
        due = records["due"]
        well = records["outcome"] == 0
        ended = due + records["done"].astype(np.int64) * 1000
        answers = (ended[well] - self._start) // self._tick
        for tick, count in zip(*np.unique(answers, return_counts=True), strict=True):
            self.answered[int(tick)] += int(count)
        inside = (due >= self._start) & (due < self._end)
        # What could not be sent at all did not leave late.
        sent = records[inside & (records["left"] < LIMIT)]
        if len(sent):
            left, issued = sent["left"].astype(np.int64), sent["issued"].astype(np.int64)
            self.late.append(Counts.of(left))
            self.behind.append(Counts.of(issued))
            self.waited.append(Counts.of(np.maximum(left - issued, 0)))
        ticks = (due - self._start) // self._tick
        last = (self._end - self._start - 1) // self._tick
        for tick in np.unique(ticks):
            # Beyond the end: sent while the word to stop was on its way.
            if tick <= last:
                self._fill(
                    self.cells.setdefault(int(tick), Cell()), process, records[ticks == tick]
                )
        if len(self.late) > 256:
            self.late = [Counts.merged(self.late)]
            self.behind = [Counts.merged(self.behind)]
            self.waited = [Counts.merged(self.waited)]

    def _fill(self, cell: Cell, process: int, records: npt.NDArray[Any]) -> None:
        cell.sent += len(records)
        well = records["outcome"] == 0
        latency = self.latency_of(records)
        good, failed = latency[well], latency[~well]
        if len(good):
            cell.good.append(Counts.of(good))
            done = records["done"].astype(np.int64)
            cell.service.append(Counts.of((done - records["left"])[well]))
        if len(failed):
            cell.failed.append(Counts.of(failed))
            names = self._outcomes[process]
            codes = [code for code, name in enumerate(names) if name in UNANSWERED]
            without = int(np.isin(records["outcome"], codes).sum())
            if without:
                cell.unanswered.append(Counts.of(np.full(without, self._timeout_us, np.int64)))
            self._name(cell.errors, self._outcomes[process], records["outcome"][~well])
        versions = records["version"]
        self._name(cell.versions, self._versions[process], versions[well & (versions > 0)])
        if len(cell.good) + len(cell.failed) > 32:
            cell.fold()

    @staticmethod
    def _name(into: Counter[str], names: list[str], codes: npt.NDArray[Any]) -> None:
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            into[names[int(code)]] += int(count)
