"""What to do next for one model: pure, told the state and the time, gives one action.

The idea is TensorFlow Serving's: compare the complete set of aspired versions with what is
there, do one thing, look again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredVersion

WORKING = (State.KNOWN, State.FETCHING, State.LOADING, State.WARMING)

Versions = Mapping[str, AspiredVersion]


@dataclass(frozen=True)
class Load:
    """Load this version; `retry` is the failed record it replaces."""

    aspired: AspiredVersion
    retry: Record | None = None


@dataclass(frozen=True)
class Unload:
    """Take this one out of the routing table, let it drain, close it."""

    record: Record


def next_action(
    desired: Versions,
    records: Sequence[Record],
    now: float,
    policy: Literal["availability", "resource"] = "availability",
) -> Load | Unload | None:
    """The next thing to do, or `None` while there is nothing or something has to end first.

    Availability first: a version in use goes only when what replaces it is ready, so a
    broken version never replaces a good one. Resource first: it goes before.
    """
    unload = _unload(desired, records, patient=policy == "availability")
    if policy == "resource":
        if unload is not None:
            return unload
        if any(r.state == State.DRAINING or _superfluous(r, desired) for r in records):
            return None
    load = _load(desired, records, now)
    return load if load is not None else unload


def with_stand_in(aspired: Versions, stand_ins: Versions, records: Sequence[Record]) -> Versions:
    """What should be loaded: the aspired versions and, while not one of them can be, the first
    of the `stand_ins` that can.

    Else a broken newest version would leave a gateway that starts with nothing to serve,
    beside one that has been running for longer and still has the version before.
    """
    hopeless = {
        record.version
        for record in records
        if record.attempts
        and record.state in (State.FAILED, *WORKING)
        and (is_current(record, aspired) or is_current(record, stand_ins))
    }
    others = any(r.state == State.READY and not is_current(r, stand_ins) for r in records)
    if not aspired or others or not hopeless.issuperset(aspired):
        return aspired
    desired = dict(aspired)
    for version, stand_in in stand_ins.items():
        desired = {version: stand_in, **desired}
        if version not in hopeless:
            break
    return desired


def is_current(record: Record, desired: Versions) -> bool:
    """Whether a record is of a wanted version, with the files that it has now."""
    want = desired.get(record.version)
    return want is not None and want.fingerprint == record.aspired.fingerprint


def _superfluous(record: Record, desired: Versions) -> bool:
    return record.state in WORKING and not is_current(record, desired)


def _load(desired: Versions, records: Sequence[Record], now: float) -> Load | None:
    current = {
        r.version: r for r in records if is_current(r, desired) and r.state != State.DRAINING
    }
    # The newest first: it is what most callers wait for.
    for version in reversed(list(desired)):
        record = current.get(version)
        if record is None:
            return Load(desired[version])
        if record.state == State.FAILED and record.retry_at <= now:
            return Load(desired[version], record)
    return None


def _unload(desired: Versions, records: Sequence[Record], *, patient: bool) -> Unload | None:
    ready = {r.version for r in records if r.state == State.READY and is_current(r, desired)}
    working = any(r.state in WORKING and is_current(r, desired) for r in records)
    for record in records:
        if is_current(record, desired):
            continue
        if record.state in (State.FETCHING, State.LOADING, State.WARMING, State.DRAINING):
            continue  # has to end first
        if record.state in (State.KNOWN, State.FAILED) or not (patient and desired):
            return Unload(record)
        if record.version in desired:
            replaced = record.version in ready
        else:
            replaced = bool(ready) and not working
        if replaced:
            return Unload(record)
    return None
