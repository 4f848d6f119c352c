"""What the locust users are made of, without locust: counts, shares, thresholds, paces, shapes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from argparse import Namespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loadtests.users as users
from loadtests.bench.confidence import wilson
from loadtests.compare.processes import ROOT
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire
from loadtests.users import levels, options
from loadtests.users.levels import FLAT, Saturation
from loadtests.users.pace import Pace, Replay
from loadtests.users.shares import Declared, rows_of, table
from loadtests.users.tally import Key, Tally, Window
from loadtests.users.thresholds import Thresholds, fraction, milliseconds, per_second

ONE, TWO, LOST = Key("m", "1"), Key("m", "2"), Key("m", "")


def window(ok: int, failed: int = 0, ms: float = 1.0) -> Window:
    found = Window(failed=failed)
    for _ in range(ok):
        found.latency.record_value(round(ms * 1000))
    return found


def test_nothing_of_locust_is_imported_by_the_package() -> None:
    # Importing it would change sockets and threads of the whole process.
    code = "import sys, loadtests.users; print({'locust', 'gevent'} & set(sys.modules))"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'HttpUser'"):
        _ = users.HttpUser


ANSWERS = st.lists(
    st.tuples(st.sampled_from([ONE, TWO, LOST]), st.floats(0, 1e8), st.booleans()), max_size=40
)


@settings(max_examples=12, deadline=None)  # a histogram is large
@given(st.lists(ANSWERS, min_size=1, max_size=4))
def test_a_master_counts_what_its_workers_counted(reports: list[Any]) -> None:
    alone, master = Tally(), Tally()
    workers = [Tally(), Tally()]
    for worker, answers in zip(itertools.cycle(workers), reports, strict=False):
        for key, ms, good in answers:
            for tally in (alone, worker):
                tally.answered(key, ms) if good else tally.failed(key)
        master.add(worker.report())
        master.add(worker.report())  # there is nothing in it any more
    assert master.versions.keys() == alone.versions.keys()
    for key, found in alone.versions.items():
        other = master.versions[key]
        assert (other.ok, other.failed) == (found.ok, found.failed)
        assert other.at_ms(50) == found.at_ms(50) and other.at_ms(99) == found.at_ms(99)
    assert master.total.requests == sum(map(len, reports)) == master.window.requests


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 500))
def test_a_share_lies_in_its_confidence(hits: int, more: int) -> None:
    total = hits + more
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    narrow = wilson(hits * 100, total * 100)
    assert narrow[1] - narrow[0] < high - low


def test_the_table_has_versions_that_should_have_answered() -> None:
    counted = {ONE: window(99), TWO: window(1), LOST: window(0, failed=3)}
    declared = {"m": Declared({"1": 0.8, "2": 0.1, "10": 0.1}, {"1": 2.5})}
    rows = rows_of(counted, declared)
    assert [(r.version, r.requests, r.failed, r.judged) for r in rows] == [
        ("1", 99, 0, "differs"),
        ("2", 1, 0, "differs"),
        ("10", 0, 0, "differs"),
        ("-", 0, 3, ""),
    ]
    assert rows[0].actual == 0.99 and rows[0].batch_rows == 2.5
    lines = table(rows)
    assert lines[0].startswith("Model  Version  Requests  Failed  Expected")
    assert lines[1].split()[:6] == ["m", "1", "99", "0", "80.0%", "99.0%"]
    assert table([]) == []


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (milliseconds, "50ms", 50), (milliseconds, "1.5s", 1500), (milliseconds, "800us", 0.8),
        (fraction, "0.1%", 0.001), (fraction, "0.02", 0.02), (fraction, "100%", 1),
        (per_second, "500", 500), (per_second, "2.5/s", 2.5),
    ],
)  # fmt: skip
def test_thresholds_are_read_with_their_units(read: Any, text: str, value: float) -> None:
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("read", "text"),
    [(milliseconds, t) for t in ("50", "-1ms", "0ms", "ms", "1m")]
    + [(fraction, t) for t in ("101%", "-1%", "2", "x", "")]
    + [(per_second, t) for t in ("0", "-1", "x", "inf", "nan")],
)
def test_thresholds_without_sense_are_refused(read: Any, text: str) -> None:
    with pytest.raises(ValueError, match="such as"):
        read(text)


def test_thresholds_are_judged() -> None:
    bounds = Thresholds(p50_ms=2, p99_ms=0.5, error_rate=0.1, share=0.05, rate=10)
    total = window(90, failed=20)
    rows = rows_of({ONE: window(72), TWO: window(18)}, {"m": Declared({"1": 0.8, "2": 0.2})})
    judged = bounds.judge(total, rows, seconds=9.0)
    assert [good for good, _ in judged] == [True, False, False, True, True, True]
    assert judged[1][1] == "p99 1.00 ms, at most 0.5 ms"
    assert "20 of 110 (18.182%)" in judged[2][1]


def test_what_cannot_be_judged_was_not_kept() -> None:
    bounds = Thresholds(p99_ms=1, error_rate=0.5, share=0.5, rate=1)
    assert not any(good for good, _ in bounds.judge(Window(), [], 5.0))
    for declared in (Declared({"1": 1.0}, moved=True), Declared({"1": 1.0})):
        rows = rows_of({ONE: window(0 if not declared.moved else 9)}, {"m": declared})
        assert [good for good, _ in Thresholds(share=0.5).judge(window(9), rows, 1)] == [False]
    with pytest.raises(BenchError, match="can never fail"):
        Thresholds(share=1.0)


# --- pace


@pytest.mark.parametrize("text", ["", "fast", "constant", "constant:0", "poisson:x", "closed:1"])
def test_unknown_paces_are_refused(text: str) -> None:
    with pytest.raises(BenchError, match="none of closed, constant:R"):
        Pace.parse(text)


def test_a_pace_waits_for_what_is_left() -> None:
    assert Pace.parse("closed").wait(0) == 0
    assert Pace.parse("constant:4").wait(0.1) == pytest.approx(0.15)
    assert Pace.parse("constant:4").wait(9) == 0
    assert 0 <= Pace.parse("poisson:4").first_wait() <= 0.25


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=9).map(sorted), st.integers(1, 3))
def test_a_recording_is_played_once_by_all_processes_together(times: Any, parts: int) -> None:
    first = times[0]
    wires = [Wire("/", str(n).encode(), at_s=at - first) for n, at in enumerate(times)]
    if len(times) > 1 and times[-1] == first:
        with pytest.raises(BenchError, match="the same time"):
            Replay(wires)
        return
    rounds = 2 * parts
    played = []
    for part in range(parts):
        replay = Replay(wires, part, parts)
        own = [replay.take() for _ in range(len(wires) * rounds // parts)]
        assert own == sorted(own, key=lambda each: each[1])
        played += own
    # Every request as often as the recording was played, and never two rounds at once.
    assert sorted(wire.body for wire, _ in played) == sorted(
        wire.body for wire in wires for _ in range(rounds)
    )
    assert max(due for _, due in played) < replay.period * rounds


# --- shapes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wave", "known: constant, ramp, spike"),
        ("spike:bass=5", "no key 'bass'; known: base, at, for, every"),
        ("spike:base", "needs a value"),
        ("constant:at=5s", "known: none"),
    ],
)
def test_unknown_shapes_are_refused(text: str, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        levels.parse_shape(text)


def test_keys_of_shapes_have_units() -> None:
    assert levels.seconds({"at": "1.5m"}, "at", 0) == 90
    assert levels.seconds({"at": "500ms"}, "at", 0) == 0.5
    assert levels.whole({}, "base", 7) == 7
    for text in ("5", "0s", "-1s", "xs", "infs"):
        with pytest.raises(BenchError, match=f"at={text} is no time"):
            levels.seconds({"at": text}, "at", 0)
    for text in ("0", "1.5", "x"):
        with pytest.raises(BenchError, match="no number of users"):
            levels.whole({"base": text}, "base", 1)


def test_users_over_time() -> None:
    assert [levels.ramp(at, 10, 1, 21) for at in (0, 5, 10, 99)] == [1, 11, 21, 21]
    spikes = [levels.spike(at, 2, 9, 30, 10, 60) for at in (0, 29, 30, 39, 40, 89, 90, 99, 100)]
    assert spikes == [2, 2, 9, 9, 2, 2, 9, 9, 2]
    assert levels.spike(95, 2, 9, 30, 10, 0) == 2
    assert [levels.diurnal(at, 2, 10, 100) for at in (0, 25, 50, 75, 100)] == [2, 6, 10, 6, 2]


def saturated(*goodput: float, **how: Any) -> Saturation:
    found = Saturation(start=5, step=5, hold_s=3, **how)
    for each in goodput:
        found.ended(window(round(each)), 1.0)
        if found.finished:
            break
    return found


def test_steps_end_when_goodput_rises_no_more() -> None:
    found = saturated(100, 200, 300, 302, 301, 999)
    assert found.finished == FLAT and len(found.steps) == 5
    assert found.knee is not None and (found.knee.users, found.knee.goodput) == (15, 300)
    assert found.lines()[-1] == f"knee: 15 users, 300.0 requests/s, p99 1.0 ms ({FLAT})"


def test_one_slow_step_is_not_the_end() -> None:
    found = saturated(100, 90, 300, 400)
    assert not found.finished and found.users == 25
    assert found.knee is not None and found.knee.users == 20


def test_a_knee_at_the_first_step_may_lie_below_it() -> None:
    found = saturated(100, 101, 100)
    assert found.finished == FLAT
    assert "knee: at or below 5 users" in found.lines()[-1]
    assert found.lines()[-1].endswith("; start lower")


def test_a_ramp_that_rises_to_where_it_is_is_refused() -> None:
    with pytest.raises(BenchError, match="nothing would rise; give more --users"):
        levels.check_ramp(5, 5)
    levels.check_ramp(1, 5)


def test_the_token_stays_out_of_the_web_ui() -> None:
    """Which serves what was typed to whoever opens it."""
    parser = pytest.importorskip("configargparse").ArgumentParser()
    options.add_options(parser)
    actions: list[Any] = [each for each in parser._actions if hasattr(each, "is_secret")]
    shown = {each.dest for each in actions if each.include_in_web_ui}
    assert "model" in shown and not shown & {"token", "header"}
    assert any(each.dest == "token" and each.is_secret for each in actions)


def test_steps_end_at_a_bound() -> None:
    slow = saturated(100, 200, p99_ms=0.5)
    assert slow.finished == "p99 above 0.5 ms" and slow.knee is None
    assert "start lower" in slow.lines()[-1]
    broken = saturated(100)
    broken.ended(window(150, failed=50), 1.0)
    assert broken.finished == "errors 25.00%, above 1.00%"
    assert broken.knee is not None and broken.knee.users == 5
    silent = saturated(0)
    assert silent.finished == "nothing was answered"
    assert saturated(100, 200, most=10).finished == "all 10 users of --users are there"
    with pytest.raises(BenchError, match="hold must be at least 2s"):
        Saturation.of({"hold": "1s"}, 10)
    with pytest.raises(BenchError, match="'x' is no share"):
        Saturation.of({"gain": "x"}, 10)


# --- options


def test_options_are_read_or_refused() -> None:
    given_ = Namespace(header=["X-A: b:c"], token="t")
    assert options.headers_of(given_) == (("x-a", "b:c"), ("authorization", "Bearer t"))
    assert options.tensor_shapes(["x=1,2", "a=b=3"]) == {"x": (1, 2), "a=b": (3,)}
    assert options.tensor_ranges(["x=-1:2.5"]) == {"x": (-1, 2.5)}
    classes: dict[str, Any] = {"Json": 1, "Grpc": 2}
    assert options.mix_of("json=3, Grpc", classes) == {"Json": 3, "Grpc": 1}
    for read, text, words in (
        (lambda t: options.headers_of(Namespace(header=[t], token="")), "x", "NAME:VALUE"),
        (lambda t: options.tensor_shapes([t]), "x=1,b", "INPUT=SIZE"),
        (lambda t: options.tensor_ranges([t]), "x=2:1", "INPUT=LOWEST"),
        (lambda t: options.mix_of(t, classes), "Soap", "no user class 'Soap'; known: Grpc, Json"),
        (lambda t: options.mix_of(t, classes), "Json=0", "whole number"),
    ):
        with pytest.raises(BenchError, match=words):
            read(text)
