"""Objectives, and the search for the highest load that meets one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.bench.objective import parse
from loadtests.bench.search import Bounds, find
from loadtests.bench.summary import silence
from loadtests.errors import BenchError
from loadtests.tests.bench_points import point

# --- objectives


def test_an_objective_holds_up_to_its_limit() -> None:
    at = point(100, us=10_000)  # p99 is 20 ms
    assert parse("p99<=20ms").met(at)
    assert not parse("p99<20ms").met(at)
    assert parse("p99 <= 0.02s, p50<=10000us").met(at)
    assert not parse("p99<=20ms,p50<=9.9ms").met(at)
    assert parse("mean<=10ms,max<=21ms").met(at)
    assert parse("rate>=100").met(at) and not parse("rate>100/s").met(at)


def test_errors_are_a_share_of_all_requests() -> None:
    some = point(100, ok=990, errors={"429": 10})
    assert parse("error<=1%").met(some)
    assert parse("error<=0.01").met(some)
    assert not parse("error<1%").met(some)
    assert parse("error<=0.5%").missed(some) == ["error 1.000%, wanted error<=0.5%"]


def test_a_level_without_an_answer_meets_no_latency() -> None:
    nothing = point(100, ok=0, errors={"timeout": 100})
    assert not parse("p50<=1s").met(nothing)
    assert "nothing was answered" in parse("p50<=1s").missed(nothing)[0]


def test_errors_are_bounded_unless_the_objective_says_how() -> None:
    refusing = point(100, us=100, ok=500, errors={"429": 500})
    assert parse("p99<=20ms").met(refusing)
    assert not parse("p99<=20ms").with_errors().met(refusing)
    assert parse("p99<=20ms").with_errors().text == "p99<=20ms,error<=0.1%"
    assert parse("p99<=20ms,error<=60%").with_errors().met(refusing)


def test_a_limit_within_the_interval_is_uncertain() -> None:
    at = point(100, us=10_000, spread=0.05)
    assert [bound.text for bound in parse("p99<=20.5ms,p50<=20ms").unsure(at)] == ["p99<=20.5ms"]
    assert not parse("p99<=20.5ms").unsure(point(100, us=10_000, spread=None))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no objective; type it as 'p99<=20ms'"),
        ("p99", "'p99' is no objective"),
        ("p99=20ms", "no objective"),
        ("p99<=20", "the unit is missing; type 'p99<=20ms'"),
        ("p99<=20m", "unit 'm' is unknown"),
        ("p99<=0ms", "cannot be met"),
        ("p98<=1ms", "'p98' in 'p98<=1ms' is not measured; there are p50"),
        ("p99>=1ms", "p99 is bounded from above; type 'p99<="),
        ("rate<=5", "a rate is bounded from below"),
        ("error<=20ms", "a share of errors"),
        ("error<=2", "a share of errors"),
        ("p99<=1ms,p99<=2ms", "bounds p99 twice"),
        ("p99<=1ms,", "'' is no objective"),
        ("p99<=nanms", "no objective"),
    ],
)
def test_what_is_no_objective_says_what_to_type(text: str, says: str) -> None:
    with pytest.raises(BenchError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_percentiles_of_survivors_meet_nothing() -> None:
    """Nine of ten are answered within a millisecond: the 99th is one of those that never were."""
    lossy = point(100, us=500, ok=900, errors={"timeout": 100})
    bound = parse("p99<=60s,error<=50%")
    assert not bound.met(lossy) and parse("p50<=1ms").met(lossy)
    assert bound.missed(lossy) == ["p99 >= 1 ms, wanted p99<=60s"]
    assert not parse("mean<=60s").met(lossy) and not parse("max<=60s").met(lossy)


@pytest.mark.parametrize("kind", ["timeout", "overrun", "connection"])
def test_what_was_not_answered_is_not_forgotten(kind: str) -> None:
    """A crash must not look better than a stall."""
    lossy = point(100, us=500, ok=900, errors={kind: 100})
    assert lossy.unanswered == 100 and lossy.known(99) == "at least"
    assert not parse("p99<=60s,error<=50%").met(lossy)
    refused = point(100, us=500, ok=900, errors={"429": 100})
    assert not refused.unanswered and parse("p99<=60s,error<=50%").met(refused)


def test_a_server_that_fell_silent_meets_nothing() -> None:
    silent = point(0, 4, us=500, silent_s=3.0)
    assert not parse("p99<=1s").met(silent)
    assert parse("p99<=1s").missed(silent) == ["nothing was answered for 3.0 of 10 s"]


@pytest.mark.parametrize(
    ("answers", "median_s", "found"),
    [
        ([100, 100, 0, 0, 0], 0.001, 3.0),
        ([0, 100, 100], 0.001, 1.0),
        ([100, 0, 100, 0, 0], 0.001, 3.0),
        ([2, 0, 1, 0, 2], 0.001, 0.0),  # a request now and then
        ([100, 0, 0, 100, 0], 1.0, 0.0),  # a slow model
        ([0, 0, 0], 0.0, 0.0),  # the errors say it
        ([], 0.0, 0.0),
    ],
)
def test_silence(answers: list[int], median_s: float, found: float) -> None:
    assert silence(answers, 1.0, median_s) == found


# --- the search

rates = st.floats(0.5, 50_000)


@given(boundary=rates, start=rates, low=st.floats(0.1, 10), precision=st.floats(0.01, 0.3))
def test_the_boundary_is_found_within_the_precision(
    boundary: float, start: float, low: float, precision: float
) -> None:
    bounds = Bounds(low, 100_000.0, start, precision)
    found = find(lambda load, confirm: load <= boundary, bounds)
    if boundary < low:
        assert found.best is None
        assert not any(met for _, met in found.tried)
        return
    assert found.best is not None and found.best <= boundary
    assert found.best * (1 + precision) * 1.001 >= boundary
    assert found.tried[-1] == (found.best, True)
    assert len(found.tried) < 60


@given(boundary=st.integers(1, 1000), start=st.integers(1, 1000), high=st.integers(1, 1000))
def test_concurrencies_are_whole_numbers(boundary: int, start: int, high: int) -> None:
    bounds = Bounds(1, high, start, whole=True)
    found = find(lambda load, confirm: load <= boundary, bounds)
    best = found.best
    assert best is not None and best == int(best) <= min(boundary, high)
    assert all(load == int(load) and 1 <= load <= high for load, _ in found.tried)
    assert found.at_limit == (boundary >= high)
    if not found.at_limit:
        assert boundary - best <= max(1, best * 0.05 + 1)


@given(answers=st.lists(st.booleans(), min_size=1, max_size=200), confirm=st.booleans())
def test_whatever_a_noisy_server_does_only_a_confirmed_load_is_claimed(
    answers: list[bool], confirm: bool
) -> None:
    """Answers that depend on nothing: the search ends, and claims only what was confirmed."""
    asked: list[tuple[float, bool, bool]] = []

    def meets(load: float, confirming: bool) -> bool:
        answer = answers[len(asked) % len(answers)] and (confirm or not confirming)
        asked.append((load, confirming, answer))
        return answer

    found = find(meets, Bounds(1.0, 1000.0, 30.0))
    assert len(asked) < 120
    confirmed = [load for load, confirming, answer in asked if confirming and answer]
    assert confirmed == ([] if found.best is None else [found.best])
    assert found.tried == [(load, answer) for load, _, answer in asked]


def test_a_load_that_fails_when_confirmed_gives_way_to_a_lower_one() -> None:
    found = find(
        lambda load, confirm: load <= (80 if confirm else 100), Bounds(1.0, 1000.0, start=10.0)
    )
    assert found.best is not None and 60 < found.best <= 80
    assert not found.at_limit


def test_a_server_that_meets_it_everywhere_is_tried_up_to_the_limit() -> None:
    found = find(lambda load, confirm: True, Bounds(1.0, 500.0, start=100.0))
    assert found.best == 500.0 and found.at_limit
