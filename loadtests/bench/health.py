"""Whether a figure says more about the load generator than about the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.bench.histogram import Counts, lowest_of
from loadtests.bench.plan import Load
from loadtests.bench.results import Client
from loadtests.kernel import cores

FULL: Final = 0.85
"""Cores of one thread from which it can hardly send more."""
LAG_US: Final = 5_000.0
"""An event loop that runs timers this late has not had its turn of a processor."""
BUSY: Final = 0.5
"""Cores of one thread from which another process that sends may help."""
FEWEST_LATE: Final = 10
LATE_US: Final = 1_000.0
LATE_SHARE: Final = 0.1
"""Lateness that matters: above `LATE_US`, and this share of the median latency."""


@dataclass(frozen=True)
class Usage:
    """What one process used between two reports."""

    wall_s: float
    cpu_s: float
    thread_s: float


def client_of(
    load: Load,
    usages: Sequence[Usage],
    *,
    lags: Counts,
    late: Counts,
    behind: Counts,
    waited: Counts,
    median_us: float | None,
    overruns: int,
    own_cpu: float,
) -> Client:
    """How the client fared. `late` is from when a request was due until it left: first it was
    `behind`, until the process got to it, then it `waited` for a connection. `own_cpu` are the
    cores that the process used that counts."""
    cpu = sum(each.cpu_s / each.wall_s for each in usages if each.wall_s > 0) + own_cpu
    busiest = max((each.thread_s / each.wall_s for each in usages if each.wall_s > 0), default=0.0)
    client = Client(
        cpu=cpu,
        busiest=busiest,
        cores=cores(),
        lag_p99_us=float(lags.percentile(99) or 0),
        late_p99_us=float(late.percentile(99) or 0) if load.open else 0.0,
    )
    limit = max(LATE_US, LATE_SHARE * (median_us or 0.0))
    # One request in fifty says nothing: few that were late are no pattern.
    delays = tuple(
        float(each.percentile(99) or 0) if above(each, limit) >= FEWEST_LATE else 0.0
        for each in (behind, waited)
    )
    words = _words(load, client, delays, median_us, overruns, len(usages))
    return Client(
        cpu=client.cpu,
        busiest=client.busiest,
        cores=client.cores,
        lag_p99_us=client.lag_p99_us,
        late_p99_us=client.late_p99_us,
        bottleneck=words,
    )


def _words(
    load: Load,
    client: Client,
    delays: tuple[float, ...],
    median_us: float | None,
    overruns: int,
    processes: int,
) -> str:
    more = f"--processes {processes * 2}"
    if client.busiest >= FULL:
        remedy = more if client.cores > processes else "another machine for the client"
        if client.cores > processes:
            remedy += ", or another machine"
        return (
            f"the thread that sends used {client.busiest:.2f} of a core: the client could hardly "
            f"send more. Use {remedy}."
        )
    if client.cpu >= FULL * client.cores:
        return (
            f"the client used {client.cpu:.1f} of this machine's {client.cores} cores. Run it on "
            "another machine."
        )
    if client.lag_p99_us >= LAG_US:
        return (
            f"the client's timers ran {client.lag_p99_us / 1000:.1f} ms late (99th percentile) "
            f"while it used only {client.busiest:.2f} of a core: other processes had the "
            "processors. Run it on another machine, or leave it a core of its own."
        )
    if overruns:
        return (
            f"{overruns} requests were not sent because {load.max_in_flight} were in flight; the "
            "server cannot hold this rate, or max_in_flight is too low for its latency."
        )
    if median_us is None:
        return ""
    behind_us, waited_us = delays
    if max(delays) < max(LATE_US, LATE_SHARE * median_us):
        return ""
    if waited_us > behind_us:
        return (
            f"requests waited {waited_us / 1000:.1f} ms (99th percentile) for a free connection or "
            "stream. Where real callers would not, use more --connections."
        )
    said = (
        f"the client got to requests {behind_us / 1000:.1f} ms after they were due (99th "
        "percentile)"
    )
    if client.busiest >= BUSY:
        return f"{said}. Use {more}, or another machine."
    return (
        f"{said} although it used only {client.busiest:.2f} of a core: something else on this "
        "machine had its processors. Run it on another machine, or leave it a core of its own."
    )


def above(counts: Counts, us: float) -> int:
    """How many are larger."""
    return int(counts.counts[lowest_of(counts.buckets) > us].sum())
