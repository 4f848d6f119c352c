"""``/metrics``: our own names, and Triton's beside them for existing dashboards.

Nothing here runs on the hot path: the collector reads the plain numbers of `ServableStats`
when Prometheus asks. Label values come from the registry and the error tree, never from a
client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.samples import Sample

from gateway import __version__
from gateway.errors import UnknownModel
from gateway.facts import Facts
from gateway.lifecycle.manager import Manager
from gateway.lifecycle.states import State
from gateway.pipeline import Pipeline
from gateway.servable import Servable
from gateway.telemetry import custom
from gateway.telemetry.counted import Counted, Counts
from gateway.telemetry.lifecycle import lifecycle_metrics, registry_metrics
from gateway.telemetry.stats import Histogram

CONTENT_TYPE = CONTENT_TYPE_LATEST
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_registry = CollectorRegistry()


# prometheus-client gives every counter the suffix that Triton's names do not have.
_TRITON_HEAD = re.compile(rb"^(# (?:HELP|TYPE) nv_\w+)_total ", re.MULTILINE)


def render() -> bytes:
    """All metrics in Prometheus' text format."""
    page = _TRITON_HEAD.sub(rb"\1 ", generate_latest(_registry))
    for name in custom.counter_names():
        page = re.sub(rb"^(# (?:HELP|TYPE) %b)_total " % name.encode(), rb"\1 ", page, flags=re.M)
    return page


class Collector:
    """Reads the gateway's numbers at scrape time."""

    def __init__(
        self,
        facts: Facts,
        manager: Manager,
        pipeline: Pipeline,
        troubles: Callable[[], Mapping[str, str]],
    ) -> None:
        self._facts = facts
        self._manager = manager
        self._pipeline = pipeline
        self._troubles = troubles
        """Source → why it cannot be read now; empty where it can."""
        self._counts = Counts(self._answering, manager.models)
        manager.on_change.append(self._counts.changed)

    def _answering(self, model: str) -> list[Servable]:
        try:
            return self._facts.servables(model)
        except UnknownModel:
            return []

    def register(self) -> None:
        for old in list(_registry._collector_to_names):
            _registry.unregister(old)
        _registry.register(self)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        counted = list(self._counts.all())
        yield from own_metrics(counted)
        yield from triton_metrics(counted)
        yield from self._gateway_metrics()
        yield from lifecycle_metrics(self._manager)
        yield from registry_metrics(self._troubles())
        yield from custom.families()

    def _gateway_metrics(self) -> Iterator[Metric]:
        refused = CounterMetricFamily(
            "sluice_refused_requests",
            "Requests that ended before a version was chosen.",
            labels=["protocol", "code"],
        )
        for (protocol, code), count in self._pipeline.refused.items():
            refused.add_metric([protocol, code], count)
        yield refused
        yield GaugeMetricFamily(
            "sluice_in_flight_requests", "Requests in the gateway now.",
            self._pipeline.admission.in_flight,
        )  # fmt: skip
        states = GaugeMetricFamily(
            "sluice_version_state",
            "1 for the state a version is in.",
            labels=["model", "version", "state"],
        )
        for name, record in self._facts.records():
            if record is not None and record.state != State.UNLOADED:
                states.add_metric([name, record.version, str(record.state)], 1)
        yield states
        info = GaugeMetricFamily("sluice_build_info", "The gateway's version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


def own_metrics(counted: Iterable[Counted]) -> Iterator[Metric]:
    """Requests, latencies, batches and queues by model and version, in base units."""
    labels = ["model", "version"]
    requests = CounterMetricFamily(
        "sluice_requests", "Requests that ended.", labels=[*labels, "protocol", "code"]
    )
    latency = HistogramMetricFamily(
        "sluice_request_seconds", "From arrival to answer.", labels=[*labels, "protocol"]
    )
    queue = HistogramMetricFamily(
        "sluice_queue_seconds", "Wait of a request for its batch to start (a batch's mean).",
        labels=labels,
    )  # fmt: skip
    execute = HistogramMetricFamily(
        "sluice_execute_seconds", "Time of a batch in the runtime.", labels=labels
    )
    rows = HistogramMetricFamily("sluice_batch_rows", "Rows of a batch.", labels=labels)
    closed = CounterMetricFamily(
        "sluice_batches", "Batches by why they were closed.", labels=[*labels, "reason"]
    )
    waiting = GaugeMetricFamily("sluice_queue_requests", "Requests that wait now.", labels=labels)
    waiting_rows = GaugeMetricFamily("sluice_queue_rows", "Rows that wait now.", labels=labels)
    answers = CounterMetricFamily(
        "sluice_streamed_answers", "Answers of models that give any number.", labels=labels
    )
    first = HistogramMetricFamily(
        "sluice_first_answer_seconds", "From arrival to the first of several answers.",
        labels=labels,
    )  # fmt: skip
    for each in counted:
        key = [each.name, each.version]
        stats = each.stats
        if each.decoupled:
            answers.add_metric(key, stats.streamed)
            add_histogram(first, key, stats.first_answer_seconds)
        for (protocol, code), count in list(stats.requests.items()):
            requests.add_metric([*key, protocol, code], count)
        for protocol, histogram in list(stats.request_seconds.items()):
            add_histogram(latency, [*key, protocol], histogram)
        add_histogram(queue, key, stats.queue_seconds)
        add_histogram(execute, key, stats.execute_seconds)
        add_histogram(rows, key, stats.batch_rows)
        for reason, count in list(stats.closed.items()):
            closed.add_metric([*key, reason], count)
        if each.servable is not None:
            waiting.add_metric(key, each.servable.dispatcher.waiting)
            waiting_rows.add_metric(key, each.servable.dispatcher.waiting_rows)
    yield from (requests, latency, queue, execute, rows, closed, waiting, waiting_rows)
    yield from (answers, first)


def triton_metrics(counted: Iterable[Counted]) -> Iterator[Metric]:
    """Triton's counters under their exact names, which have no ``_total``."""
    durations = (
        ("request", "success", "Cumulative inference request duration in microseconds"),
        ("queue", "queue", "Cumulative inference queuing duration in microseconds"),
        ("compute_input", "compute_input", "Cumulative compute input duration in microseconds"),
        ("compute_infer", "compute_infer", "Cumulative compute inference duration in microseconds"),
        ("compute_output", "compute_output", "Cumulative output duration in microseconds"),
    )
    success = Metric("nv_inference_request_success", "Successful inference requests", "counter")
    failure = Metric("nv_inference_request_failure", "Failed inference requests", "counter")
    count = Metric("nv_inference_count", "Inferences (rows)", "counter")
    execs = Metric("nv_inference_exec_count", "Model executions (batches)", "counter")
    pending = Metric("nv_inference_pending_request_count", "Requests waiting", "gauge")
    families = {
        name: Metric(f"nv_inference_{name}_duration_us", text, "counter")
        for name, _, text in durations
    }
    for each in counted:
        stats = each.stats
        labels = {"model": each.name, "version": each.version}
        add(success, labels, stats.success.count)
        for reason in REASONS:
            add(failure, {**labels, "reason": reason}, stats.failures[reason])
        add(count, labels, stats.inference_count)
        add(execs, labels, stats.execution_count)
        if each.servable is not None:
            add(pending, labels, each.servable.dispatcher.waiting)
        for name, attribute, _ in durations:
            add(families[name], labels, getattr(stats, attribute).ns // 1000)
    yield from (success, failure, count, execs, pending, *families.values())


def add(metric: Metric, labels: dict[str, str], value: float) -> None:
    """A sample under the metric's own name, without a suffix."""
    metric.samples.append(Sample(metric.name, labels, value))


def add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        total += count
        buckets.append((f"{bound:g}", total))
    total += histogram.counts[-1]
    buckets.append(("+Inf", total))
    family.add_metric(labels, buckets, sum_value=histogram.total)
