"""What was served at a moment, out of the entries around it: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from gateway.history.base import CRASH, START, STOP, Change, Moment, Past


class Run:
    """One run of a gateway, as its entries tell it."""

    def __init__(self, run: str, gateway: str) -> None:
        self.run = run
        self.gateway = gateway
        self.start: Change | None = None
        self.end: Change | None = None

    def take(self, entry: Change) -> None:
        """Hears of its start, its stop or its crash; a stop of its own is the better witness."""
        if entry.action == START:
            self.start = entry
        elif entry.action == STOP or (entry.action == CRASH and self.end is None):
            self.end = entry

    def may_have_lived(self, at: float) -> bool:
        """Whether it ran at that moment, as far as is known."""
        if self.start is None or self.start.at > at:
            return False
        return self.end is None or self.end.at > at

    def is_sure(self, at: float) -> bool:
        """Of one that may have lived: whether it did."""
        return self.end is None or self.end.action == STOP or self.end.since >= at


def past_of(
    at: float,
    model: str,
    runs: Sequence[Run],
    states: Mapping[str, Sequence[tuple[Change, float | None]]],
) -> Past:
    """What was served `at` that moment (of one model; of all where it is empty).

    `states` has for every run that may have lived the last entry of each model, and when the
    next one followed.
    """
    moments: list[Moment] = []
    notes: list[str] = []
    living = [run for run in runs if run.run in states]
    for run in living:
        sure = run.is_sure(at)
        if not sure and run.end is not None:
            notes.append(
                f"{run.gateway} crashed between {when(run.end.since)} and {when(run.end.at)}: "
                "it may not have answered any more"
            )
        for change, following in states[run.run]:
            end = run.end.at if run.end is not None else None
            ends = [each for each in (following, end) if each is not None]
            if not change.after.shares:
                continue
            until = min(ends) if ends else None
            moments.append(
                Moment(run.gateway, change.model, change, until, "running" if sure else "unknown")
            )
    if not moments:
        notes.append(why_nothing(at, model, runs, living))
    return Past(at, sorted(moments, key=lambda m: (m.model, m.gateway)), "; ".join(notes))


def why_nothing(at: float, model: str, runs: Sequence[Run], living: Sequence[Run]) -> str:
    """In words, why nothing was served."""
    if living:
        return f"no version of '{model}' was served" if model else "no model was served"
    starts = [run.start.at for run in runs if run.start is not None]
    if not starts:
        return "the record is empty"
    if at < min(starts):
        return f"the record begins at {when(min(starts))}"
    last = max(
        (run for run in runs if run.end is not None and run.end.at <= at),
        key=lambda run: 0.0 if run.end is None else run.end.at,
        default=None,
    )
    if last is None or last.end is None:
        return "no gateway ran"
    what = "stopped" if last.end.action == STOP else "had crashed, as was found"
    return f"no gateway ran: {last.gateway} {what} at {when(last.end.at)}"


def when(at: float) -> str:
    """In UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
