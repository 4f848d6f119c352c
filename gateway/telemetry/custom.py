"""Numbers that models count themselves, shown on ``/metrics`` beside ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """All numbers of one name; `kind` is counter or gauge."""

    name: str
    description: str
    kind: str
    values: dict[Labels, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


_families: dict[str, Family] = {}
_elsewhere: dict[object, Sequence[Family]] = {}
"""Those of models in other processes, by process."""
_lock = threading.Lock()


def add_family(name: str, description: str, kind: str) -> Family | None:
    """The family of that name, made if need be; `None` if it is one of another kind."""
    with _lock:
        family = _families.setdefault(name, Family(name, description, kind))
        if family.kind != kind:
            return None
        family.users += 1
        return family


def drop_family(name: str) -> None:
    """One user less; the last one takes the family along."""
    with _lock:
        family = _families.get(name)
        if family is not None:
            family.users -= 1
            if family.users <= 0:
                del _families[name]


def own_families() -> list[Family]:
    """Those of this process."""
    with _lock:
        return list(_families.values())


def show_of(source: object, families: Sequence[Family]) -> None:
    """All that a model in another process counts; replaces what was known of it."""
    with _lock:
        _elsewhere[source] = families


def drop_of(source: object) -> None:
    """That process has ended."""
    with _lock:
        _elsewhere.pop(source, None)


def _merged() -> dict[str, Family]:
    """Families of one name are one, as in one process: counters add up, and of gauges with equal
    labels the last one counts. One whose kind differs from the first is left out."""
    with _lock:
        found = [*_families.values(), *(f for each in _elsewhere.values() for f in each)]
    merged: dict[str, Family] = {}
    for family in found:
        into = merged.setdefault(family.name, Family(family.name, family.description, family.kind))
        if into.kind != family.kind:
            continue
        for labels, value in list(family.values.items()):
            before = into.values.get(labels, 0.0) if family.kind == "counter" else 0.0
            into.values[labels] = before + value
    return merged


def families() -> Iterator[Metric]:
    """For the page."""
    # Imported here: in a child the page's library need not be installed.
    from prometheus_client.core import Metric
    from prometheus_client.samples import Sample

    for family in _merged().values():
        metric = Metric(family.name, family.description, family.kind)
        for labels, value in family.values.items():
            metric.samples.append(Sample(family.name, dict(labels), value))
        yield metric
