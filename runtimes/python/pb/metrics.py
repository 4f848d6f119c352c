"""``pb_utils.MetricFamily`` and ``Metric``: a model's own numbers on the gateway's ``/metrics``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar, Final

from gateway.telemetry.custom import Family, add_family, drop_family
from runtimes.python.pb.errors import TritonModelException

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class MetricKind(IntEnum):
    """What a number is."""

    COUNTER = 0
    GAUGE = 1


class Metric:
    """One number of a family, with its labels. Made by `MetricFamily.Metric`."""

    def __init__(self, family: Family, owner: object, labels: Mapping[str, str]) -> None:
        self._family = family
        self._owner = owner  # the family is shown for as long as one of its numbers is there
        self._key = tuple(sorted(labels.items()))
        family.values.setdefault(self._key, 0.0)

    def increment(self, value: float) -> None:
        """Adds to it; a counter only grows."""
        if self._family.kind == "counter" and value < 0:
            raise TritonModelException(
                f"Failed to increment metric value: a counter cannot shrink by {value}"
            )
        with self._family.lock:
            self._family.values[self._key] += float(value)

    def set(self, value: float) -> None:
        """Sets a gauge."""
        if self._family.kind == "counter":
            raise TritonModelException(
                "Failed to set metric value: only gauges can be set; use increment"
            )
        with self._family.lock:
            self._family.values[self._key] = float(value)

    def observe(self, value: float) -> None:
        """Refused: there are no histograms of a model's own."""
        raise TritonModelException(
            "Metric.observe is not supported: models' own metrics are counters and gauges here"
        )

    def value(self) -> float:
        """As it is now."""
        return self._family.values[self._key]


class MetricFamily:
    """Numbers of one name. Families of one name are one, whichever models make them."""

    COUNTER: ClassVar = MetricKind.COUNTER
    GAUGE: ClassVar = MetricKind.GAUGE

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        if not _NAME.fullmatch(name) or name.startswith(("sluice_", "nv_")):
            raise TritonModelException(
                f"metric '{name}': a name has letters, digits and '_', and does not begin with "
                "sluice_ or nv_"
            )
        self._family = add_family(name, description, MetricKind(kind).name.lower())
        if self._family is None:
            raise TritonModelException(f"metric '{name}' exists already as another kind")
        self._name = name

    def Metric(self, labels: Mapping[str, str] | None = None) -> Metric:  # noqa: N802
        """One of its numbers."""
        for label in labels or {}:
            if not _LABEL.fullmatch(label):
                raise TritonModelException(f"metric '{self._name}': '{label}' is no label")
        assert self._family is not None
        return Metric(self._family, self, {k: str(v) for k, v in (labels or {}).items()})

    def __del__(self) -> None:
        if getattr(self, "_name", None) is not None:
            drop_family(self._name)
