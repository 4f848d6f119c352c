"""A whole run, against a server that has pages and a measurement that is made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
import pytest

from loadtests.bench import sweep
from loadtests.bench.machine import without_secrets
from loadtests.bench.objective import parse
from loadtests.bench.plan import Load, Protocol, Target
from loadtests.bench.results import Point, Tick, dump, load
from loadtests.bench.run import Interrupted, Order, Requests, Seek, Unfit, bench
from loadtests.bench.server import ServerStats, Snapshot
from loadtests.bench.sustained import backlog
from loadtests.errors import BenchError, Unreachable
from loadtests.payloads.base import Wire
from loadtests.tests.bench_pages import serving
from loadtests.tests.bench_points import point

METADATA = orjson.dumps(
    {
        "name": "add",
        "versions": ["1", "2"],
        "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }
)
OURS = {"name": "sluicegate", "version": "1.2", "extensions": ["binary_tensor_data"]}
VERSIONS = {"versions": [{"version": "1", "share": 90.0}, {"version": "2", "share": 10.0}]}


class Quiet:
    """Nobody watches; what began is kept."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str, float]] = []

    def begin(self, load: Load, what: str) -> None:
        self.begun.append((load.name, what, load.seconds))

    def tick(self, tick: Tick) -> None:
        return

    def end(self, point: Point) -> None:
        return


class Made:
    """In the place of `run_point`: a server that gets ``capacity`` requests/s through."""

    def __init__(self, capacity: float = 300.0, **more: Any) -> None:
        self.capacity = capacity
        self.more = more
        self.loads: list[Load] = []
        self.wires: Sequence[Wire] = ()
        self.target = Target("")

    def __call__(
        self,
        target: Target,
        load: Load,
        payloads: Sequence[Wire],
        *,
        progress: Callable[[Tick], None],
    ) -> Point:
        self.target, self.wires = target, payloads
        self.loads.append(load)
        if load.open:
            slow = load.rate > self.capacity
            due = round(load.rate * 10)
            made = point(load.rate, us=500_000 if slow else 2000, ok=due, **self.more)
        else:
            made = point(0, load.concurrency, answered=self.capacity, **self.more)
        return made


@pytest.fixture
def pages() -> dict[str, bytes]:
    """A gateway's."""
    return {
        "/v2": orjson.dumps(OURS),
        "/v2/models/add": METADATA,
        "/admin/v1/models/add": orjson.dumps(VERSIONS),
    }


@pytest.fixture
def url(pages: dict[str, bytes]) -> Iterator[str]:
    with serving(pages) as address:
        yield address


def order(url: str, *concurrencies: int, **more: Any) -> Order:
    fields: dict[str, Any] = {
        "target": Target("add", Protocol.BINARY, url),
        "requests": Requests(),
        "template": Load(seconds=2.0),
        "levels": sweep.levels(Load(seconds=2.0), concurrencies, opened=False),
        "rest_s": 0.0,
        "any_encoding": True,
    }
    return Order(**{**fields, **more})


def test_a_sweep_goes_from_low_to_high(url: str) -> None:
    watch, made = Quiet(), Made()
    result = bench(order(url, 8, 1, 4, command="sluice bench add"), watch, made)
    assert watch.begun == [
        ("c1", "level 1 of 3", 2.0), ("c4", "level 2 of 3", 2.0), ("c8", "level 3 of 3", 2.0)
    ]  # fmt: skip
    assert [each.load.concurrency for each in result.points] == [1, 4, 8]
    assert result.expected_split == {"1": 0.9, "2": 0.1}
    assert result.versions["server"] == "sluicegate 1.2"
    assert result.machine["server"] == "on the same machine"
    assert load(dump(result)) == result
    assert len(made.wires) == 64 and all(wire.path.endswith("/infer") for wire in made.wires)


def test_levels_are_measured_in_the_order_asked_for_and_listed_from_low_to_high(url: str) -> None:
    given, shuffled = Made(), Made()
    bench(order(url, 8, 1, 4, order="given"), Quiet(), given)
    assert [each.concurrency for each in given.loads] == [8, 1, 4]
    many = order(url, *range(1, 20), order="shuffled")
    result = bench(many, Quiet(), shuffled)
    mixed = [each.concurrency for each in shuffled.loads]
    assert sorted(mixed) == list(range(1, 20)) != mixed
    assert [each.load.concurrency for each in result.points] == list(range(1, 20))


def test_a_search_claims_a_rate_that_a_longer_run_has_confirmed(url: str) -> None:
    watch, made = Quiet(), Made(capacity=300.0)
    seek = Seek(parse("p99<=20ms"), 1.0, 10_000.0, opened=True)
    result = bench(order(url, seek=seek), watch, made)
    assert result.search is not None and result.search.best is not None
    assert 285 <= result.search.best <= 300
    assert result.search.objective == "p99<=20ms,error<=0.1%"
    assert watch.begun[0][1] == "where to begin" and made.loads[0].concurrency == 16
    assert watch.begun[-1] == (f"{result.search.best:g}/s", "confirming", 6.0)
    rates = [each.load.rate for each in result.points]
    assert rates == sorted(set(rates)) and all(rates)
    best = next(each for each in result.points if each.load.rate == result.search.best)
    assert parse("p99<=20ms").met(best)


def test_a_search_does_not_claim_what_cannot_be_sustained(url: str) -> None:
    """A little more than the server gets through: a short run still meets the objective."""

    def growing(target: Target, load: Load, payloads: object, **more: object) -> Point:
        rate = load.rate or 300.0
        over = max(rate / 300.0 - 1, 0.0)
        ticks = [
            Tick(float(at), 1.0, round(rate), round(rate), 0, 2000 + over * at * 1e6, 9e5)
            for at in range(10)
        ]
        return point(
            load.rate, load.concurrency, ok=round(rate * 10), answered=min(rate, 300.0),
            us=2000, ticks=ticks,
        )  # fmt: skip

    seek = Seek(parse("p99<=2s"), 1.0, 10_000.0, opened=True)
    result = bench(order(url, seek=seek), Quiet(), growing)
    assert result.search is not None and result.search.best is not None
    assert 280 <= result.search.best <= 310
    assert any("cannot be sustained" in note for note in result.notes)


def test_what_is_a_backlog() -> None:
    def ticks(*us: float) -> list[Tick]:
        return [Tick(float(at), 1.0, 100, 100, 0, each, each) for at, each in enumerate(us)]

    assert backlog(point(100, ok=1000, ticks=ticks(*[2000] * 10))) == ""
    assert "falls behind" in backlog(point(100, ok=1000, answered=92, ticks=ticks(*[2000] * 10)))
    assert "latencies grew from" in backlog(
        point(100, ok=1000, answered=98, ticks=ticks(*range(10_000, 300_000, 29_000)))
    )
    # A slow model: at the end as many are under way as were at the beginning.
    assert backlog(point(100, ok=1000, answered=95, ticks=ticks(*[500_000] * 10))) == ""
    assert backlog(point(0, 4, ok=1000, answered=1)) == ""
    assert backlog(point(100, ok=900, errors={"429": 100}, answered=90)) == ""


def test_a_search_that_finds_nothing_says_by_how_much(url: str) -> None:
    seek = Seek(parse("p99<=1us"), 50.0, 200.0, opened=True)
    result = bench(order(url, seek=seek), Quiet(), Made())
    assert result.search is not None and result.search.best is None
    assert "even 50/s does not meet p99<=1us,error<=0.1%: p99 4 ms, wanted p99<=1us" in result.notes


def test_what_makes_figures_doubtful_is_noted(url: str) -> None:
    result = bench(order(url, 1, 4), Quiet(), Made(errors={"timeout": 9}, silent_s=2.0))
    assert result.notes[:2] == [
        "c1: nothing was answered for 2.0 of 10 s", "c4: nothing was answered for 2.0 of 10 s"
    ]  # fmt: skip
    assert result.notes[2].startswith("c1, c4: requests that were not answered")


def test_a_search_that_ends_at_its_bounds_says_so(url: str) -> None:
    seek = Seek(parse("p99<=20ms"), 1, 8, opened=False)
    result = bench(order(url, seek=seek), Quiet(), Made())
    assert result.search is not None and result.search.best == 8
    assert any("search higher with --concurrencies" in note for note in result.notes)


def test_a_missed_objective_with_a_busy_client_is_doubted(url: str) -> None:
    seek = Seek(parse("p99<=20ms"), 1.0, 1000.0, opened=True)
    result = bench(order(url, seek=seek), Quiet(), Made(bottleneck="it used a whole core"))
    assert any("the server may do better; give --processes" in note for note in result.notes)


def test_ctrl_c_keeps_what_was_measured(url: str) -> None:
    def stops(*args: Any, **more: Any) -> Point:
        made(*args, **more)
        if len(made.loads) == 2:
            raise KeyboardInterrupt
        return point(0, 1)

    made = Made()
    with pytest.raises(Interrupted) as caught:
        bench(order(url, 1, 2, 3), Quiet(), stops)
    assert caught.value.result is not None
    assert len(caught.value.result.points) == 1
    assert caught.value.result.notes == ["interrupted: there are fewer levels than were asked for"]


def test_a_search_that_is_interrupted_is_not_finished(url: str) -> None:
    def stops(*args: Any, **more: Any) -> Point:
        if len(made.loads) == 2:
            raise KeyboardInterrupt
        return made(*args, **more)

    made = Made()
    seek = Seek(parse("p99<=20ms"), 1.0, 10_000.0, opened=True)
    with pytest.raises(Interrupted) as caught:
        bench(order(url, seek=seek), Quiet(), stops)
    assert caught.value.result is not None and caught.value.cause is None
    search = caught.value.result.search
    assert search is not None and not search.finished and len(search.tried) == 1
    assert load(dump(caught.value.result)).search == search
    whole = bench(order(url, seek=seek), Quiet(), Made())
    assert whole.search is not None and whole.search.finished


def test_a_server_that_dies_between_levels_leaves_what_was_measured(url: str) -> None:
    def dies(*args: Any, **more: Any) -> Point:
        if made.loads:
            raise Unreachable("nobody answers at host:1")
        return made(*args, **more)

    made = Made()
    with pytest.raises(Interrupted) as caught:
        bench(order(url, 1, 2, 3), Quiet(), dies)
    assert caught.value.result is not None and isinstance(caught.value.cause, Unreachable)
    assert [each.load.name for each in caught.value.result.points] == ["c1"]
    assert caught.value.result.notes == [
        "it could not go on (nobody answers at host:1): there are fewer levels than were asked for"
    ]
    with pytest.raises(Unreachable):  # nothing was measured
        bench(order(url, 1, 2, 3), Quiet(), dies)


def test_routing_keys_are_dealt_over_the_requests(url: str) -> None:
    made = Made()
    bench(order(url, 1, requests=Requests(keys=100)), Quiet(), made)
    keys = [dict(wire.headers)["x-sluice-key"] for wire in made.wires]
    assert len(made.wires) == len(set(keys)) == 100
    assert made.wires[0].body is made.wires[64].body
    bench(order(url, 1, requests=Requests(key="me")), Quiet(), made)
    assert {dict(wire.headers)["x-sluice-key"] for wire in made.wires} == {"me"}


def test_large_requests_are_fewer(url: str) -> None:
    made = Made()
    bench(order(url, 1, requests=Requests(rows=500_000)), Quiet(), made)
    assert len(made.wires) == 8  # 8 MB each, 64 MiB together


def test_json_where_the_server_takes_no_bytes(url: str, pages: dict[str, bytes]) -> None:
    pages["/v2"] = orjson.dumps({"name": "other", "version": "3", "extensions": []})
    made = Made()
    result = bench(order(url, 1), Quiet(), made)
    assert made.target.protocol == result.target.protocol == Protocol.JSON
    assert result.expected_split == {} and result.versions["server"] == "other 3"
    asked = dataclasses.replace(order(url, 1), any_encoding=False)
    assert bench(asked, Quiet(), made).target.protocol == Protocol.BINARY


def test_a_server_of_an_older_protocol_needs_data(url: str, pages: dict[str, bytes]) -> None:
    del pages["/v2/models/add"]
    old = order(url, 1, target=Target("add", Protocol.V1, url), any_encoding=False)
    with pytest.raises(Unfit, match="does not say what add takes; give the requests with --data"):
        bench(old, Quiet(), Made())
    with pytest.raises(BenchError, match="status 404"):
        bench(order(url, 1), Quiet(), Made())


def test_a_split_that_cannot_be_read_is_noted(url: str, pages: dict[str, bytes]) -> None:
    for page in (b"[]", b'{"versions": 3}', b"no"):
        pages["/admin/v1/models/add"] = page
        result = bench(order(url, 1), Quiet(), Made())
        assert result.expected_split == {}
        assert any("the declared split is not known" in note for note in result.notes)


@pytest.mark.parametrize("page", [b"[]", b"{", b'{"inputs": 3}', b'{"inputs": [{"name": "x"}]}'])
def test_metadata_that_makes_no_sense_is_one_line(
    url: str, pages: dict[str, bytes], page: bytes
) -> None:
    pages["/v2/models/add"] = page
    with pytest.raises(BenchError) as caught:
        bench(order(url, 1), Quiet(), Made())
    assert "\n" not in str(caught.value)


def test_nobody_there() -> None:
    with serving({}) as url:
        pass
    with pytest.raises(Unreachable, match="name it with --url"):
        bench(order(url, 1), Quiet(), Made())
    grpc = Target("add", Protocol.GRPC, "", url.removeprefix("http://"))
    with pytest.raises(Unreachable, match="name it with --grpc"):
        bench(order(url, 1, target=grpc), Quiet(), Made())


# --- between levels


class Counting:
    """Statistics of a server that is busy for so many readings."""

    def __init__(self, busy: int) -> None:
        self.busy = busy
        self.read_times = 0

    def read(self) -> Snapshot:
        self.read_times += 1
        count = min(self.read_times, self.busy)
        return Snapshot(count, count, count, 0, 0)


@pytest.mark.parametrize(("busy", "noted"), [(1, False), (6, False), (10_000, True)])
def test_a_rest_lasts_until_the_server_is_idle(busy: int, noted: bool) -> None:
    now = [0.0]
    stats: Any = Counting(busy)
    note = sweep.rest(
        stats, 10.0, sleep=lambda s: now.__setitem__(0, now[0] + s), clock=lambda: now[0]
    )
    assert bool(note) == noted
    assert now[0] == pytest.approx(10.0 if noted else (busy + 1) * sweep.PAUSE)


def test_a_server_without_statistics_gets_a_short_rest() -> None:
    slept: list[float] = []
    with ServerStats(Target("add")) as stats:
        assert sweep.rest(stats, 10.0, sleep=slept.append) == ""
        assert sweep.rest(stats, 0.0, sleep=slept.append) == ""
    assert slept == [sweep.BLIND]


# --- words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100,200,400", (100, 200, 400)),
        ("0.5", (0.5,)),
        ("100:1000:300", (100, 400, 700, 1000)),
        ("1:2:0.1", tuple(1 + i * 0.1 for i in range(11))),
        ("5:5:1", (5,)),
    ],
)
def test_levels_in_words(text: str, expected: tuple[float, ...]) -> None:
    assert sweep.numbers(text, "--rates") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "whole", "says"),
    [
        ("", False, "'' is not a number above 0"),
        ("1,x", False, "'x' is not a number above 0; type --rates 1,2,4,8"),
        ("0", False, "'0' is not"),
        ("nan", False, "'nan' is not"),
        ("inf", False, "'inf' is not"),
        ("1.5", True, "'1.5' is not a whole number"),
        ("1:2", False, "a range has FROM:TO:STEP"),
        ("9:2:1", False, "9 is above 2"),
        ("1:1000000:1", False, "1000000 levels; give at most 100"),
        ("3,1,3", False, "3 is there twice"),
    ],
)
def test_levels_that_are_none(text: str, whole: bool, says: str) -> None:
    with pytest.raises(BenchError) as caught:
        sweep.numbers(text, "--rates", whole=whole)
    assert says in str(caught.value)


def test_secrets_are_not_kept() -> None:
    words = [
        "bench",
        "add",
        "--token",
        "s1",
        "--token=s2",
        "-H",
        "A: s3",
        "--header=B:s4",
        "-HC:s5",
    ]
    kept = without_secrets([*words, "--rate", "5"])
    assert not any(secret in " ".join(kept) for secret in ("s1", "s2", "s3", "s4", "s5"))
    assert kept[-2:] == ["--rate", "5"] and "A: ..." in kept
