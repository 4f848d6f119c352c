"""The processes that send, as the one that started them sees them."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from loadtests.bench.messages import (
    Failed,
    Go,
    Order,
    Plan,
    Ready,
    Report,
    Stop,
    read_report,
    write,
)
from loadtests.bench.plan import Load, Target
from loadtests.errors import BenchError, Unreachable
from loadtests.payloads.base import Wire

START_S: Final = 60.0
"""Seconds for a process to start and connect, besides the time that the first answer takes."""
END_S: Final = 15.0

Said = tuple[int, Report | None]
"""Which process, and what; ``None``: it has ended."""


class Senders:
    """Started by ``with``, and ended with it, whatever happens."""

    def __init__(self, target: Target, load: Load, payloads: Sequence[Wire]) -> None:
        parts = shares(load)
        self.plans = [
            Plan(target, each, part, len(parts), list(payloads)) for part, each in enumerate(parts)
        ]
        self.patience = START_S + max(load.timeout_s, 60.0)
        self.said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __len__(self) -> int:
        return len(self.plans)

    def __enter__(self) -> Self:
        environment = dict(os.environ)
        root = str(Path(__file__).parents[2])
        path = [root, *filter(None, [environment.get("PYTHONPATH", "")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        try:
            for plan in self.plans:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "loadtests.bench.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    process_group=0,  # Ctrl-C is for whoever started it, even while it imports
                )
                self._processes.append(process)
                threading.Thread(target=self._listen, args=(plan.part,), daemon=True).start()
                self._tell(plan.part, plan)
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()  # ends it
        deadline = time.monotonic() + 2.0
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def tell(self, order: Go | Stop) -> None:
        """To all. Raises `BenchError` where one has ended."""
        for part in range(len(self)):
            self._tell(part, order)

    def hear(self, seconds: float) -> Said | None:
        """What one said; ``None``: nothing for so long."""
        try:
            return self.said.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return None

    def _tell(self, part: int, order: Order) -> None:
        stdin = self._processes[part].stdin
        assert stdin is not None
        try:
            write(stdin, order)
        except OSError:
            raise self.ended(part) from None

    def ended(self, part: int) -> BenchError:
        """The error for a process that ended before its time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[part].wait(2.0)
        code = self._processes[part].returncode
        return BenchError(
            f"process {part + 1} of {len(self)} that sent the load ended with exit code {code}; "
            "what it wrote is above. With -9 it was killed, often for want of memory"
        )

    def _listen(self, part: int) -> None:
        stdout = self._processes[part].stdout
        assert stdout is not None
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError), stdout:
            while (report := read_report(stdout)) is not None:
                self.said.put((part, report))
        self.said.put((part, None))

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.patience
        waiting = set(range(len(self)))
        while waiting:
            said = self.hear(deadline - time.monotonic())
            if said is None:
                raise BenchError(
                    f"{len(waiting)} of {len(self)} processes that send were not connected within "
                    f"{self.patience:g} s; fewer connections, or a server that answers, may help"
                )
            part, report = said
            if isinstance(report, Failed):
                raise (Unreachable if report.unreachable else BenchError)(report.message)
            if not isinstance(report, Ready):
                raise self.ended(part)
            waiting.discard(part)


def shares(load: Load) -> list[Load]:
    """The load of each process: the same rate (each takes its turn of the arrivals), a share of
    what is in flight and of the connections. Raises `BenchError` for a load that cannot be sent."""
    check(load)
    count = load.processes if load.open else min(load.processes, load.concurrency)
    if load.connections:
        count = min(count, load.connections)

    def share(whole: int, part: int) -> int:
        return whole // count + (part < whole % count)

    return [
        msgspec.structs.replace(
            load,
            concurrency=share(load.concurrency, part),
            connections=share(load.connections, part),
            max_in_flight=max(share(load.max_in_flight, part), 1),
        )
        for part in range(count)
    ]


def check(load: Load) -> None:
    """Raises `BenchError` for a load that cannot be sent, with what to say instead."""
    if not (0 <= load.rate < float("inf")) or load.concurrency < 0:
        raise BenchError(
            f"rate {load.rate!r} and concurrency {load.concurrency} must not be negative"
        )
    if (load.rate > 0) == (load.concurrency > 0):
        raise BenchError(
            f"rate is {load.rate:g} and concurrency {load.concurrency}; set one of them: a rate "
            "for an open loop, a concurrency for a closed one"
        )
    if load.arrivals not in ("poisson", "constant"):
        raise BenchError(f"arrivals {load.arrivals!r} are not known; choose poisson or constant")
    for name, least in (("connections", 0), ("max_in_flight", 1), ("processes", 1)):
        value = getattr(load, name)
        if value < least:
            raise BenchError(f"{name} {value} is too small; use {least} or more")
    for name in ("seconds", "timeout_s"):
        value = getattr(load, name)
        if not 0 < value <= 86_400:
            raise BenchError(f"{name} {value!r} is not more than 0 and at most 86400")
    if load.warmup_s is not None and not 0 <= load.warmup_s <= 86_400:
        raise BenchError(f"warmup_s {load.warmup_s!r} is not between 0 and 86400")
    if load.timeout_s > 3600:
        raise BenchError(f"timeout_s {load.timeout_s:g} is more than 3600, the longest latency")
    if load.seed < 0:
        raise BenchError(f"seed {load.seed} is negative; use 0 or more")
