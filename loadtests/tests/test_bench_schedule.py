"""When requests are due, what their latencies come to, and when a run is long enough."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.bench import warmup
from loadtests.bench.arrivals import due_times
from loadtests.bench.confidence import grouped, mean_interval, percentile_interval
from loadtests.bench.hdr import DIGITS, HIGHEST, LOWEST
from loadtests.bench.health import Usage, client_of
from loadtests.bench.histogram import Counts, bucket_of, highest_of, lowest_of
from loadtests.bench.messages import LIMIT, RECORD, Slice
from loadtests.bench.plan import Load, Target
from loadtests.bench.recorder import Notebook, Recorder
from loadtests.bench.results import PERCENTILES
from loadtests.bench.summary import Usages, point_of, tick_of
from loadtests.bench.watch import Watch
from loadtests.errors import BenchError

rates = st.floats(0.5, 1e5)
kinds = st.sampled_from(["poisson", "constant"])
micros = st.integers(0, HIGHEST)


def first(count: int, *args: object, **kw: object) -> list[tuple[int, int]]:
    return list(itertools.islice(due_times(*args, **kw), count))  # type: ignore[arg-type]


@given(rates, st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_poisson_arrivals_have_the_rate_and_no_memory(rate: float, seed: int) -> None:
    count = 20_000
    times = np.array([at for _, at in first(count, rate, "poisson", seed=seed)]) / 1e9
    gaps = np.diff(times) * rate
    assert (gaps >= 0).all()
    # Exponential: mean 1, standard deviation 1, neighbours uncorrelated; six standard errors.
    assert abs(gaps.mean() - 1) < 6 / count**0.5
    assert abs(gaps.std() - 1) < 6 * 2 / count**0.5
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 6 / count**0.5


@given(rates, st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_constant_arrivals_never_drift(rate: float, seed: int) -> None:
    for number, at in first(2000, rate, "constant", seed=seed):
        assert abs(at - number * 1e9 / rate) < 2


@given(rates, kinds, st.integers(0, 2**32), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_any_number_of_processes_sends_the_same_requests(
    rate: float, kind: str, seed: int, parts: int
) -> None:
    alone = first(9000, rate, kind, seed=seed)
    together = [
        each
        for part in range(parts)
        for each in first(9000 // parts, rate, kind, seed=seed, part=part, parts=parts)
    ]
    assert sorted(together) == alone[: len(together)]


def test_other_seeds_are_other_arrivals() -> None:
    assert first(10, 5.0, seed=1) != first(10, 5.0, seed=2)
    assert first(10, 5.0, seed=1) == first(10, 5.0, seed=1)


@pytest.mark.parametrize(
    ("rate", "kind", "said"),
    [(5, "uniform", "choose poisson or constant"), (0, "poisson", "not a positive"),
     (float("nan"), "constant", "not a positive"), (float("inf"), "poisson", "not a positive")],
)  # fmt: skip
def test_arrivals_that_cannot_be(rate: float, kind: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        due_times(rate, kind)


# --- histograms


@given(st.lists(micros, min_size=1, max_size=200))
@settings(max_examples=20, deadline=None)
def test_counts_are_those_of_hdr_histogram(values: list[int]) -> None:
    theirs = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    for value in values:
        theirs.record_value(value)
    ours = Counts.of(np.array(values, np.int64))
    assert len(ours) == theirs.get_total_count()
    for percent in PERCENTILES:
        # HdrHistogram rounds the rank; ours is the inverse of the distribution.
        place = max(math.ceil(Fraction(str(percent)) * len(values) / 100), 1)
        exact = bucket_of(np.array(sorted(values)[place - 1 : place], np.int64))
        assert ours.percentile(percent) == int(highest_of(exact)[0])
    read = HdrHistogram.decode(ours.encoded())
    assert read.get_total_count() == len(values)
    assert read.get_value_at_percentile(99) == theirs.get_value_at_percentile(99)
    assert ours.latency().mean_us == pytest.approx(sum(values) / len(values))


@given(st.lists(st.lists(micros, max_size=50), max_size=6))
@settings(max_examples=60, deadline=None)
def test_merged_counts_are_those_of_all_values(parts: list[list[int]]) -> None:
    every = [value for part in parts for value in part]
    merged = Counts.merged(Counts.of(np.array(part, np.int64)) for part in parts)
    whole = Counts.of(np.array(every, np.int64))
    assert merged.total == whole.total == sum(every)
    assert merged.buckets.tolist() == whole.buckets.tolist()
    assert merged.counts.tolist() == whole.counts.tolist()


@given(micros)
def test_a_bucket_holds_its_values_to_a_thousandth(value: int) -> None:
    bucket = bucket_of(np.array([value]))
    low, high = int(lowest_of(bucket)[0]), int(highest_of(bucket)[0])
    assert low <= value <= high
    assert high - low <= max(value / 1000, 0)


def test_nothing_has_no_percentile_and_what_is_too_large_counts_as_the_largest() -> None:
    assert Counts().percentile(99) is None
    assert Counts().latency().count == 0
    assert Counts.of(np.array([10**12])).percentile(100) == Counts.of(
        np.array([HIGHEST])
    ).percentile(100)


# --- records


SECOND = 1_000_000_000


def sliced(book: Notebook) -> Slice:
    records, outcomes, versions = book.take()
    return Slice(0, records, outcomes, versions, 0, 0, 0.0, 0.0, [])


def test_records_are_counted_from_when_they_were_due() -> None:
    start = 5 * SECOND
    book = Notebook(start)
    book.write(start + 100, start + 2_000_100, start + 3_000_100, start + 9_000_100, "", "2")
    book.write(start + SECOND, start + SECOND, 0, start + SECOND, "overrun", "")
    # Due within the second second, answered after its end.
    due = start + 2 * SECOND - 1000
    book.write(due, due, due, due + SECOND, "", "1")
    # Due after the end.
    book.write(start + 2 * SECOND, start + 2 * SECOND, 0, start + 3 * SECOND, "timeout", "")
    recorder = Recorder(1, closed=False, timeout_s=7.0)
    recorder.add(0, sliced(book))
    recorder.begin(0, 2.0, SECOND)
    assert sorted(recorder.cells) == [0, 1]
    one, two = recorder.cells[0], recorder.cells[1]
    assert (one.sent, one.ok, dict(one.versions)) == (1, 1, {"2": 1})
    assert one.latencies.total == 9000 and not one.unanswered and one.service[0].total == 6000
    assert (two.sent, two.ok, dict(two.errors)) == (2, 1, {"overrun": 1})
    # What was not sent took at least as long as the timeout, not no time at all.
    assert two.latencies.total == 1_000_000 + 7_000_000
    assert recorder.answered == {0: 1, 2: 1}
    # The one that never left is neither late nor early.
    assert Counts.merged(recorder.late).counts.sum() == 2
    assert Counts.merged(recorder.waited).total == 1000


def test_a_closed_loop_counts_the_wait_for_a_connection() -> None:
    book = Notebook(0)
    book.write(0, 0, 4_000_000, 5_000_000, "", "")
    book.write(0, 0, 0, 2_000_000, "connection", "")  # never left
    recorder = Recorder(1, closed=True)
    recorder.begin(0, 1.0, SECOND)
    recorder.add(0, sliced(book))
    cell = recorder.cells[0]
    # What lost its connection counts with the timeout: a crash is no quick answer.
    assert cell.latencies.total == 5000 + 30_000_000 and cell.service[0].total == 1000
    assert cell.failed[0].total == 2000
    assert not recorder.cells[0].versions


def test_names_without_end_are_told_apart_up_to_a_number() -> None:
    book = Notebook(0)
    for number in range(3000):
        book.write(0, 0, 1, 1, "", str(number))
    recorder = Recorder(1, closed=False)
    recorder.begin(0, 1.0, SECOND)
    recorder.add(0, sliced(book))
    versions = recorder.cells[0].versions
    assert versions.total() == 3000 and len(versions) == 1000 and versions["others"] == 2001


def test_times_that_do_not_fit_are_the_longest() -> None:
    book = Notebook(0)
    book.write(0, 0, 10**16, 10**16, "", "")
    (record,) = np.frombuffer(book.take()[0], RECORD)
    assert record["done"] == LIMIT and record["left"] == LIMIT - 1


# --- warm-up


def run(latencies: Any) -> bool:
    due = np.arange(len(latencies)) * 10_000_000  # 100 a second
    return warmup.settled(due, latencies, len(latencies) * 10_000_000)


@given(st.integers(0, 10_000), st.floats(0.01, 0.3))
@settings(max_examples=40, deadline=None)
def test_steady_latencies_have_settled(seed: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    latencies = np.concatenate(
        [np.full(100, 50_000.0), random.normal(1000, 1000 * spread, 1400).clip(1)]
    )
    assert run(latencies)
    assert not run(latencies[:200])  # too early to say


@given(st.integers(0, 10_000), st.floats(1.0, 1000.0))
@settings(max_examples=40, deadline=None)
def test_an_overload_never_settles(seed: int, slope: float) -> None:
    random = np.random.default_rng(seed)
    assert not run(np.arange(1500) * slope + random.normal(500, 50, 1500).clip(1))


def test_a_step_is_left_out_whole() -> None:
    values = np.concatenate([np.full(7, 100.0), np.tile([10.0, 11.0], 20)])
    assert warmup.truncation(values) == 7
    assert warmup.truncation(values[:10]) is None


def test_slots_without_requests_take_the_value_before() -> None:
    due = np.array([0, 950_000_000])
    means = warmup.group_means(due, np.array([10, 110]), 1_000_000_000)
    assert means.tolist() == [10.0, 30.0]
    assert not len(warmup.group_means(due[:0], due[:0], 10**9))


# --- confidence


def test_intervals_cover_what_they_should() -> None:
    random = np.random.default_rng(7)
    true = 10_000 * -np.log(0.01)  # 99th percentile of exponential latencies, mean 10 ms
    hits = 0
    for _ in range(25):
        batches = [Counts.of(random.exponential(10_000, 400).astype(np.int64)) for _ in range(20)]
        interval = percentile_interval(batches, 99)
        assert interval is not None
        hits += interval.low <= true <= interval.high
    # 24 of 25 are expected; few batches make intervals a little too narrow.
    assert hits >= 21


def test_intervals_cover_what_depends_on_what_came_before() -> None:
    """A queue at 80 % of its capacity, ten seconds: what a pause does, all who follow feel."""
    random = np.random.default_rng(5)
    rate, capacity, count = 800.0, 1000.0, 60
    true = -np.log(0.01) / (capacity - rate) * 1e6
    hits = 0
    for _ in range(count):
        due = np.cumsum(random.exponential(1 / rate, 10_500))
        service = random.exponential(1 / capacity, len(due))
        steps = np.concatenate([[0.0], service[:-1] - np.diff(due)])
        backlog = np.cumsum(steps)
        waits = backlog - np.minimum.accumulate(backlog)  # Lindley
        inside = (due >= 2.0) & (due < 12.0)
        tick, us = (due[inside] - 2.0).astype(int), ((waits + service)[inside] * 1e6).astype(int)
        interval = percentile_interval([Counts.of(us[tick == each]) for each in range(10)], 99)
        assert interval is not None
        hits += interval.low <= true <= interval.high
    # As independent values, or by a bootstrap of twenty batches, two of three.
    assert hits >= 0.75 * count


def test_a_pause_makes_the_interval_wide() -> None:
    """A thousand values of one pause are one event, not a thousand."""
    calm = [Counts.of(np.full(1000, 1000)) for _ in range(20)]
    paused = [*calm[:-1], Counts.of(np.full(1000, 500_000))]
    assert (found := percentile_interval(calm, 99)) and found.high < 1010
    assert (found := percentile_interval(paused, 99)) and found.high > 20 * found.low


def test_too_short_to_say() -> None:
    few = [Counts.of(np.full(20, 1000)) for _ in range(20)]
    assert percentile_interval(few, 99) is None  # four values beyond it
    assert percentile_interval(few, 50) is not None
    assert percentile_interval(few[:4], 50) is None
    assert mean_interval([1.0] * 4, 1.0) is None
    found = mean_interval([9.0, 11.0] * 10, 10.0)
    assert (
        found
        and found.low < 10 < found.high
        and found.high - found.low
        == pytest.approx(2 * 2.093 * np.std([9, 11] * 10, ddof=1) / 20**0.5)
    )


@given(st.integers(0, 2000))
def test_batches_are_of_all_ticks_and_nearly_equal(count: int) -> None:
    batches = grouped(count)
    assert [at for each in batches for at in range(each.start, each.stop)] == list(range(count))
    assert len(batches) == min(count, 8)
    sizes = [each.stop - each.start for each in batches]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@given(seconds=st.integers(8, 40), stalled=st.integers(0, 39), slow=st.integers(20_000, 900_000))
@settings(max_examples=25, deadline=None)
def test_intervals_contain_what_is_shown(seconds: int, stalled: int, slow: int) -> None:
    """A stall in any second, the last one too, in which less is answered as well."""
    load = Load(rate=200, seconds=seconds)
    tick = tick_of(seconds)
    recorder = Recorder(1, closed=False)
    recorder.begin(0, seconds, tick)
    random = np.random.default_rng(seconds)
    records = np.zeros(200 * seconds, RECORD)
    records["due"] = np.arange(len(records)) * 5_000_000
    records["done"] = random.integers(4000, 6000, len(records))
    records["done"][records["due"] // 10**9 == stalled % seconds] = slow
    recorder.add(0, Slice(0, records.tobytes(), [], [], len(records), 0, 0.0, 0.0, [], True))
    found = point_of(
        load, recorder, Usages(1), Watch(Target("m"), on=False),
        go=0, start=0, tick=tick, steady=True,
    )  # fmt: skip
    for interval, shown in (
        (found.rate_ci, found.rate),
        (found.latency.p50, found.latency.at(50)),
        (found.latency.p99, found.latency.at(99)),
    ):
        assert interval is not None and interval.low <= shown <= interval.high
    # A second of thirteen is more than one in a hundred: the interval has to reach it.
    assert found.latency.p99 is not None and found.latency.p99.high >= slow


# --- the client's health


def words(
    thread: float = 0.1,
    cpu: float = 0.1,
    lag: int = 0,
    behind: int = 0,
    waited: int = 0,
    many: int = 20,
    **load: int,
) -> str:
    return client_of(
        Load(rate=100, **load),  # type: ignore[arg-type]
        [Usage(1.0, cpu, thread)],
        lags=Counts.of(np.array([lag])),
        late=Counts.of(np.array([behind + waited])),
        behind=Counts.of(np.full(many, behind)),
        waited=Counts.of(np.full(many, waited)),
        median_us=1000,
        overruns=load.get("max_in_flight", 0),
        own_cpu=0.0,
    ).bottleneck


def test_a_client_that_is_the_bottleneck_says_so() -> None:
    assert words() == ""
    assert "could hardly send more" in words(thread=0.97) and "machine" in words(thread=0.97)
    assert "another machine" in words(cpu=4000.0)
    assert "other processes had the processors" in words(lag=60_000)
    assert "--processes 2" in words(behind=8000, waited=2000, thread=0.6)
    alone = words(behind=8000, waited=2000)
    assert "something else on this machine" in alone and "--processes" not in alone
    assert words(behind=8000, many=5) == ""
    assert "--connections" in words(behind=2000, waited=8000)
    assert words(behind=900, waited=900) == ""
    assert "3 were in flight" in words(max_in_flight=3)
