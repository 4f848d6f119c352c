"""Numbers that models count themselves, shown on ``/metrics`` beside ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

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


def families() -> Iterator[Metric]:
    """For the page."""
    with _lock:
        found = list(_families.values())
    for family in found:
        metric = Metric(family.name, family.description, family.kind)
        for labels, value in list(family.values.items()):
            metric.samples.append(Sample(family.name, dict(labels), value))
        yield metric


def counter_names() -> frozenset[str]:
    """Counters, which have names of their own choice."""
    with _lock:
        return frozenset(f.name for f in _families.values() if f.kind == "counter")
