"""The server's own side: what is read of it, and what happened between two readings."""

from __future__ import annotations

import orjson
import pytest

from loadtests.bench.plan import Protocol, Target
from loadtests.bench.server import (
    ServerStats,
    Snapshot,
    difference,
    from_metrics,
    from_statistics,
)
from loadtests.tests.bench_pages import serving

ENTRY = {
    "name": "add",
    "version": "1",
    "inference_count": 10,
    "execution_count": 4,
    "inference_stats": {
        "success": {"count": 5, "ns": 9000},
        "fail": {"count": 1, "ns": 10},
        "queue": {"count": 5, "ns": 1000},
        "compute_infer": {"count": 5, "ns": 5000},
    },
    "batch_stats": [
        {"batch_size": 1, "compute_infer": {"count": 1, "ns": 5}},
        {"batch_size": 3, "compute_infer": {"count": 3, "ns": 5}},
    ],
}

PAGE = """\
# HELP nv_inference_request_success Successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="add",version="1"} 5
nv_inference_request_success{model="add",version="2"} 2
nv_inference_request_success{model="other",version="1"} 100
# TYPE nv_inference_count counter
nv_inference_count{model="add",version="1"} 10
nv_inference_exec_count{model="add",version="1"} 4
nv_inference_queue_duration_us{model="add",version="1"} 7
nv_inference_compute_infer_duration_us{model="add",version="1"} 70
other_metric{model="add" 1
"""


def test_statistics_of_all_versions_count_together() -> None:
    second = {**ENTRY, "version": "2", "batch_stats": [], "inference_stats": {"success": {}}}
    found = from_statistics([ENTRY, second])
    assert found == Snapshot(
        5, 8, 20, 1000, 5000, {1: 1, 3: 3}, {"1": 5, "2": 0}, timed=5, source="statistics"
    )


def test_metrics_are_of_one_model() -> None:
    found = from_metrics(PAGE, "add")
    assert found == Snapshot(
        7, 4, 10, 7000, 70_000, {}, {"1": 5, "2": 2}, timed=7, source="metrics"
    )
    second = from_metrics(PAGE, "add", "2")
    assert second is not None and second.requests == 2 and second.executions == 0
    assert from_metrics(PAGE, "nobody") is None
    assert from_metrics("<html>", "add") is None
    assert from_metrics("nv_inference_count{model=", "add") is None


def test_what_happened_between_two_readings() -> None:
    before = Snapshot(10, 5, 20, 1000, 2000, {1: 4, 2: 1}, {"1": 10}, timed=10)
    after = Snapshot(30, 9, 60, 41_000, 62_000, {1: 4, 2: 3, 4: 2}, {"1": 25, "2": 5}, timed=30)
    found = difference(before, after)
    assert (found.requests, found.executions, found.batch_rows) == (20, 4, 10.0)
    assert (found.queue_us, found.execute_us) == (2.0, 3.0)
    assert found.batch_sizes == {"2": 2, "4": 2}


def test_a_server_that_did_nothing_divides_by_nothing() -> None:
    same = Snapshot(10, 5, 20, 1000, 2000, {1: 5}, {"1": 10}, timed=10)
    found = difference(same, same)
    assert (found.requests, found.queue_us, found.batch_rows, found.batch_sizes) == (0, 0, 0, {})


def test_a_server_that_was_restarted_counts_from_zero() -> None:
    before = Snapshot(1000, 500, 2000, 10**9, 10**9, {4: 500}, {"1": 1000}, timed=1000)
    after = Snapshot(10, 5, 10, 10_000, 20_000, {2: 5}, {"1": 10}, timed=10)
    found = difference(before, after)
    assert (found.requests, found.executions, found.batch_sizes) == (10, 5, {"2": 5})
    assert (found.queue_us, found.execute_us) == (1.0, 2.0)


STATISTICS = orjson.dumps({"model_stats": [ENTRY]})


@pytest.mark.parametrize(
    ("pages", "source"),
    [
        ({"/v2/models/add/stats": STATISTICS, "/metrics": PAGE.encode()}, "statistics"),
        ({"/v2/models/add/stats": b"[]", "/metrics": PAGE.encode()}, "metrics"),
        ({"/v2/models/add/stats": b'{"model_stats": [3]}'}, None),
        ({"/metrics": b"\xff\xfe"}, None),
        ({}, None),
    ],
)
def test_the_first_way_that_has_something_is_kept(
    pages: dict[str, bytes], source: str | None
) -> None:
    with serving(pages) as url, ServerStats(Target("add", Protocol.BINARY, url)) as stats:
        found = stats.read()
        assert (found and found.source) == source
        pages.clear()
        assert stats.read() is None
        pages["/v2/models/add/stats"] = STATISTICS
        again = stats.read()
        # Two kinds of counters are never taken from each other.
        assert (again and again.source) == ("statistics" if source != "metrics" else None)


def test_a_version_and_odd_names_are_part_of_the_address() -> None:
    pages = {"/v2/models/a%2Fb/versions/2/stats": STATISTICS}
    with (
        serving(pages) as url,
        ServerStats(Target("a/b", Protocol.BINARY, url, version="2")) as stats,
    ):
        assert stats.read() is not None


def test_nobody_there_has_no_counters() -> None:
    with serving({}) as url:
        pass
    target = Target("add", Protocol.GRPC, url, url.removeprefix("http://"))
    with ServerStats(target) as stats:
        assert stats.read() is None
