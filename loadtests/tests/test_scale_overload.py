"""Overload: what is found from points, without a server; and waiting for one to be empty."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.codecs.messages import ModelInferRequest
from loadtests.bench.plan import Load, Target
from loadtests.bench.results import Client, Latency, Point
from loadtests.compare.processes import Server
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire
from loadtests.scale import overload, text
from loadtests.scale.beside import longest_wait
from loadtests.scale.drive import Bench
from loadtests.scale.study import OFFERED, Report, Study
from loadtests.scale.waiting import drained

CAPACITY = 1000.0


def latency(p99_ms: float, count: int = 100) -> Latency:
    return Latency(count, p99_ms * 500, {"50": p99_ms * 400, "99": p99_ms * 1000}, "")


def a_point(
    load: Load, rate: float, p99_ms: float, *, bottleneck: str = "", **errors: int
) -> Point:
    sent = int(load.rate * load.seconds)
    client = Client(0.5, 0.5, 2, 100, 100, bottleneck)
    return Point(
        load, 0.0, True, load.seconds, sent, int(rate * load.seconds), errors, rate, None,
        latency(p99_ms), latency(p99_ms / 10), None, {}, [], client,
    )  # fmt: skip


def a_level(offered: float, rate: float, p99_ms: float, memory: int = 100, **how: Any) -> Any:
    point = a_point(Load(rate=offered * CAPACITY, seconds=5.0), rate, p99_ms, **how)
    return overload.Level(offered, point, memory)


def judged(*levels: Any, before: int = 100) -> dict[str, bool]:
    study = Study("overload-model", "Overload", OFFERED)
    overload.fill(study, levels, before)
    return {check.name: check.met for check in study.checks}


GOOD = (
    a_level(0.5, 500, 10),
    a_level(0.8, 800, 20),
    a_level(1.0, 980, 30),
    a_level(3.0, 990, 39, RESOURCE_EXHAUSTED=10_000),
)


def test_a_server_that_refuses_early_passes() -> None:
    assert all(judged(*GOOD).values())
    assert len(judged(*GOOD)) == 4


@pytest.mark.parametrize(
    ("level", "missed"),
    [
        (a_level(2.0, 800, 39), "worst goodput above capacity, of the maximum"),
        (a_level(2.0, 980, 41), "worst p99 over that at 0.8"),
        (a_level(2.0, 980, 39, memory=151), "memory in overload over that before"),
        (a_level(2.0, 980, 39, INTERNAL=1), "requests that failed otherwise"),
    ],
)
def test_each_bound_is_judged(level: Any, missed: str) -> None:
    verdicts = judged(*GOOD, level)
    assert [name for name, met in verdicts.items() if not met] == [missed]


def test_the_lower_half_is_not_held_against_the_maximum() -> None:
    assert judged(a_level(0.5, 500, 10), a_level(0.8, 800, 20), a_level(1, 990, 20))


def test_goodput_is_held_against_no_more_than_was_offered() -> None:
    assert not all(judged(*GOOD, a_level(1.5, 1300, 30)).values())
    assert judged(GOOD[0], GOOD[1], a_level(1.0, 1000, 30), a_level(1.5, 1450, 30))[
        "worst goodput above capacity, of the maximum"
    ]


def test_a_late_client_is_not_the_server_s_doing() -> None:
    slow = a_level(3.0, 990, 390, bottleneck="it used its core", overrun=3)
    assert slow.p99_us == 39_000
    assert judged(*GOOD, slow)["worst p99 over that at 0.8"]


def test_requests_that_ended_late_or_refused_are_shares() -> None:
    level = a_level(2.0, 900, 30, RESOURCE_EXHAUSTED=4000, DEADLINE_EXCEEDED=1000)
    assert level.share(overload.REFUSALS) == 0.4
    assert level.share(overload.LATE) == 0.1


def test_other_failures_are_named() -> None:
    levels = [
        a_level(1, 900, 30, RESOURCE_EXHAUSTED=4, INTERNAL=2),
        a_level(2, 900, 30, INTERNAL=1, overrun=1500),
    ]
    assert overload.failures(levels).startswith("INTERNAL 3, overrun 1,500, where overrun is")
    assert overload.failures(GOOD) == ""


def test_no_level_above_capacity_is_judged_by_nothing() -> None:
    assert judged(a_level(0.5, 500, 10)) == {}


def test_a_deadline_is_in_the_request() -> None:
    for scenario in overload.SCENARIOS:
        message = ModelInferRequest.FromString(overload.payload(scenario).body)
        assert message.model_name == scenario.model
        assert message.parameters["timeout"].int64_param == scenario.deadline_ms * 1000


def test_every_level_is_offered_relative_to_the_capacity(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Load] = []

    def run(target: Target, load: Load, wires: Sequence[Wire]) -> Point:
        loads.append(load)
        if load.concurrency:
            return a_point(load, CAPACITY, 20)
        return a_point(load, min(load.rate, CAPACITY), 20)

    monkeypatch.setattr(overload, "reset_peak", lambda pid: None)
    monkeypatch.setattr(overload, "peak_bytes", lambda pid: 100)
    monkeypatch.setattr(overload, "resident_bytes", lambda pid: 100)
    monkeypatch.setattr(overload, "drained", lambda server: None)
    server = SimpleNamespace(http="h:1", grpc="h:2", process=SimpleNamespace(pid=1))

    @contextmanager
    def serve(*what: object) -> Iterator[Any]:
        yield server

    bench = Bench("gateway", tmp_path, say=lambda line: None)
    bench.begin(1e9)
    monkeypatch.setattr(bench, "serve", serve)
    studies = overload.measure(bench, run)
    assert [study.name for study in studies] == [each.name for each in overload.SCENARIOS]
    assert [load.rate for load in loads[:8]] == [0, *(CAPACITY * at for at in overload.LEVELS)]
    assert all(load.open for load in loads[1:8])
    assert not any(study.bad for study in studies)
    page = text.markdown(Report("", "", {}, {}, studies))
    assert "| goodput (requests/s) | 500 | 800 | 1,000 |" in page
    assert "slope of the cost" not in page
    assert bench.command == "gateway"


class Metrics(http.server.BaseHTTPRequestHandler):
    """So many requests in flight, one fewer at each look."""

    in_flight = 3

    def do_GET(self) -> None:
        body = f"sluice_in_flight_requests {float(max(type(self).in_flight, 0))}\n".encode()
        type(self).in_flight -= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def metrics() -> Iterator[Server]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            yield cast(Server, SimpleNamespace(http=f"127.0.0.1:{web.server_port}"))
        finally:
            web.shutdown()
            thread.join()


def test_a_server_is_waited_for_until_it_is_empty() -> None:
    with metrics() as server:
        Metrics.in_flight = 3
        with pytest.raises(BenchError, match=r"still in the gateway: 3\.0"):
            drained(server, patience_s=0)
        drained(server)
        assert Metrics.in_flight < 0


def test_the_longest_wait_of_others_is_that_while_something_runs() -> None:
    asked = threading.Event()

    def slow() -> None:
        before = Metrics.in_flight
        while Metrics.in_flight > before - 3:
            asked.wait(0.01)

    with metrics() as server:
        assert longest_wait(server, slow) > 0
        with pytest.raises(ZeroDivisionError):
            longest_wait(server, lambda: 1 / 0)
    with pytest.raises(BenchError, match="answers 0"):
        longest_wait(server, lambda: asked.wait(1))
