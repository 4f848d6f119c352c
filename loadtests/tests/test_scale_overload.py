"""Overload: what is found from points, without a server; and waiting for one to be empty."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from gateway.codecs.messages import ModelInferRequest
from loadtests.bench.plan import Load, Target
from loadtests.bench.results import Client, Latency, Point
from loadtests.compare import load
from loadtests.compare.processes import Server
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire
from loadtests.scale import overload, text
from loadtests.scale.beside import longest_wait
from loadtests.scale.drive import Bench, Driven
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


def judged(*levels: Any, before: int = 100, **how: Any) -> dict[str, bool | None]:
    """Of each check whether it is met; `None`: not measured."""
    study = Study("overload-model", "Overload", OFFERED, capacity=CAPACITY)
    overload.fill(study, levels, before, **how)
    return {check.name: None if check.unmeasured else check.met for check in study.checks}


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


def test_goodput_is_held_against_no_more_than_was_offered() -> None:
    assert not all(judged(*GOOD, a_level(1.5, 1300, 30)).values())
    levels = GOOD[0], GOOD[1], a_level(1.0, 1000, 30), a_level(1.5, 1420, 30)
    assert judged(*levels)["worst goodput above capacity, of the maximum"]


BUSY = "it used its core"


def test_a_level_that_the_client_limited_is_no_verdict() -> None:
    slow = a_level(2.0, 500, 390, 1000, bottleneck=BUSY, overrun=3)
    assert slow.p99_us == 39_000
    assert set(judged(*GOOD, slow).values()) == {None}
    # What the others miss is missed all the same.
    assert judged(*GOOD, slow, a_level(1.5, 800, 30))[
        "worst goodput above capacity, of the maximum"
    ] is False  # fmt: skip


def test_a_client_that_limited_the_capacity_leaves_nothing_measured() -> None:
    assert set(judged(*GOOD, limit="h2load used 0.97 cores").values()) == {None}


def test_a_reference_that_the_client_limited_leaves_its_bound_unmeasured() -> None:
    found = judged(GOOD[0], a_level(0.8, 800, 1, bottleneck=BUSY), *GOOD[2:])
    assert found.pop("worst p99 over that at 0.8") is None
    assert set(found.values()) == {True}


def test_what_was_no_overload_is_not_measured() -> None:
    everything = a_level(3.0, 3000, 20)
    assert set(judged(*GOOD[:3], everything).values()) == {None}
    assert set(judged(*GOOD[:3]).values()) == {None}
    study = Study("overload-model", "Overload", OFFERED, capacity=CAPACITY)
    overload.fill(study, [*GOOD[:3], everything], 100)
    assert study.bad == []
    (line,) = study.undecided
    assert "it was no overload: worst goodput above capacity" in line
    page = text.markdown(Report("", "", {}, {}, [study]))
    assert "**not measured**" in page and "Nothing grows" not in page


def test_goodput_is_held_against_what_was_to_be_offered_not_what_was_sent() -> None:
    point = a_level(3.0, 500, 30).point
    few = overload.Level(3.0, msgspec.structs.replace(point, sent=2500), 100)
    assert judged(*GOOD[:3], few)["worst goodput above capacity, of the maximum"] is False


def test_deadlines_that_pass_fail_only_callers_that_gave_none() -> None:
    level = a_level(2.0, 980, 30, DEADLINE_EXCEEDED=10)
    assert judged(*GOOD, level)["requests that failed otherwise"] is False
    assert judged(*GOOD, level, deadline=True)["requests that failed otherwise"] is True
    study = Study("overload-model", "Overload", OFFERED, capacity=CAPACITY)
    overload.fill(study, [*GOOD, level], 100, deadline=True)
    assert study.bad == []
    assert "missed, explained: the callers asked" in text.section(study)


def test_requests_that_ended_late_or_refused_are_shares() -> None:
    level = a_level(2.0, 900, 30, RESOURCE_EXHAUSTED=4000, DEADLINE_EXCEEDED=1000)
    assert level.share(overload.REFUSALS) == 0.4
    assert level.share(overload.LATE) == 0.1


def test_other_failures_are_named() -> None:
    levels = [
        a_level(1, 900, 30, RESOURCE_EXHAUSTED=4, INTERNAL=2),
        a_level(2, 900, 30, INTERNAL=1, overrun=1500),
    ]
    levels.append(a_level(2, 900, 30, DEADLINE_EXCEEDED=1))
    assert overload.failures(levels).startswith(
        "INTERNAL 3, overrun 1,500, DEADLINE_EXCEEDED 1, where overrun is"
    )
    assert overload.failures(GOOD) == ""


def test_levels_below_capacity_alone_say_nothing() -> None:
    assert set(judged(a_level(0.5, 500, 10)).values()) == {None}
    assert set(judged().values()) == {None}


def test_a_deadline_is_in_the_request() -> None:
    for scenario in overload.SCENARIOS:
        message = ModelInferRequest.FromString(overload.payload(scenario).body)
        assert message.model_name == scenario.model
        assert message.parameters["timeout"].int64_param == scenario.deadline_ms * 1000


def test_every_level_is_offered_relative_to_the_capacity(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Load] = []
    shapes: list[load.Shape] = []

    def run(target: Target, level: Load, wires: Sequence[Wire]) -> Point:
        loads.append(level)
        return a_point(level, min(level.rate, CAPACITY), 20)

    def drive(server: Any, what: Any, shape: load.Shape, *rest: Any, readings: int) -> Any:
        shapes.append(shape)
        return [Driven(rate, 1.0, None, 0.5, 0.9) for rate in (CAPACITY - 100, CAPACITY)]

    monkeypatch.setattr(overload, "drive", drive)
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
    assert [shape.concurrency for shape in shapes] == [256] * 4
    assert [each.rate for each in loads[:7]] == [CAPACITY * at for at in overload.LEVELS]
    assert all(each.open for each in loads)
    assert not any(study.bad or study.undecided for study in studies)
    page = text.markdown(Report("", "", {}, {}, studies))
    assert "| goodput (requests/s) | 500 | 800 | 1,000 |" in page
    assert "slope of the cost" not in page
    assert bench.command == "gateway"


def test_a_capacity_of_errors_is_none(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """h2load takes a gRPC error for a success: the bytes tell."""
    sent: list[int] = []

    def run(what: Any, shape: Any, requests: int, **how: Any) -> load.Result:
        sent.append(requests)
        good = requests if len(sent) == 1 else requests // 2
        return load.Result(
            requests, 0.1, 1e4, 1.0, succeeded=requests, ok_codes=requests, data_bytes=60 * good
        )

    monkeypatch.setattr(load, "run", run)
    monkeypatch.setattr(load, "calibrate", lambda *what, **how: 1000.0)
    server: Any = SimpleNamespace(http="h:1", grpc="h:2", process=SimpleNamespace(pid=1))
    bench = Bench("gateway", tmp_path, say=lambda line: None)
    study = Study("overload-model", "Overload", OFFERED)
    why = overload.find(bench, study, overload.SCENARIOS[0], server)
    assert "50% of the answers were errors" in why
    overload.fill(study, [], 100, why)
    assert study.capacity == 0
    assert not any(check.met for check in study.checks) and study.undecided


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
