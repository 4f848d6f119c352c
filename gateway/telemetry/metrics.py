"""``/metrics``: our own names, and Triton's beside them for existing dashboards.

Nothing here runs on the hot path: the collector reads the plain numbers of `ServableStats`
when Prometheus asks. Label values come from the registry and the error tree, never from a
client.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

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
from gateway.telemetry.page import Family, counter, label, write_metric

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
REASONS: Final = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


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

    def pieces(self, out: list[bytes]) -> Generator[None]:
        """Appends all metrics in Prometheus' text format to `out`, in steps of well below a
        millisecond; other things may happen between them.

        What is shown of a version is of one moment, as is the list of the models.
        """
        families = ModelFamilies()
        for each in self._counts.all():
            families.add(each)
            yield
        for family in families.all():
            out += family.chunks()
            yield
        for metric in self._requests():
            yield from write_metric(metric, out)
        states = Family("sluice_version_state", "1 for the state a version is in.", "gauge")
        for name, record in self._facts.records():
            if record is not None and record.state != State.UNLOADED:
                words = f"{label('model', name)},{label('state', str(record.state))}"
                states.add(f"{words},{label('version', record.version)}", 1)
            yield
        out += states.chunks()
        for metrics in (
            self._build(),
            lifecycle_metrics(self._manager),
            registry_metrics(self._troubles()),
            custom.families(),
        ):
            for metric in metrics:
                yield from write_metric(metric, out)

    def _requests(self) -> Iterator[Metric]:
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

    def _build(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("sluice_build_info", "The gateway's version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


class ModelFamilies:
    """The metrics that every version has."""

    def __init__(self) -> None:
        self.own = OwnFamilies()
        self.triton = TritonFamilies()

    def add(self, counted: Counted) -> None:
        """The numbers of one version."""
        model = label("model", counted.name)
        version = label("version", counted.version)
        self.own.add(counted, model, version)
        self.triton.add(counted, model, version)

    def all(self) -> tuple[Family, ...]:
        return (*self.own.all(), *self.triton.all())


class OwnFamilies:
    """Requests, latencies, batches and queues by model and version, in base units."""

    def __init__(self) -> None:
        self.requests = counter("sluice_requests", "Requests that ended.")
        self.latency = Family("sluice_request_seconds", "From arrival to answer.", "histogram")
        self.queue = Family(
            "sluice_queue_seconds",
            "Wait of a request for its batch to start (a batch's mean).",
            "histogram",
        )
        self.execute = Family(
            "sluice_execute_seconds", "Time of a batch in the runtime.", "histogram"
        )
        self.rows = Family("sluice_batch_rows", "Rows of a batch.", "histogram")
        self.closed = counter("sluice_batches", "Batches by why they were closed.")
        self.waiting = Family("sluice_queue_requests", "Requests that wait now.", "gauge")
        self.waiting_rows = Family("sluice_queue_rows", "Rows that wait now.", "gauge")
        self.answers = counter("sluice_streamed_answers", "Answers of models that give any number.")
        self.first = Family(
            "sluice_first_answer_seconds",
            "From arrival to the first of several answers.",
            "histogram",
        )

    def add(self, counted: Counted, model: str, version: str) -> None:
        """The numbers of one version; `model` and `version` are its labels."""
        stats = counted.stats
        key = f"{model},{version}"
        if counted.decoupled:
            self.answers.add(key, stats.streamed)
            self.first.add_histogram(key, stats.first_answer_seconds)
        for (protocol, code), count in list(stats.requests.items()):
            words = label("protocol", protocol)
            self.requests.add(f"{label('code', code)},{model},{words},{version}", count)
        for protocol, histogram in list(stats.request_seconds.items()):
            words = label("protocol", protocol)
            self.latency.add_histogram(f"{model},{words},{version}", histogram)
        self.queue.add_histogram(key, stats.queue_seconds)
        self.execute.add_histogram(key, stats.execute_seconds)
        self.rows.add_histogram(key, stats.batch_rows)
        for reason, count in list(stats.closed.items()):
            self.closed.add(f"{model},{label('reason', reason)},{version}", count)
        if counted.servable is not None:
            self.waiting.add(key, counted.servable.dispatcher.waiting)
            self.waiting_rows.add(key, counted.servable.dispatcher.waiting_rows)

    def all(self) -> tuple[Family, ...]:
        """In the page's order."""
        return (
            self.requests, self.latency, self.queue, self.execute, self.rows, self.closed,
            self.waiting, self.waiting_rows, self.answers, self.first,
        )  # fmt: skip


class TritonFamilies:
    """Triton's counters under their exact names, which have no ``_total``."""

    DURATIONS: Final = (
        ("request", "success", "Cumulative inference request duration in microseconds"),
        ("queue", "queue", "Cumulative inference queuing duration in microseconds"),
        ("compute_input", "compute_input", "Cumulative compute input duration in microseconds"),
        ("compute_infer", "compute_infer", "Cumulative compute inference duration in microseconds"),
        ("compute_output", "compute_output", "Cumulative output duration in microseconds"),
    )

    def __init__(self) -> None:
        def plain(name: str, documentation: str, kind: str = "counter") -> Family:
            return Family(f"nv_inference_{name}", documentation, kind)

        self.success = plain("request_success", "Successful inference requests")
        self.failure = plain("request_failure", "Failed inference requests")
        self.count = plain("count", "Inferences (rows)")
        self.execs = plain("exec_count", "Model executions (batches)")
        self.pending = plain("pending_request_count", "Requests waiting", "gauge")
        self.durations = [
            (attribute, plain(f"{name}_duration_us", text))
            for name, attribute, text in self.DURATIONS
        ]

    def add(self, counted: Counted, model: str, version: str) -> None:
        """The numbers of one version; `model` and `version` are its labels."""
        stats = counted.stats
        key = f"{model},{version}"
        self.success.add(key, stats.success.count)
        for reason in REASONS:
            self.failure.add(f'{model},reason="{reason}",{version}', stats.failures[reason])
        self.count.add(key, stats.inference_count)
        self.execs.add(key, stats.execution_count)
        if counted.servable is not None:
            self.pending.add(key, counted.servable.dispatcher.waiting)
        for attribute, family in self.durations:
            family.add(key, getattr(stats, attribute).ns // 1000)

    def all(self) -> tuple[Family, ...]:
        """In the page's order."""
        families = (family for _, family in self.durations)
        return (self.success, self.failure, self.count, self.execs, self.pending, *families)
