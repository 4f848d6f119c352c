"""What loading, memory and registries have to say on ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.lifecycle.manager import Manager


def lifecycle_metrics(manager: Manager) -> Iterator[Metric]:
    """Loads, and the memory that versions hold."""
    loads = CounterMetricFamily("sluice_loads", "Loads of versions that ended.", labels=["outcome"])
    for outcome, count in manager.ended_loads.items():
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
    yield GaugeMetricFamily(
        "sluice_loads_waiting_for_memory",
        "Loads of versions that wait now for memory.",
        manager.memory.waiting,
    )
    yield GaugeMetricFamily(
        "sluice_fetches_running",
        "Versions whose files are being fetched now.",
        manager.runner.fetching,
    )
    yield CounterMetricFamily(
        "sluice_fetched_bytes",
        "Bytes of versions' files that were fetched.",
        manager.runner.fetched_bytes,
    )
    held_back = GaugeMetricFamily(
        "sluice_version_held_back",
        "1 for a version that is ready and gets no share of the split, for its signature.",
        labels=["model", "version"],
    )
    for name, model in manager.models.items():
        for version in model.refused:
            held_back.add_metric([name, version], 1)
    yield held_back
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
