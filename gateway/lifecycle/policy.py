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

_WORKING = (State.KNOWN, State.LOADING, State.WARMING)


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
    aspired: Mapping[str, AspiredVersion],
    records: Sequence[Record],
    now: float,
    policy: Literal["availability", "resource"] = "availability",
) -> Load | Unload | None:
    """The next thing to do, or `None` while there is nothing or something has to end first.

    Availability first: a version in use goes only when what replaces it is ready, so a
    broken version never replaces a good one. Resource first: it goes before.
    """
    unload = _unload(aspired, records, patient=policy == "availability")
    if unload is not None and policy == "resource":
        return unload
    if policy == "resource" and any(record.state == State.DRAINING for record in records):
        return None
    load = _load(aspired, records, now)
    return load if load is not None else unload


def _wanted(record: Record, aspired: Mapping[str, AspiredVersion]) -> bool:
    want = aspired.get(record.version)
    return want is not None and want.fingerprint == record.aspired.fingerprint


def _load(
    aspired: Mapping[str, AspiredVersion], records: Sequence[Record], now: float
) -> Load | None:
    current = {r.version: r for r in records if _wanted(r, aspired) and r.state != State.DRAINING}
    # The newest first: it is what most callers wait for.
    for version in reversed(aspired):
        record = current.get(version)
        if record is None:
            return Load(aspired[version])
        if record.state == State.FAILED and record.retry_at <= now:
            return Load(aspired[version], record)
    return None


def _unload(
    aspired: Mapping[str, AspiredVersion], records: Sequence[Record], *, patient: bool
) -> Unload | None:
    ready = {r.version for r in records if r.state == State.READY and _wanted(r, aspired)}
    working = any(r.state in _WORKING and _wanted(r, aspired) for r in records)
    for record in records:
        if _wanted(record, aspired) or record.state in (*_WORKING, State.DRAINING):
            continue
        if record.state == State.FAILED:
            return Unload(record)
        if patient and aspired:
            if record.version in aspired:
                replaced = record.version in ready
            else:
                replaced = bool(ready) and not working
            if not replaced:
                continue
        return Unload(record)
    return None
