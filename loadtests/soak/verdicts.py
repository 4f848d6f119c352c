"""What has to hold at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from loadtests.report.soak import Sample, Verdict
from loadtests.soak.ledger import BAD, End, Ledger

EARLY = (0.25, 0.45)
"""The part of a soak that the end is compared with: after the start, when caches have filled."""
LATE = 0.8
GROWTH = 1.05
"""Memory at the end over memory early on, at most."""
SLACK_MIB = 4.0
"""Growth that counts as none, however small the gateway is."""
FEWEST = 20
"""Samples in which growth can be seen at all."""
SLACK = 3
"""File descriptors, or threads, that come and go."""


def levels(
    samples: Sequence[Sample], read: Callable[[Sample], float | None]
) -> tuple[float, float]:
    """Medians early on and at the end, of `FEWEST` samples at least."""
    count = len(samples)
    early = [read(each) for each in samples[int(EARLY[0] * count) : int(EARLY[1] * count)]]
    late = [read(each) for each in samples[int(LATE * count) :]]
    return (
        median(value for value in early if value is not None),
        median(value for value in late if value is not None),
    )


def memory(samples: Sequence[Sample]) -> Verdict:
    """Whether the gateway's own memory grew."""
    early, late = levels(samples, lambda each: each.memory_mib)
    return Verdict(
        "memory does not grow",
        late <= early * GROWTH or late - early <= SLACK_MIB,
        f"{early:.1f} to {late:.1f} MiB ({late / early - 1:+.1%})",
        f"{GROWTH - 1:+.0%} or {SLACK_MIB:g} MiB",
    )


def count(name: str, samples: Sequence[Sample], read: Callable[[Sample], int | None]) -> Verdict:
    """Whether there are more file descriptors, threads or processes at the end."""
    early, late = levels(samples, read)
    return Verdict(
        f"{name} do not grow", late - early <= SLACK, f"{early:g} to {late:g}", f"{SLACK:+d}"
    )


def rest(name: str, before: float, after: float, allowed: float, unit: str = "") -> Verdict:
    """Whether what was there before the load is there after it."""
    return Verdict(
        f"{name} after the load as before it",
        after - before <= allowed,
        f"{before:g} to {after:g}{unit}",
        f"{allowed:+g}{unit}",
    )


def requests(ledger: Ledger) -> list[Verdict]:
    """Whether every request ended as it should."""
    sent = ledger.total()
    found = []
    for name, end in (
        ("no lost request", End.LOST),
        ("no wrong answer", End.WRONG),
        ("no error without a reason", End.FAILED),
    ):
        number = ledger.total(end)
        found.append(Verdict(name, not number, f"{number} of {sent:,}", "0"))
    found.append(Verdict("nothing left waiting", not ledger.open, f"{ledger.open}", "0"))
    found.append(
        Verdict("something was answered", ledger.total(End.OK) > 0, f"{ledger.total(End.OK):,}")
    )
    return found


def all_of(
    ledger: Ledger, samples: Sequence[Sample], before: Sample, after: Sample
) -> list[Verdict]:
    """Everything that can be said. ``before`` and ``after``: at rest."""
    found = requests(ledger)
    if len(samples) >= FEWEST:
        found += [
            memory(samples),
            count("file descriptors", samples, lambda each: each.descriptors),
            count("threads", samples, lambda each: each.threads),
            count("processes", samples, lambda each: each.processes),
        ]
    found += [
        rest("file descriptors", before.descriptors or 0, after.descriptors or 0, SLACK),
        rest("threads", before.threads or 0, after.threads or 0, SLACK),
    ]
    return found


def bad_ends(ledger: Ledger) -> int:
    """Requests that ended in a way that no request may."""
    return ledger.total(*BAD)
