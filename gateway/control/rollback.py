"""Where a rollback leads to: pure, told the record of a model and what there is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gateway.errors import Conflict, NotFound
from gateway.history.base import Change, Served
from gateway.lifecycle.routes import by_age
from gateway.registries.traffic import Traffic

STARTING = 30.0
"""Seconds of a start, for entries of which nothing better is known."""


@dataclass(frozen=True)
class Start:
    """When this gateway started, and when the model was first as it should be; Unix seconds."""

    at: float = 0.0
    settled: float = 0.0


def target(
    model: str,
    changes: Sequence[Change],
    known: Sequence[str],
    to: int | None,
    start: Start = Start(),
) -> Traffic:
    """The split and the labels to declare again.

    `changes` are the entries of the model, the newest first, `known` the versions that are
    there. Without `to` it is what was before the latest entry that changed the split, the
    labels, or, where none is declared, the version that takes everything; else what was after
    entry `to`. Raises `NotFound` for an entry that is not there, `Conflict` where there is
    nothing to go back to.
    """
    if to is not None:
        entry = next((change for change in changes if change.id == to), None)
        if entry is None:
            raise NotFound(
                f"the history of '{model}' has no entry {to} among its latest {len(changes)}; "
                f"see 'sluice history {model}'"
            )
        served = entry.after
    else:
        entry = next((c for i, c in enumerate(changes) if moved(c, changes[i + 1 :], start)), None)
        if entry is None:
            raise Conflict(
                f"there is nothing to roll back: the history of '{model}' has no change of its "
                "split or labels"
            )
        served = entry.before
    return declared(model, served, known)


def moved(change: Change, older: Sequence[Change], start: Start) -> bool:
    """Whether an entry changed what is declared, or which version answers where nothing is.

    (While a gateway starts, an older version may answer for a moment before the newest one is
    ready: that is nothing to go back to.)
    """
    before, after = change.before, change.after
    if before.traffic != after.traffic:
        return True
    if before.traffic.weights or not before.shares or not after.shares:
        return False
    if set(before.shares) == set(after.shares):
        return False
    if change.at >= start.at:
        return change.at > start.settled
    return not any(
        not each.before.shares and each.after.shares and change.at - each.at < STARTING
        for each in older
    )


def declared(model: str, served: Served, known: Sequence[str]) -> Traffic:
    """The traffic to declare, so that what was served then is served again."""
    traffic = served.traffic
    if not traffic.weights and served.shares:
        newest = max(known, key=by_age, default=None)
        if set(served.shares) != {newest}:
            # "The newest takes everything" would be another version now.
            traffic = msgspec.structs.replace(
                traffic, weights=dict(served.shares), stable=served.stable
            )
    missing = sorted(traffic.named() - set(known), key=by_age)
    if missing:
        names = ", ".join(missing)
        raise Conflict(
            f"cannot roll '{model}' back: version {names} is not there any more; it has: "
            f"{', '.join(known) or 'none'}"
        )
    return traffic
