"""`run_point` from end to end, with processes of its own, against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from gateway.tensors import Tensor, datatype
from loadtests.bench import results
from loadtests.bench.answers import check_first
from loadtests.bench.clients import make_client
from loadtests.bench.clients.base import Call
from loadtests.bench.messages import Plan, write
from loadtests.bench.plan import Load, Protocol, Target
from loadtests.bench.point import run_point
from loadtests.bench.processes import shares
from loadtests.bench.results import Latency, Point, Tick
from loadtests.errors import BenchError, Unreachable
from loadtests.payloads.base import Sample, Wire
from loadtests.payloads.encode import encode
from loadtests.tests.bench_servers import GOOD, Http, serving
from tests.support.gateway import GatewayProcess
from tests.support.onnx_models import write_adding

WIRE = Wire("/v2/models/m/infer", b"{}")
BUSY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
BAD = b'HTTP/1.1 400 Bad Request\r\ncontent-length: 26\r\n\r\n{"error":"x is not there"}'


def measure(server: Http, wires: list[Wire] | None = None, **load: Any) -> Point:
    with serving(server) as port:
        target = Target("m", Protocol.JSON, http=f"http://127.0.0.1:{port}")
        given = {"warmup_s": 0.0, "seconds": 1.0, **load}
        return run_point(target, Load(**given), wires or [WIRE], server_statistics=False)


def above(latency: Latency, us: int) -> int:
    """How many were slower."""
    histogram = HdrHistogram.decode(latency.histogram)
    return sum(
        each.count_added_in_this_iter_step
        for each in histogram.get_recorded_iterator()
        if each.value_iterated_to >= us
    )


def adds_up(point: Point) -> None:
    """Nothing is lost between what was sent and what is told."""
    assert point.sent == point.ok + point.failed
    assert point.service.count == point.ok
    assert point.latency.count == point.ok + point.unanswered
    measured = [tick for tick in point.ticks if tick.at_s >= 0]
    assert sum(tick.sent for tick in measured) == point.sent
    assert sum(tick.ok for tick in measured) == point.ok
    assert sum(tick.failed for tick in measured) == point.failed
    assert (point.error_latency.count if point.error_latency else 0) == point.failed


def test_a_stall_is_felt_by_all_who_were_due_in_it() -> None:
    """Coordinated omission: 100 requests a second, and one second in which nothing is answered.
    With a connection for each process, most requests cannot even leave in that second."""
    # The first two requests are those that look whether there is a server.
    point = measure(
        Http(stall_at=32), rate=100, arrivals="constant", seconds=2.0, processes=2, connections=2
    )
    adds_up(point)
    assert point.sent == point.ok == 200
    # Those due in its first half, second for second; the first one waited for all of it.
    assert above(point.latency, 500_000) >= 50
    assert above(point.latency, 200_000) >= 80
    assert point.latency.at(99) >= 980_000
    assert point.latency.at(75) >= 490_000
    assert above(point.latency, 2_000_000) <= above(point.latency, 980_000)


def test_a_closed_loop_does_not_feel_it() -> None:
    """Which is why the other one is there: one request of thousands met the same second."""
    point = measure(Http(stall_at=31), concurrency=1, seconds=1.3)
    adds_up(point)
    assert above(point.latency, 900_000) == 1
    assert point.latency.at(75) < 490_000


def test_what_goes_wrong_has_a_name() -> None:
    """By number: busy, reset, never answered, and well."""
    kinds = {1: BUSY, 2: b"", 3: None}
    server = Http(lambda number: GOOD if number < 3 else kinds.get(number % 10, GOOD))
    point = measure(server, rate=100, timeout_s=1.0, max_in_flight=1000)
    adds_up(point)
    assert set(point.errors) == {"429", "connection", "timeout"}
    # Each in ten, but those that came at the very ends.
    assert all(abs(count - point.sent / 10) <= 2 for count in point.errors.values())
    assert point.versions == {"7": point.ok}
    assert point.error_latency and above(point.error_latency, 999_000) >= point.errors["timeout"]
    assert point.rate == pytest.approx(point.ok, abs=point.ok)


def test_answers_that_come_late_count_with_their_true_latency() -> None:
    """The server answers nothing of what was due in the window until it is over."""
    point = measure(Http(stall_at=2, stall_s=1.5), rate=50, arrivals="constant", seconds=1.0)
    adds_up(point)
    assert (point.sent, point.ok) == (50, 50)
    assert point.rate == 0 and above(point.latency, 500_000) == 50


def test_more_in_flight_than_allowed_is_an_overrun() -> None:
    server = Http(lambda number: GOOD if number == 1 else None)
    point = measure(server, rate=50, arrivals="constant", timeout_s=1.5, max_in_flight=10)
    adds_up(point)
    assert point.errors == {"overrun": 40, "timeout": 10}
    assert point.ok == 0 and point.rate == 0
    # All took the timeout at least, those too that were not even sent.
    assert point.latency.count == 50 and point.at_least(50)
    assert point.latency.at(50) == pytest.approx(1_500_000, rel=0.01)
    assert "40 requests were not sent" in point.client.bottleneck or "late" in (
        point.client.bottleneck
    )


def test_payloads_go_out_in_turn() -> None:
    server = Http()
    wires = [Wire("/p", str(number).encode()) for number in range(3)]
    point = measure(server, wires, rate=60, arrivals="constant", processes=2, connections=2)
    # Each process asks once beforehand.
    counts = {body: server.bodies.count(body) for body in (b"0", b"1", b"2")}
    assert sum(counts.values()) == point.sent + 2
    assert max(counts.values()) - min(counts.values()) <= 2
    assert server.connections == 2


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (Http(lambda number: BAD), "answered with 400: x is not there"),
        (Http(lambda number: b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
         "no answer of json to an inference"),
    ],
)  # fmt: skip
def test_a_first_request_that_no_other_would_better(server: Http, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        measure(server, concurrency=2)


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens to nobody
        port = taken.getsockname()[1]
        for protocol in (Protocol.BINARY, Protocol.GRPC):
            target = Target("m", protocol, f"http://127.0.0.1:{port}", f"127.0.0.1:{port}")
            with pytest.raises(Unreachable, match=f"nobody answers at 127.0.0.1:{port}"):
                run_point(target, Load(rate=1), [WIRE], server_statistics=False)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (Load(), "set one of them"),
        (Load(rate=1, concurrency=1), "set one of them"),
        (Load(rate=-1), "must not be negative"),
        (Load(rate=1, arrivals="uniform"), "choose poisson or constant"),
        (Load(rate=1, seconds=0), "seconds 0"),
        (Load(rate=1, timeout_s=7200), "3600"),
        (Load(rate=1, processes=0), "processes 0 is too small"),
        (Load(rate=1, warmup_s=-1), "warmup_s -1"),
        (Load(rate=1, seed=-1), "seed -1"),
    ],
)
def test_loads_that_cannot_be_sent(load: Load, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        run_point(Target("m", Protocol.JSON, http="http://127.0.0.1:1"), load, [WIRE])
    with pytest.raises(BenchError, match="nothing to send"):
        run_point(Target("m", Protocol.JSON, http="http://127.0.0.1:1"), Load(rate=1), [])


def test_a_load_is_divided_whole() -> None:
    parts = shares(Load(concurrency=7, connections=5, processes=3))
    assert [(each.concurrency, each.connections) for each in parts] == [(3, 2), (2, 2), (2, 1)]
    assert len(shares(Load(concurrency=2, processes=5))) == 2
    parts = shares(Load(rate=100, max_in_flight=100, processes=3))
    assert [(each.rate, each.max_in_flight) for each in parts] == [(100, 34), (100, 33), (100, 33)]


@pytest.fixture
def children() -> Callable[[], set[str]]:
    """The processes that this one has started since."""
    listed = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not listed.exists():
        pytest.skip("needs /proc/<pid>/task/<tid>/children")
    before = set(listed.read_text().split())
    return lambda: set(listed.read_text().split()) - before


def test_what_a_client_that_was_held_up_sends_late_counts_in_full(
    children: Callable[[], set[str]],
) -> None:
    held: list[int] = []

    def hold(tick: Tick) -> None:
        if not held:
            held.extend(map(int, children()))
            os.kill(held[0], signal.SIGSTOP)
            time.sleep(0.6)
            os.kill(held[0], signal.SIGCONT)

    with serving(Http()) as port:
        target = Target("m", Protocol.JSON, http=f"http://127.0.0.1:{port}")
        load = Load(rate=100, arrivals="constant", seconds=2.5, warmup_s=0.0)
        point = run_point(target, load, [WIRE], progress=hold, server_statistics=False)
    adds_up(point)
    assert len(held) == 1
    assert point.sent == point.ok == 250
    assert above(point.latency, 300_000) >= 29  # due in the first half of the time
    assert point.client.late_p99_us >= 300_000
    assert point.client.lag_p99_us >= 300_000
    assert "client" in point.client.bottleneck


def test_a_process_that_is_killed_is_told(children: Callable[[], set[str]]) -> None:
    """And the others do not stay behind."""
    killed: list[int] = []

    def kill(tick: Tick) -> None:
        if not killed:
            killed.append(int(min(children())))
            os.kill(killed[0], signal.SIGKILL)

    with serving(Http()) as port:
        target = Target("m", Protocol.JSON, http=f"http://127.0.0.1:{port}")
        load = Load(concurrency=2, processes=2, seconds=60.0, warmup_s=0.0)
        with pytest.raises(BenchError, match="ended with exit code -9"):
            run_point(target, load, [WIRE], progress=kill, server_statistics=False)
    assert not children()


def test_a_process_does_not_outlive_who_started_it() -> None:
    with serving(Http()) as port:
        target = Target("m", Protocol.JSON, http=f"http://127.0.0.1:{port}")
        command = [sys.executable, "-m", "loadtests.bench.worker"]
        root = str(Path(__file__).parents[2])
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
        ) as process:
            assert process.stdin and process.stdout
            write(process.stdin, Plan(target, Load(concurrency=1), 0, 1, [WIRE]))
            assert process.stdout.read(8)  # it is ready
            process.stdin.close()
            assert process.wait(20) == 1


def test_a_process_that_is_still_connecting_does_not_either() -> None:
    """A server that closes every connection: there is no end to making them."""

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    with serving(closes) as port:
        target = Target("m", Protocol.JSON, http=f"http://127.0.0.1:{port}")
        command = [sys.executable, "-m", "loadtests.bench.worker"]
        root = str(Path(__file__).parents[2])
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
        ) as process:
            assert process.stdin
            write(process.stdin, Plan(target, Load(concurrency=90_000), 0, 1, [WIRE]))
            process.stdin.close()
            assert process.wait(20) == 1


def test_a_server_that_closes_what_is_too_many_is_told_by_number() -> None:
    there = 0

    async def limited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal there
        there += 1
        if there <= 5:
            with contextlib.suppress(asyncio.CancelledError):
                await reader.read()
        writer.close()

    with serving(limited) as port:
        target = Target("m", Protocol.JSON, http=f"http://127.0.0.1:{port}")
        with pytest.raises(BenchError, match=r"closed \d+ of \d+ connections before a request"):
            run_point(target, Load(concurrency=20), [WIRE], server_statistics=False)


def test_a_server_that_dies_in_a_closed_loop_is_seen() -> None:
    """Its latencies are splendid up to then, and nothing is sent after."""
    server = Http(lambda number: GOOD if number < 300 else None)
    point = measure(server, concurrency=2, seconds=3.0, timeout_s=4.0)
    assert point.silent_s >= 2.0


# --- the gateway


def sample(value: float) -> Sample:
    data = np.full((1, 4), value, np.float32).tobytes()
    return Sample((Tensor("x", datatype("FP32"), (1, 4), data),))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("gateway")
    write_adding(folder / "models", "add", 1.0, 2.0)
    (folder / "models/add/traffic.yaml").write_text('weights: {"1": 50, "2": 50}\nstable: "1"\n')
    process = GatewayProcess(folder, [folder / "models"])
    yield process
    process.stop()


@pytest.mark.parametrize("protocol", [Protocol.GRPC, Protocol.STREAM, Protocol.BINARY])
def test_the_gateway_under_load(gateway: Any, protocol: Protocol) -> None:
    http = gateway.http if "://" in gateway.http else f"http://{gateway.http}"
    target = Target("add", protocol, http=http, grpc=gateway.grpc)
    ticks: list[Tick] = []
    load = Load(concurrency=8, seconds=0.5, warmup_s=0.1)
    wires = [encode(sample(value), target) for value in range(5)]
    point = run_point(target, load, wires, progress=ticks.append)
    adds_up(point)
    assert point.errors == {} and point.ok > 0
    assert set(point.versions) == {"1", "2"} and sum(point.versions.values()) == point.ok
    assert point.server is not None and point.server.requests > 0
    assert point.server.batch_sizes
    assert point.client.cpu > 0 and point.steady and point.warmup_s == pytest.approx(0.1)
    document = results.Result("", "", target, "", {}, {}, [point])
    assert results.load(results.dump(document)).points == [point]


@pytest.mark.parametrize("protocol", list(Protocol))
def test_the_first_answer_of_every_protocol(gateway: Any, protocol: Protocol) -> None:
    http = gateway.http if "://" in gateway.http else f"http://{gateway.http}"
    target = Target("add", protocol, http=http, grpc=gateway.grpc)

    async def asking() -> tuple[str, str, bytes]:
        said: asyncio.Future[tuple[str, str, bytes]] = asyncio.get_running_loop().create_future()
        client = make_client(
            target,
            [encode(sample(1), target)],
            connections=1,
            most=1,
            done=lambda call, *rest: said.set_result(rest),
        )
        await client.open()
        call = Call(0, 0, 0)
        call.keep = True
        client.send(call)
        found = await asyncio.wait_for(said, 20)
        await client.close()
        return found

    outcome, version, body = asyncio.run(asking())
    assert outcome == "" and version in ("1", "2")
    check_first(target, outcome, body)
    with pytest.raises(BenchError, match="no answer of"):
        check_first(target, outcome, b"\xff" + body[1:])


def test_a_model_that_is_not_there(gateway: Any) -> None:
    http = gateway.http if "://" in gateway.http else f"http://{gateway.http}"
    for protocol, code in ((Protocol.GRPC, "NOT_FOUND"), (Protocol.STREAM, "error")):
        target = Target("gone", protocol, http=http, grpc=gateway.grpc)
        with pytest.raises(BenchError, match=f"answered with {code}: .*gone"):
            run_point(target, Load(rate=10), [encode(sample(1), target)])
