"""Where a rollback leads to: pure, told the record of a model and what there is now."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.errors import Conflict, NotFound
from gateway.history.base import Change, Served
from gateway.lifecycle.routes import by_age
from gateway.registries.traffic import Traffic


def target(model: str, changes: Sequence[Change], known: Sequence[str], to: int | None) -> Traffic:
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
        entry = next((change for change in changes if moved(change)), None)
        if entry is None:
            raise Conflict(
                f"there is nothing to roll back: the history of '{model}' has no change of its "
                "split or labels"
            )
        served = entry.before
    return declared(model, served, known)


def moved(change: Change) -> bool:
    """Whether an entry changed what is declared, or which version answers where nothing is."""
    before, after = change.before, change.after
    if before.traffic != after.traffic:
        return True
    if before.traffic.weights or not before.shares or not after.shares:
        return False
    return set(before.shares) != set(after.shares)


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
