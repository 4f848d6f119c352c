"""A process that sends its part of a load: ``python -m loadtests.bench.worker``.

It reads its orders from standard input and writes what happens to standard output
(`loadtests.bench.messages`). At the end of its input it ends: it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from loadtests.bench.answers import check_first
from loadtests.bench.arrivals import due_times
from loadtests.bench.clients import make_client
from loadtests.bench.clients.base import CONNECTION, Call
from loadtests.bench.messages import Failed, Go, Plan, Ready, Report, Slice, Stop, read_order, write
from loadtests.bench.plan import Load, Protocol
from loadtests.bench.recorder import Notebook
from loadtests.bench.results import OVERRUN, TIMEOUT
from loadtests.bench.timer import Timer
from loadtests.errors import BenchError, Unreachable

PROBE: Final = 10_000_000
"""ns between two looks at how late timers are."""
SLICE: Final = 100_000_000
"""ns between two reports."""
AT_ONCE: Final = 64
"""Requests that are sent before what has come is read."""
PAUSE_S: Final = 0.05
"""Closed loop: how long a place that lost its connection, or got none, is left alone. A caller
that tried again at once would keep the processor busy with trying."""
FIRST_S: Final = 60.0
"""Seconds that the first answer may take at least: a server may have to load the model."""
FILES: Final = 64
"""Files that are open besides connections."""
NEVER: Final = 2**62

_now = time.monotonic_ns


class Sender:
    """Sends, and writes down how it went."""

    def __init__(self, plan: Plan) -> None:
        load = plan.load
        self._plan, self._load = plan, load
        self._open = load.open
        self._loop = asyncio.get_running_loop()
        opened, most = connections(load, plan.target.protocol)
        self._client = make_client(
            plan.target, plan.payloads, connections=opened, most=most, done=self._done
        )
        self._timeout = int(load.timeout_s * 1e9)
        self._book = Notebook(0)
        self._under_way: deque[Call] = deque()
        self._in_flight = 0
        self._sent = 0
        self._number = plan.part
        self._stop_at = NEVER
        self._times: Iterator[tuple[int, int]] = iter(())
        self._start = 0
        self._next: tuple[int, int] = (0, NEVER)
        self._first: asyncio.Future[tuple[str, bytes]] | None = None
        self._timer = Timer(self._loop, self._send_due)
        self._probe = Timer(self._loop, self._look)
        self._probe_at = 0
        self._slice_at = 0
        self._lags: list[int] = []
        self.reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self.finished = asyncio.Event()

    # --- before

    async def prepare(self) -> None:
        """Connects, and sees whether the first answer is one. Raises `BenchError`."""
        await self._client.open()
        self._first = self._loop.create_future()
        call = Call(self._plan.part, _now(), _now(), slot=0 if not self._open else -1)
        call.keep = True
        self._client.send(call)
        try:
            async with asyncio.timeout(max(self._load.timeout_s, FIRST_S)):
                outcome, body = await self._first
        except TimeoutError:
            call.ended = True
            self._client.cancel(call)
            outcome, body = TIMEOUT, b""
        self._first = None
        check_first(self._plan.target, outcome, body)

    def go(self, at: int) -> None:
        """Starts at `at`."""
        plan, load = self._plan, self._load
        self._start = at
        self._book = Notebook(at)
        self._probe_at = self._slice_at = max(at, _now())
        self._probe.set(self._probe_at)
        if self._open:
            self._times = due_times(
                load.rate, load.arrivals, seed=load.seed, part=plan.part, parts=plan.parts
            )
            self._advance()
            self._timer.set(self._next[1])
        else:
            self._timer.set(at)

    def stop(self, at: int) -> None:
        """Sends nothing that is due from `at` on."""
        self._stop_at = at

    # --- sending

    def _advance(self) -> None:
        number, after = next(self._times)
        self._next = number, self._start + after

    def _send_due(self) -> None:
        if not self._open:
            now = _now()
            for slot in range(self._load.concurrency):
                self._issue(self._number, now, slot)
                self._number += self._plan.parts
            return
        for _ in range(AT_ONCE):
            number, due = self._next
            if due >= self._stop_at:
                return
            if due > _now():
                self._timer.set(due)
                return
            self._issue(number, due, -1)
            self._advance()
        # More are due; what has come in the meantime goes first.
        self._loop.call_soon(self._send_due)

    def _issue(self, number: int, due: int, slot: int) -> None:
        now = _now()
        self._sent += 1
        if self._open and self._in_flight >= self._load.max_in_flight:
            self._book.write(due, now, 0, now, OVERRUN, "")
            return
        call = Call(number, due, now, slot)
        self._in_flight += 1
        self._under_way.append(call)
        self._client.send(call)

    def _done(self, call: Call, outcome: str, version: str, body: bytes) -> None:
        if call.ended:
            return
        now = _now()
        if self._first is not None and call.keep:
            if not self._first.done():
                self._first.set_result((outcome, body))
            return
        self._ended(call, now, outcome, version)

    def _ended(self, call: Call, now: int, outcome: str, version: str) -> None:
        call.ended = True
        self._in_flight -= 1
        self._book.write(call.due, call.issued, call.left, now, outcome, version)
        if self._open:
            return
        if outcome == CONNECTION:
            self._loop.call_later(PAUSE_S, self._again, call.slot)
        else:
            self._again(call.slot)

    def _again(self, slot: int) -> None:
        now = _now()
        if now < self._stop_at:
            number = self._number
            self._number += self._plan.parts
            self._issue(number, now, slot)

    # --- beside it

    def _look(self) -> None:
        """Late timers, timeouts, reports."""
        now = _now()
        # One long pause kept many looks from being taken, which would have seen it, too.
        late = max(now - self._probe_at, 0)
        self._lags += [each // 1000 for each in range(late, -1, -PROBE)]
        calls = self._under_way
        while calls:
            call = calls[0]
            if not call.ended:
                deadline = call.due + self._timeout
                if deadline > now:
                    break
                call.ended = True  # before the client can say that it is over
                self._client.cancel(call)
                self._ended(call, deadline, TIMEOUT, "")
            calls.popleft()
        over = now >= self._stop_at and not self._in_flight
        if over or now >= self._slice_at:
            self._report(now, last=over)
            self._slice_at += SLICE * max((now - self._slice_at) // SLICE, 1)
        if over:
            self.finished.set()
            return
        self._probe_at += PROBE * max((now - self._probe_at) // PROBE, 1)
        self._probe.set(self._probe_at)

    def _report(self, now: int, *, last: bool) -> None:
        records, outcomes, versions = self._book.take()
        lags, self._lags = self._lags, []
        oldest = self._under_way[0].due if self._under_way else now
        cpu, thread = time.process_time(), time.thread_time()
        self.reports.put(
            Slice(now, records, outcomes, versions, self._sent, oldest, cpu, thread, lags, last)
        )

    async def close(self) -> None:
        """Ends timers and connections."""
        self._timer.close()
        self._probe.close()
        await self._client.close()


def connections(load: Load, protocol: Protocol) -> tuple[int, int]:
    """How many are opened beforehand, and at most."""
    if protocol in (Protocol.GRPC, Protocol.STREAM):
        few = load.connections or min(load.concurrency or 4, 4)
        # Of streams there may be as many as requests in flight, whatever the connections.
        most = load.concurrency or load.max_in_flight
        return few, most if protocol is Protocol.STREAM else few
    if load.connections:
        return load.connections, load.connections
    if not load.open:
        return load.concurrency, load.concurrency
    # As many as are in flight at 20 ms a request; more when they are needed.
    first = min(max(int(load.rate * 0.02), 4), 64, load.max_in_flight)
    return first, max(min(load.max_in_flight, open_files() - FILES), first)


def open_files() -> int:
    """How many this process may have; raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


async def serve(plan: Plan) -> None:
    """Does what it is told until it has sent everything."""
    loop = asyncio.get_running_loop()
    output = sys.stdout.buffer
    try:
        sender = Sender(plan)
        # First of all: whoever asked may be gone before a connection is made.
        threading.Thread(target=_listen, args=(loop, sender), daemon=True).start()
        await sender.prepare()
    except BenchError as error:
        write(output, Failed(str(error), isinstance(error, Unreachable)))
        return
    write(output, Ready())
    # What was made so far is not looked at by the collector of garbage again, and what comes
    # seldom: its pauses would be latencies.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    writing = threading.Thread(target=_write_all, args=(sender.reports,), daemon=True)
    writing.start()
    await sender.finished.wait()
    await sender.close()
    sender.reports.put(None)
    await asyncio.to_thread(writing.join)


def _listen(loop: asyncio.AbstractEventLoop, sender: Sender) -> None:
    while (order := read_order(sys.stdin.buffer)) is not None:
        if isinstance(order, Go):
            loop.call_soon_threadsafe(sender.go, order.at)
        elif isinstance(order, Stop):
            loop.call_soon_threadsafe(sender.stop, order.at)
    os._exit(1)  # whoever asked is gone


def _write_all(reports: queue.SimpleQueue[Report | None]) -> None:
    try:
        while (report := reports.get()) is not None:
            write(sys.stdout.buffer, report)
    except OSError:
        os._exit(1)


def main() -> None:
    """Reads the plan, and follows it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    open_files()
    plan = read_order(sys.stdin.buffer)
    if not isinstance(plan, Plan):
        sys.exit("this is started by `sluice bench`")
    if sys.platform == "win32":
        asyncio.run(serve(plan))
        return
    import uvloop

    uvloop.run(serve(plan))
    sys.stdout.flush()
    os._exit(0)  # the thread that listens still reads


if __name__ == "__main__":
    main()
