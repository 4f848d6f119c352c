"""A soak from its first request to its last look; what goes wrong in it is a verdict."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.compare.processes import Server
from loadtests.errors import BenchError
from loadtests.soak import rest, verdicts
from loadtests.soak.bad_input import BadInput
from loadtests.soak.callers import Callers
from loadtests.soak.ledger import End, Ledger
from loadtests.soak.models import Directory
from loadtests.soak.results import Soak
from loadtests.soak.sending import Caller
from loadtests.soak.trouble import Trouble
from loadtests.soak.watch import Watch

FINISH_S: Final = 150.0
"""What is at work when the time is over may take so long: a swap waits twice for a minute."""
MOST_INTERVAL_S: Final = 5.0


@dataclass(frozen=True)
class Plan:
    """What was asked for: seconds, factors, the seed."""

    seconds: float
    pace: float
    load: float
    rest_s: float
    seed: int

    @property
    def interval_s(self) -> float:
        """Seconds between samples: some 600 of them, but at least one in five seconds."""
        return min(MOST_INTERVAL_S, max(1.0, self.seconds / 600))


async def soak(server: Server, directory: Directory, plan: Plan) -> Soak:
    """The whole of it. Raises `BenchError` only where it could not begin."""
    await warm(server, plan)
    before = await rest.settled(server, calm, rest.PATIENCE_S)
    if before.waiting is None:
        raise BenchError("the gateway's /metrics has no sluice_in_flight_requests")
    ledger = Ledger()
    watch = Watch(server.process.pid, ledger)
    callers = Callers(server.http, server.grpc, ledger, plan.seed)
    bad = BadInput(server.http, server.grpc, plan.seed)
    trouble = Trouble(f"http://{server.http}", directory, callers, plan.seed)
    own: list[str] = []
    try:
        await under_load(server, plan, callers, bad, trouble, watch, own)
    finally:
        await callers.close()
        await bad.close()
        await asyncio.to_thread(trouble.close)
    samples = list(watch.samples)
    after = None
    if server.process.poll() is None:
        await asyncio.sleep(plan.rest_s)
        after = await rest.settled(
            server, lambda now: verdicts.as_before(before, now), rest.PATIENCE_S
        )
    code = server.process.poll()
    found = verdicts.all_of(ledger, samples, before, after if code is None else None)
    gateway = "" if code is None else f"it ended with {code}"
    ends = [
        f"{caller}: {end} {number:,}" for (caller, end), number in sorted(ledger.counts.items())
    ]
    return Soak(
        samples,
        trouble.events,
        [*found.verdicts, *verdicts.events(gateway, trouble.problems, own)],
        notes=[*found.unjudged, *ends, *ledger.problems, *trouble.problems, *own],
    )


def calm(found: rest.Rest) -> bool:
    """Whether nothing is under way."""
    return found.waiting == 0 and not found.zombies


async def under_load(
    server: Server,
    plan: Plan,
    callers: Callers,
    bad: BadInput,
    trouble: Trouble,
    watch: Watch,
    own: list[str],
) -> None:
    """Requests and trouble for the planned time. What fails in the soak itself goes to ``own``."""
    until = time.monotonic() + plan.seconds
    mix = [Caller(each.name, each.rate * plan.load, each.ask) for each in callers.all()]
    mix.append(Caller("bad input", 10 * plan.load, bad.ask))
    running = [
        asyncio.create_task(watch.every(plan.interval_s), name="samples"),
        asyncio.create_task(progress(watch, callers.ledger, until), name="progress"),
        *(asyncio.create_task(callers.drive(each), name=each.name) for each in mix),
    ]
    making = [asyncio.ensure_future(each) for each in trouble.all(plan.pace)]
    try:
        while time.monotonic() < until and server.process.poll() is None:
            if any(task.done() for task in (*running, *making)):  # only ends by failing
                break
            await asyncio.sleep(0.2)
        trouble.end()
        patience = FINISH_S if server.process.poll() is None else 1.0
        _, late = await asyncio.wait(making, timeout=patience)
        if late and server.process.poll() is None:
            trouble.problem(f"not finished {FINISH_S:g} s after the end")
    finally:
        callers.ended = True
        await over([*running, *making], own)


async def over(tasks: Sequence[asyncio.Task[None]], own: list[str]) -> None:
    """Cancels them, and notes those that had failed by themselves."""
    for task in tasks:
        task.cancel()
    for task, end in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(end, Exception):
            own.append(f"{task.get_name()}: {type(end).__name__}: {end}")


async def warm(server: Server, plan: Plan) -> None:
    """Each kind of request a few times, so that what is made once is there."""
    ledger = Ledger()
    callers = Callers(server.http, server.grpc, ledger, plan.seed)
    tasks = [asyncio.create_task(callers.drive(caller)) for caller in callers.all()]
    await asyncio.sleep(min(5.0, max(1.0, plan.rest_s)))
    callers.ended = True
    await asyncio.gather(*tasks)
    await callers.close()
    if verdicts.bad_ends(ledger):
        raise BenchError(f"before the soak began: {ledger.problems[0]}")
    await asyncio.sleep(plan.rest_s)


async def progress(watch: Watch, ledger: Ledger, until: float) -> None:
    """A line every ten seconds, on standard error."""
    while True:
        await asyncio.sleep(10)
        print(line(watch, ledger, until - time.monotonic()), file=sys.stderr, flush=True)


def line(watch: Watch, ledger: Ledger, left_s: float) -> str:
    """What is known now: before the first sample, only counts."""
    text = (
        f"{max(0.0, left_s):6.0f} s left  {ledger.total():9,} requests  "
        f"{verdicts.bad_ends(ledger)} bad  {ledger.total(End.KILLED)} killed"
    )
    if not watch.samples:
        return text
    last = watch.samples[-1]
    p99 = "-" if last.p99_us is None else f"{last.p99_us / 1000:.1f} ms"
    return (
        f"{text}  p99 {p99}  {last.memory_mib:.1f} MiB  {last.descriptors} fds  "
        f"{last.threads} threads"
    )
