"""What loading, memory and registries have to say on ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.lifecycle.manager import Manager


def lifecycle_metrics(manager: Manager) -> Iterator[Metric]:
    """Loads, and the memory that versions hold."""
    loads = CounterMetricFamily("sluice_loads", "Loads of versions that ended.", labels=["outcome"])
    for outcome, count in manager.loads.items():
        loads.add_metric([outcome], count)
    yield loads
    yield CounterMetricFamily(
        "sluice_load_seconds", "Time that successful loads took.", manager.load_seconds
    )
    memory = GaugeMetricFamily(
        "sluice_version_memory_bytes",
        "Memory that a version holds, as estimated before and measured after loading it.",
        labels=["model", "version"],
    )
    sizes: dict[tuple[str, str], int] = {}
    for record, size in manager.memory.held.items():
        # Of two loads of one version both hold memory.
        key = record.model, record.version
        sizes[key] = sizes.get(key, 0) + size
    for labels, size in sizes.items():
        memory.add_metric(labels, size)
    yield memory
    if manager.memory.budget:
        yield GaugeMetricFamily(
            "sluice_memory_budget_bytes", "lifecycle.memory_budget_mb.", manager.memory.budget
        )
    yield CounterMetricFamily(
        "sluice_evictions",
        "On-demand versions unloaded for others' sake.",
        manager.memory.evictions,
    )
    yield GaugeMetricFamily(
        "sluice_on_demand_waiting_requests",
        "Requests that wait now for a model to be loaded.",
        manager.demand.waiting,
    )
    yield CounterMetricFamily(
        "sluice_on_demand_waited_requests",
        "Requests that had to wait for a model to be loaded.",
        manager.demand.waited,
    )


def registry_metrics(troubles: Mapping[str, str]) -> Iterator[Metric]:
    """Whether each source can be read; `troubles` says why not, empty where it can."""
    reachable = GaugeMetricFamily(
        "sluice_source_reachable", "1 while the source of models can be read.", labels=["source"]
    )
    for source, trouble in troubles.items():
        reachable.add_metric([source], 0 if trouble else 1)
    yield reachable
