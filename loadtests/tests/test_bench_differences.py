"""Two results beside each other, and results in words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.bench import text
from loadtests.bench.differences import (
    BETTER,
    SAME,
    UNKNOWN,
    WORSE,
    Incomparable,
    Level,
    compare,
)
from loadtests.bench.plan import Protocol, Target
from loadtests.bench.results import Interval, Result, Search, Tick
from loadtests.errors import BenchError
from loadtests.tests.bench_points import point, result


def verdicts(level: Level) -> dict[str, str]:
    return {change.metric: change.verdict for change in level.changes}


def test_a_difference_within_the_intervals_is_none() -> None:
    found = compare(result([point(100, us=5000)]), result([point(100, us=5100)]))
    assert verdicts(found.levels[0]) == {"rate": SAME, "p50": SAME, "p99": SAME, "errors": SAME}
    assert not found.worse


def test_a_difference_beyond_them_has_a_direction_and_a_ratio() -> None:
    slow, fast = result([point(0, 8, us=10_000)]), result([point(0, 8, us=5000)])
    down, up = compare(fast, slow), compare(slow, fast)
    assert verdicts(down.levels[0]) == {"rate": WORSE, "p50": WORSE, "p99": WORSE, "errors": SAME}
    assert verdicts(up.levels[0]) == {"rate": BETTER, "p50": BETTER, "p99": BETTER, "errors": SAME}
    assert down.worse and not up.worse
    assert [change.ratio for change in down.levels[0].changes[:2]] == [0.5, 2.0]


@pytest.mark.parametrize(
    ("a_us", "a_lost", "b_us", "b_lost", "verdict", "a_shown", "b_shown"),
    [
        (5000, 0, 50_000, 50, WORSE, "10 ms", ">= 100 ms"),
        (50_000, 50, 5000, 0, BETTER, ">= 100 ms", "10 ms"),
        (5000, 50, 50_000, 0, UNKNOWN, ">= 10 ms", "100 ms"),
        (5000, 50, 5000, 50, UNKNOWN, ">= 10 ms", ">= 10 ms"),
        (5000, 0, 5000, 50, UNKNOWN, "10 ms", ">= 10 ms"),
        (19_700, 0, 500_000, 50, WORSE, "39.4 ms", ">= 1 s"),
        (500_000, 50, 19_700, 0, BETTER, ">= 1 s", "39.4 ms"),
    ],
)
def test_what_is_only_known_from_below_is_larger_and_nothing_else(
    a_us: float, a_lost: int, b_us: float, b_lost: int, verdict: str, a_shown: str, b_shown: str
) -> None:
    a, b = (
        result([point(100, us=us, errors={"timeout": lost} if lost else {})])
        for us, lost in ((a_us, a_lost), (b_us, b_lost))
    )
    found = compare(a, b)
    change = found.levels[0].changes[2]
    assert (change.metric, change.verdict, change.ratio) == ("p99", verdict, None)
    assert text.change_cells(change)[1:3] == [a_shown, b_shown]


def bounds(us: float, known: Interval | None, *, lost: bool) -> Result:
    """One level, whose p99 is twice `us`, has that interval and, with `lost`, is a timeout."""
    one = point(100, us=us, errors={"timeout": 50} if lost else {})
    return result(
        [msgspec.structs.replace(one, latency=msgspec.structs.replace(one.latency, p99=known))]
    )


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(20_000, 900_000), WORSE),
        (Interval(20_000, 1_000_000), UNKNOWN),
        (Interval(20_000, 1_100_000), UNKNOWN),
        (None, WORSE),
    ],
)
@pytest.mark.parametrize("bounded", [Interval(30_000, 2e6), Interval(9e5, 11e5), None])
def test_a_bound_has_no_interval(
    interval: Interval | None, verdict: str, bounded: Interval | None
) -> None:
    """That of a p99 of some ms in one half of the run, and of a timeout in the other, is wide, and
    says nothing of how long what has no answer would have taken."""
    a, b = bounds(19_700, interval, lost=False), bounds(500_000, bounded, lost=True)
    opposite = {WORSE: BETTER, UNKNOWN: UNKNOWN}
    for first, second, expected in ((a, b, verdict), (b, a, opposite[verdict])):
        change = compare(first, second).levels[0].changes[2]
        assert (change.verdict, change.sure) == (expected, interval is not None)


def test_a_difference_within_the_tolerance_does_not_fail() -> None:
    a = result([point(100, us=5000, spread=0.01)])
    b = result([point(100, us=5200, spread=0.01)])
    found = compare(a, b, tolerance=0.05)
    assert verdicts(found.levels[0])["p99"] == WORSE and not found.worse
    assert compare(a, b, tolerance=0.03).worse
    assert "worse, within the tolerance" in text.change_rows(found)[1]


def test_without_intervals_the_tolerance_decides() -> None:
    a = result([point(100, us=5000, spread=None)])
    assert not compare(a, result([point(100, us=5200, spread=None)])).worse
    found = compare(a, result([point(100, us=6000, spread=None)]))
    assert found.worse
    assert any("no confidence interval" in row[-1] for row in text.change_rows(found))


def test_errors_count_by_their_own_interval() -> None:
    a = result([point(100, ok=1000)])
    few = result([point(100, ok=999, errors={"429": 1})])
    many = result([point(100, ok=900, errors={"429": 100})])
    assert not compare(a, few).worse
    assert verdicts(compare(a, many).levels[0])["errors"] == WORSE
    assert compare(a, many).worse
    assert verdicts(compare(many, a).levels[0])["errors"] == BETTER
    # No tolerance: what is a small share of A's errors is still more of them.
    bad = result([point(100, ok=50_000, errors={"429": 50_000})])
    more = result([point(100, ok=49_000, errors={"429": 51_000})])
    assert compare(bad, more).worse and not compare(more, bad).worse


def test_a_level_that_got_no_answer_is_worse_not_incomparable() -> None:
    dead = point(100, ok=0, errors={"timeout": 500}, answered=0.0, spread=None)
    found = compare(result([point(100)]), result([dead]))
    assert found.worse
    assert any("nothing was answered" in note for note in text.change_remarks(found))


def test_levels_of_one_alone_and_other_conditions_are_said() -> None:
    a = result([point(100), point(200)])
    b = result([point(100), point(400)], target=Target("add", Protocol.JSON), keys="9 in turn")
    with pytest.raises(Incomparable, match=r"the protocol is binary in A and json in B.*--force"):
        compare(a, b)
    found = compare(a, b, force=True)
    assert "routing keys differ: none in A, 9 in turn in B" in found.notes
    assert [level.name for level in found.levels] == ["100/s"]
    assert "only in A: 200/s" in found.notes and "only in B: 400/s" in found.notes
    assert "protocol differ: binary in A, json in B" in found.notes
    with pytest.raises(BenchError, match=r"no level is in both \(A has 100/s, B has c4\)"):
        compare(result([point(100)]), result([point(0, 4)]))


def test_searches_are_compared_by_what_they_found() -> None:
    def searched(best: float | None, objective: str = "p99<=20ms") -> object:
        return result([point(best or 1.0)], search=Search(objective, best, []))

    def of(a: object, b: object) -> tuple[str, bool]:
        found = compare(a, b)  # type: ignore[arg-type]
        assert found.best is not None
        return found.best.verdict, found.worse

    assert of(searched(1000.0), searched(800.0)) == (WORSE, True)
    assert of(searched(1000.0), searched(980.0)) == (SAME, False)
    assert of(searched(1000.0), searched(None)) == (WORSE, True)
    assert of(searched(None), searched(500.0)) == (BETTER, False)
    other = compare(searched(1.0), searched(1.0, "p99<=5ms"))  # type: ignore[arg-type]
    assert other.best is None and "different objectives" in other.notes[0]
    unfinished = result([point(1.0)], search=Search("p99<=20ms", None, [], finished=False))
    other = compare(searched(1.0), unfinished)  # type: ignore[arg-type]
    assert other.best is None and not other.worse
    assert other.notes[0].startswith("the search of B was not finished")


def test_a_search_that_was_interrupted_claims_nothing() -> None:
    search = Search("p99<=20ms", None, [(1.0, True)], finished=False)
    said = text.remarks(result([point(1.0)], search=search))
    assert said == ["search not finished; 1 load tried: the highest with p99<=20ms is not known"]
    over = Search("p99<=20ms", None, [(1.0, False)])
    assert text.remarks(result([point(1.0)], search=over)) == ["no load meets p99<=20ms"]


def test_a_limit_of_the_client_is_said() -> None:
    found = compare(result([point(100)]), result([point(100, bottleneck="its loop lags")]))
    assert text.change_remarks(found) == ["B: at 100/s the client was the limit: its loop lags"]
    many = result([point(rate, bottleneck=f"its loop lags {rate} ms") for rate in (100, 200, 300)])
    assert text.change_remarks(compare(many, many)) == [
        f"{side}: at 100/s, 200/s, 300/s the client was the limit (of 300/s): its loop lags 300 ms"
        for side in "AB"
    ]


measured = st.builds(
    point,
    rate=st.sampled_from([100.0, 200.0]),
    us=st.floats(10, 1e6),
    ok=st.integers(0, 5000),
    errors=st.dictionaries(st.sampled_from(["429", "timeout"]), st.integers(1, 500)),
    spread=st.sampled_from([None, 0.0, 0.02, 0.5]),
)


@settings(max_examples=50)
@given(first=measured, second=measured, tolerance=st.floats(0, 1))
def test_comparing_is_antisymmetric(first: object, second: object, tolerance: float) -> None:
    a, b = result([first]), result([second])  # type: ignore[list-item]
    if first.load != second.load:  # type: ignore[attr-defined]
        return
    opposite = {SAME: SAME, BETTER: WORSE, WORSE: BETTER, UNKNOWN: UNKNOWN}
    there = {c.metric: c for c in compare(a, b, tolerance).levels[0].changes}
    back = {c.metric: c for c in compare(b, a, tolerance).levels[0].changes}
    assert there.keys() == back.keys()
    for metric, change in there.items():
        if change.sure:
            assert back[metric].verdict == opposite[change.verdict]
    assert not compare(a, a, tolerance).worse
    assert text.change_rows(compare(a, b, tolerance))


# --- words


@pytest.mark.parametrize(
    ("us", "shown"),
    [
        (0.4, "0 µs"), (850, "850 µs"), (999.6, "1 ms"), (1234, "1.23 ms"), (99_949, "99.9 ms"),
        (99_960, "100 ms"), (999_600, "1 s"), (4_560_000, "4.56 s"), (None, ""),
    ],
)  # fmt: skip
def test_durations(us: float | None, shown: str) -> None:
    assert text.duration(us) == shown


def test_a_level_is_a_row_of_the_table() -> None:
    row = dict(zip(text.LEVELS, text.level_row(point(500, us=5000)), strict=True))
    assert row["LEVEL"] == "500/s" and row["RATE"] == "500/s ±2%"
    wide = dict(zip(text.LEVELS, text.level_row(point(500, us=5000, spread=0.5)), strict=True))
    assert (wide["RATE"], wide["P99"]) == ("500/s (250/s to 750/s)", "10 ms (5 ms to 15 ms)")
    assert text.within(Interval(100, 9000), 1000, text.duration) == " (100 µs to 9 ms)"
    assert text.within(Interval(980, 1250), 1000, text.duration) == " ±25%"
    assert row["P99"] == "10 ms ±2%" and row["QUEUE"] == "100 µs" and row["BATCH"] == "2"
    bare = dict(zip(text.LEVELS, text.level_row(point(5, ok=0, server=None)), strict=True))
    assert bare["P99"] == bare["QUEUE"] == ""
    few = dict(zip(text.LEVELS, text.level_row(point(5, ok=999, spread=None)), strict=True))
    assert few["P99"] == "~10 ms" and few["P99.9"] == "" and few["P50"] == "5 ms"
    lost = dict(
        zip(text.LEVELS, text.level_row(point(5, ok=500, errors={"timeout": 3})), strict=True)
    )
    assert lost["P99"] == "~10 ms ±2%" and lost["P99.9"].startswith(">= ")


def test_what_went_wrong_is_said_beside_the_table() -> None:
    split = {"1": 0.9, "2": 0.1}
    lines = text.remarks(
        result(
            [
                point(
                    100, ok=900, errors={"429": 90, "timeout": 10}, versions={"1": 800, "2": 100}
                ),
                point(200, steady=False),
            ],
            expected_split=split,
            notes=["a note"],
        )
    )
    assert lines[0] == "100/s: 100 of 1000 failed: 90 429, 10 timeout"
    assert "had not settled" in lines[1]
    assert lines[2] == "versions: 1 94.7 % (declared 90.0 %), 2 5.3 % (declared 10.0 %)"
    assert lines[3] == "a note"


def test_a_second_in_words() -> None:
    tick = Tick(0.0, 0.5, 60, 50, 3, 1200.0, 8000.0)
    assert text.tick_line(tick) == "100/s  p50 1.2 ms  p99 8 ms  3 failed"
    assert text.tick_line(Tick(0.0, 1.0, 0, 0, 0, None, None)) == "0/s"
