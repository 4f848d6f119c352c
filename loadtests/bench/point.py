"""One level of load against one model: `run_point`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from loadtests.bench import warmup
from loadtests.bench.messages import Go, Slice, Stop
from loadtests.bench.plan import Load, Target
from loadtests.bench.processes import END_S, Senders
from loadtests.bench.recorder import Recorder
from loadtests.bench.results import Point, Tick
from loadtests.bench.summary import Live, Usages, point_of, tick_of
from loadtests.bench.watch import Watch
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire

SOON: Final = 50_000_000
"""ns from now for what all processes are to do at the same time."""
LOOK: Final = 500_000_000
"""ns between two looks at whether the warm-up is over."""
PROGRESS: Final = 1_000_000_000


def run_point(
    target: Target,
    load: Load,
    payloads: Sequence[Wire],
    *,
    progress: Callable[[Tick], None] | None = None,
    server_statistics: bool = True,
) -> Point:
    """Sends ``payloads``, in turn, at the ``load``, and measures until it is over.

    Blocks; the sending is done by processes of its own. ``progress`` is called in this thread about
    once a second. With ``server_statistics`` the server's own queue and execute times are read
    beside (`loadtests.bench.server`), where it has any. Raises `BenchError` when nothing can be
    sent at all: nobody listens, or the very first request is refused as malformed.

    A request counts if it was due (closed loop: left) while it was measured, with its true latency,
    also where the answer came after that. The ticks of the result count requests by when they were
    due, too; those given to ``progress`` by when they ended, as others are not known yet.
    """
    if not payloads:
        raise BenchError("there is nothing to send; give at least one payload")
    with Senders(target, load, payloads) as senders, Watch(target, on=server_statistics) as watch:
        return _Run(load, senders, watch, progress).measured()


class _Run:
    def __init__(
        self,
        load: Load,
        senders: Senders,
        watch: Watch,
        progress: Callable[[Tick], None] | None,
    ) -> None:
        self._load = load
        self._senders = senders
        self._watch = watch
        self._progress = progress
        self._recorder = Recorder(len(senders), closed=not load.open, timeout_s=load.timeout_s)
        self._usages = Usages(len(senders))
        self._live = Live(self._recorder)
        self._go = time.monotonic_ns() + SOON
        self._running = set(range(len(senders)))
        self._oldest = [self._go] * len(senders)
        self._ticked = self._go

    def measured(self) -> Point:
        """From the first request to the last answer."""
        load = self._load
        self._senders.tell(Go(self._go))
        start, steady = self._warm_up()
        end = start + int(load.seconds * 1e9)
        tick = tick_of(load.seconds)
        self._recorder.begin(start - self._go, load.seconds, tick)
        self._usages.mark(start)
        self._watch.now()
        self._senders.tell(Stop(end))
        while time.monotonic_ns() < end:
            self._hear(end, start)
        self._watch.now()
        self._drain(end, start)
        self._watch.finish()
        return point_of(
            load,
            self._recorder,
            self._usages,
            self._watch,
            go=self._go,
            start=start,
            tick=tick,
            steady=steady,
        )

    def _warm_up(self) -> tuple[int, bool]:
        """When the measurement begins, and whether that is because latencies have settled (or the
        time was given)."""
        given = self._load.warmup_s
        if given is not None:
            start = self._go + int(given * 1e9)
            while time.monotonic_ns() < start:
                self._hear(start, start)
            return start, True
        look, steady = self._go + LOOK, False
        longest = self._go + int(warmup.LONGEST_S * 1e9)
        while not steady and time.monotonic_ns() < longest:
            self._hear(look, None)
            if time.monotonic_ns() >= look:
                look += LOOK
                records = self._recorder.kept()
                latency = self._recorder.latency_of(records)
                # The latencies of later ones are not all known: the slowest are missing.
                known = min(self._oldest) - self._go
                steady = warmup.settled(records["due"], latency, known)
        return time.monotonic_ns() + SOON, steady

    def _drain(self, end: int, start: int) -> None:
        """What is under way may take its time."""
        deadline = end + int((self._load.timeout_s + END_S) * 1e9)
        while self._running and time.monotonic_ns() < deadline:
            self._hear(min(deadline, time.monotonic_ns() + PROGRESS), start)
        if self._running:
            raise BenchError(
                f"{len(self._running)} processes that send did not end within {END_S:g} s of their "
                "last timeout; the machine is too busy to measure on"
            )

    def _hear(self, until: int, start: int | None, *, live: bool = True) -> None:
        """Takes in what one process says, for as long as nothing else is to be done."""
        now = time.monotonic_ns()
        wait = min(until, self._ticked + PROGRESS if live else until) - now
        said = self._senders.hear(wait / 1e9)
        if said is not None:
            part, report = said
            if isinstance(report, Slice):
                records = self._recorder.add(part, report)
                self._usages.add(part, report)
                self._oldest[part] = report.oldest
                self._live.add(part, report, records)
                if report.last:
                    self._running.discard(part)
            elif part in self._running:
                raise self._senders.ended(part)
        now = time.monotonic_ns()
        if live and now >= self._ticked + PROGRESS:
            at = (self._ticked - (start if start is not None else now)) / 1e9
            if self._progress is not None:
                server = self._watch.around(now - 2 * PROGRESS, now)
                self._progress(self._live.tick(at, (now - self._ticked) / 1e9, server))
            else:
                self._live.clear()
            self._ticked = now
