"""What has to hold at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from loadtests.soak.growth import slope
from loadtests.soak.ledger import BAD, End, Ledger
from loadtests.soak.rest import Rest
from loadtests.soak.results import Sample, Verdict

LEAK_MIB: Final = 15.0
"""MiB an hour that a short soak may seem to grow by: allocators do not give back all at once."""
CREEP_MIB: Final = 8.0
"""MiB that memory may grow by in all, however long the soak is."""
BLUR_MIB: Final = 30.0
"""MiB an hour. What is less sure than this (half an interval) is not judged."""
SHORTEST_H: Final = 5 / 60
"""Hours in which memory can be judged: before that, it is caches that fill."""
SLACK: Final = 3
"""File descriptors, or threads, that come and go."""
KEPT: Final = 0.5
"""Share of the generous deadlines that are kept at least."""
FEWEST_DEADLINES: Final = 20


@dataclass
class Found:
    """Verdicts, and what could not be judged."""

    verdicts: list[Verdict] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)

    def none(self, name: str, why: str) -> None:
        """Notes that there is no verdict."""
        self.unjudged.append(f"not judged: {name}: {why}")


def memory(
    found: Found, name: str, samples: Sequence[Sample], read: Callable[[Sample], float | None]
) -> None:
    """Whether memory grew, by its slope after the first quarter."""
    grown = slope(samples, read)
    if grown is None:
        found.none(name, f"{len(samples)} samples are too few")
        return
    allowed = min(LEAK_MIB, CREEP_MIB / max(grown.hours, 1e-9))
    if grown.hours < SHORTEST_H:
        found.none(name, f"{grown.words()}, too short a time")
    elif grown.low <= allowed and grown.half > BLUR_MIB:
        found.none(name, f"{grown.words()}, too uneven")
    else:
        found.verdicts.append(
            Verdict(name, grown.low <= allowed, grown.words(), f"from {allowed:+.1f}")
        )


def count(
    found: Found, name: str, samples: Sequence[Sample], read: Callable[[Sample], int | None]
) -> None:
    """Whether there are more and more file descriptors, threads or processes under load."""
    name = f"{name} do not grow under load"
    grown = slope(samples, read)
    if grown is None:
        found.none(name, f"{len(samples)} samples are too few")
        return
    low, middle, high = (each * grown.hours for each in (grown.low, grown.an_hour, grown.high))
    found.verdicts.append(
        Verdict(
            name,
            low <= SLACK,
            f"{middle:+.0f} in all ({low:+.0f} to {high:+.0f})",
            f"from {SLACK:+d}",
        )
    )


def requests(ledger: Ledger) -> list[Verdict]:
    """Whether every request ended as it should."""
    ends, sent = ledger.total(), ledger.sent
    found = [
        Verdict("every request that was sent has ended", ends == sent, f"{ends:,} of {sent:,}")
    ]
    for name, end in (
        ("no lost request", End.LOST),
        ("no wrong answer", End.WRONG),
        ("no error without a reason", End.FAILED),
    ):
        number = ledger.total(end)
        found.append(Verdict(name, not number, f"{number} of {sent:,}", "0"))
    answered = ledger.total(End.OK)
    found.append(Verdict("something was answered", answered > 0, f"{answered:,}"))
    return found


def deadlines(found: Found, ledger: Ledger) -> None:
    """Whether a deadline that leaves enough time is mostly kept."""
    name = "generous deadlines are kept"
    if ledger.generous < FEWEST_DEADLINES:
        found.none(name, f"{ledger.generous} requests had one")
        return
    share = ledger.generous_kept / ledger.generous
    found.verdicts.append(
        Verdict(name, share >= KEPT, f"{share:.0%} of {ledger.generous:,}", f"{KEPT:.0%} or more")
    )


def at_rest(before: Rest, after: Rest) -> list[Verdict]:
    """Whether what was held before the load, and nothing else, is held after it."""
    waiting = "unknown" if after.waiting is None else f"{after.waiting:g}"
    found = [
        Verdict("nothing left waiting in the gateway", after.waiting == 0, waiting, "0"),
        Verdict("no zombies", after.zombies == 0, f"{after.zombies}", "0"),
        Verdict(
            "processes after the load as before it",
            after.processes == before.processes,
            f"{before.processes} to {after.processes}",
            "the same",
        ),
    ]
    own = next(iter(before.descriptors))
    stayed = [pid for pid in before.descriptors if pid != own and pid in after.descriptors]
    pairs = [
        ("file descriptors", before.descriptors[own], after.descriptors.get(own, 0)),
        ("threads", before.threads, after.threads),
    ]
    if stayed:
        first = sum(before.descriptors[pid] for pid in stayed)
        last = sum(after.descriptors[pid] for pid in stayed)
        pairs.append(("file descriptors of children that stayed", first, last))
    for name, first, last in pairs:
        allowed = 0 if "children" in name else SLACK
        found.append(
            Verdict(
                f"{name} after the load as before it",
                last - first <= allowed,
                f"{first} to {last}",
                f"{allowed:+d}",
            )
        )
    return found


def as_before(before: Rest, after: Rest) -> bool:
    """Whether all of `at_rest` holds."""
    return all(each.passed for each in at_rest(before, after))


def events(gateway: str, trouble: Sequence[str], own: Sequence[str]) -> list[Verdict]:
    """Whether the gateway lived, did what it was told, and the soak itself worked.

    ``gateway`` says how it ended, if it did; the others are what went wrong, in order.
    """

    def told(name: str, wrong: Sequence[str]) -> Verdict:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return Verdict(name, not wrong, f"{wrong[0]}{more}" if wrong else "yes")

    return [
        told("the gateway stays up", [gateway] if gateway else []),
        told("swaps and all other changes succeed", trouble),
        told("the soak itself works", own),
    ]


def all_of(ledger: Ledger, samples: Sequence[Sample], before: Rest, after: Rest | None) -> Found:
    """Everything that can be said; ``after`` is `None` where there is no gateway left."""
    found = Found(requests(ledger))
    deadlines(found, ledger)
    memory(found, "memory does not grow", samples, lambda each: each.memory_mib)
    memory(found, "memory of children does not grow", samples, lambda each: each.children_mib)
    count(found, "file descriptors", samples, lambda each: each.descriptors)
    count(found, "threads", samples, lambda each: each.threads)
    count(found, "processes", samples, lambda each: each.processes)
    if after is None:
        found.none("what is held at rest", "the gateway is gone")
    else:
        found.verdicts += at_rest(before, after)
    return found


def bad_ends(ledger: Ledger) -> int:
    """Requests that ended in a way that no request may."""
    return ledger.total(*BAD)
