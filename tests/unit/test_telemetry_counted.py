"""Counters never go back while their model is known, whatever is loaded and unloaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.counted import MOST_LOADS, MOST_RETIRED, Counts
from gateway.telemetry.metrics import ModelFamilies
from gateway.telemetry.stats import ServableStats


class Served:
    """One model whose servables are set by hand."""

    def __init__(self) -> None:
        self.answering: dict[str, Any] = {}
        self.known = {"m"}
        self.counts = Counts(lambda _: self.answering.values(), self.known)

    def load(self, version: str) -> Any:
        dispatcher = SimpleNamespace(waiting=3, waiting_rows=5)
        servable = SimpleNamespace(
            name="m", version=version, stats=ServableStats(), decoupled=False, dispatcher=dispatcher
        )
        self.answering[version] = servable
        self.counts.changed("m")
        return servable

    def unload(self, version: str) -> None:
        del self.answering[version]
        self.counts.changed("m")

    def samples(self) -> dict[tuple[Any, ...], float]:
        families = ModelFamilies()
        for counted in self.counts.all():
            families.add(counted)
        page = b"".join(chunk for family in families.all() for chunk in family.chunks())
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
        }


def count(stats: ServableStats) -> None:
    stats.executed(2, 4, "idle", 0.002, 0.001, 0.01)
    stats.split(2, 4, 0.001)
    stats.answered(0, 0.01, 0.02)
    stats.failed("http", "overloaded", "REJECTED", 0.5)
    stats.requests["grpc", "ok"] += 2
    stats.success.add(2, 0.1)


def test_unloaded_versions_keep_their_counters_and_no_gauges() -> None:
    served = Served()
    count(served.load("1").stats)
    before = served.samples()
    served.load("2")
    served.unload("1")
    after = served.samples()
    gone = {key for key in before if key not in after}
    assert {name for name, *_ in gone} == {
        "sluice_queue_requests", "sluice_queue_rows", "nv_inference_pending_request_count",
    }  # fmt: skip
    assert all(after[key] == value for key, value in before.items() if key not in gone)


def test_a_version_that_is_loaded_again_goes_on_counting() -> None:
    served = Served()
    first = served.load("1").stats
    count(first)
    loads = 1
    for _ in range(3 * MOST_LOADS):
        before = served.samples()
        count(served.load("1").stats)
        loads += 1
        after = served.samples()
        assert all(after[key] >= value for key, value in before.items())
    assert after["nv_inference_count_total", ("model", "m"), ("version", "1")] == 4 * loads
    assert (
        after["sluice_requests_total", ("code", "ok"), ("model", "m"), ("protocol", "grpc"),
              ("version", "1")] == 2 * loads
    )  # fmt: skip


def test_an_old_load_still_counts_while_it_ends() -> None:
    served = Served()
    old = served.load("1").stats
    served.load("1")
    count(old)
    assert served.samples()["nv_inference_count_total", ("model", "m"), ("version", "1")] == 4


def test_what_is_kept_is_bounded() -> None:
    served = Served()
    for version in range(1, 3 * MOST_RETIRED):
        served.load(str(version))
        if version != 1:
            served.unload(str(version))
    kept = [each.version for each in served.counts.all()]
    assert len(kept) == MOST_RETIRED + 1
    assert "1" in kept  # it still answers
    assert str(3 * MOST_RETIRED - 1) in kept
    served.known.clear()
    assert list(served.counts.all()) == []
