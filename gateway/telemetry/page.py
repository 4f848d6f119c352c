"""The text of ``/metrics``, written a piece at a time.

prometheus-client builds an object and several small strings for every line. With thousands of
models that holds up everything else for seconds, so the lines of models are written directly;
what is written is what it would write, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from gateway.telemetry.stats import Histogram

CHUNK: Final = 1024
"""Lines that become bytes at once: about 100 KiB."""
FEW: Final = 32
"""Lines of one metric between two places where others may run."""


def label(name: str, value: str) -> str:
    """``name="value"``, escaped."""
    if "\\" in value or "\n" in value or '"' in value:
        value = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'{name}="{value}"'


def number(value: float) -> str:
    """A value as Go writes it."""
    if type(value) is int and 0 <= value < 1_000_000:
        return f"{value}.0"
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


@lru_cache(64)
def _bucket_heads(name: str, bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (
        *(f'{name}_bucket{{le="{bound:g}",' for bound in bounds),
        f'{name}_bucket{{le="+Inf",',
    )


class Family:
    """All lines of one metric. Labels are given as text, made by `label`, sorted by name and
    joined with commas; a histogram's ``le`` goes before them."""

    def __init__(self, name: str, documentation: str, kind: str, *, suffix: str = "") -> None:
        """`kind`: counter, gauge or histogram; `suffix` ends the names of its samples."""
        documentation = documentation.replace("\\", r"\\").replace("\n", r"\n")
        self.name = name + suffix
        self._chunks: list[bytes] = []
        self._lines = [f"# HELP {self.name} {documentation}\n# TYPE {self.name} {kind}\n"]

    def add(self, labels: str, value: float) -> None:
        """One sample."""
        braces = f"{{{labels}}}" if labels else ""
        self._lines.append(f"{self.name}{braces} {number(value)}\n")
        if len(self._lines) >= CHUNK:
            self._flush()

    def add_histogram(self, labels: str, histogram: Histogram) -> None:
        """The buckets, the count and the sum."""
        lines = self._lines
        name = self.name
        total = 0
        tail = labels + "} "
        for head, count in zip(
            _bucket_heads(name, histogram.bounds), histogram.counts, strict=True
        ):
            total += count
            lines.append(f"{head}{tail}{number(total)}\n")
        lines.append(
            f"{name}_count{{{tail}{number(total)}\n{name}_sum{{{tail}{number(histogram.total)}\n"
        )
        if len(lines) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        # What is no text in one model's name must not take everybody's page away.
        self._chunks.append("".join(self._lines).encode(errors="replace"))
        self._lines.clear()

    def chunks(self) -> list[bytes]:
        """All of it."""
        if self._lines:
            self._flush()
        return self._chunks


def counter(name: str, documentation: str) -> Family:
    """One of our counters, whose name ends in ``_total``."""
    return Family(name, documentation, "counter", suffix="_total")


def write_metric(metric: Metric, out: list[bytes]) -> Iterator[None]:
    """Appends the text of a counter or gauge of prometheus-client's to `out`, in steps.

    A counter that is none of its own class keeps its name, to which that class adds ``_total``.
    """
    suffix = "_total" if isinstance(metric, CounterMetricFamily) else ""
    family = Family(metric.name, metric.documentation, metric.type, suffix=suffix)
    for place, sample in enumerate(metric.samples, start=1):
        family.add(labels_of(sample.labels), sample.value)
        if place % FEW == 0:
            yield
    out += family.chunks()
    yield


def labels_of(labels: Mapping[str, str]) -> str:
    """Labels of any number, as `Family` takes them."""
    return ",".join([label(name, value) for name, value in sorted(labels.items())])
