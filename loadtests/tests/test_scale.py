"""Cost against size: slopes, verdicts, the page, and the instruments that read a server."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.compare.load import Shape
from loadtests.errors import BenchError
from loadtests.report import draw
from loadtests.scale import __main__ as scale
from loadtests.scale import batch, connections, drawing, drive, pinned, processes, text
from loadtests.scale.drive import Bench, Driven
from loadtests.scale.fit import MARGIN, Fit, fit, fits, t95
from loadtests.scale.study import Check, Comparison, Measure, Report, Study

SIZES = [1, 10, 100, 500, 1000, 2000]
EXPONENTS = st.floats(-2, 3)
COSTS = st.floats(1e-6, 1e6)


@settings(max_examples=40)
@given(EXPONENTS, COSTS, st.floats(0.01, 1000))
def test_a_power_law_has_its_exponent_for_a_slope(power: float, cost: float, unit: float) -> None:
    found = fit([(unit * x, cost * x**power) for x in SIZES])
    assert math.isclose(found.slope, power, abs_tol=1e-9)
    assert found.error is not None and found.error < 1e-6
    if abs(power - 1 - MARGIN) > 1e-3:
        assert found.superlinear == (power > 1 + MARGIN)


@settings(max_examples=40)
@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_a_constant_part_makes_nothing_worse_than_linear(base: float, each: float) -> None:
    points = [(float(x), base + each * x) for x in SIZES]
    if base + each < 1e-9:
        assert fits(points) == [] or not fits(points)[0].superlinear
        return
    for cuts in ((), (100.0,)):
        for found in fits(points, cuts):
            assert -1e-9 <= found.slope <= 1 + 1e-9
            assert not found.superlinear


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(SIZES), COSTS), min_size=2, max_size=12))
def test_a_fit_is_the_line_with_the_least_squares(points: list[tuple[int, float]]) -> None:
    if len({x for x, _ in points}) < 2:
        with pytest.raises(ValueError, match="two sizes"):
            fit(points)
        return
    found = fit(points)
    logs = [(math.log(x), math.log(y)) for x, y in points]
    middle = [sum(each) / len(logs) for each in zip(*logs, strict=True)]

    def squares(slope: float) -> float:
        return math.fsum((y - middle[1] - slope * (x - middle[0])) ** 2 for x, y in logs)

    assert squares(found.slope) <= squares(found.slope + 0.01) + 1e-9
    assert squares(found.slope) <= squares(found.slope - 0.01) + 1e-9
    assert found.error is None or found.error >= 0


def test_noise_is_seldom_taken_for_a_curve() -> None:
    rng = random.Random(3)
    noisy = [
        fit([(x, x * math.exp(rng.gauss(0, 0.3))) for x in SIZES]).superlinear for _ in range(400)
    ]
    assert sum(noisy) < 0.05 * len(noisy)


def measured(*points: tuple[float, float]) -> Measure:
    return Measure("start", "s", [*points])


@pytest.mark.parametrize(
    "curve",
    [lambda n: 1.5 + 2e-6 * n**2, lambda n: 0.5 + 1e-5 * n**1.5, lambda n: 1000 + 0.01 * n**2],
)
def test_a_curve_is_found_behind_a_constant_part(curve: Callable[[float], float]) -> None:
    (found,) = measured(*((x, curve(x)) for x in SIZES)).stretches
    assert not found.cost.superlinear
    assert found.superlinear and found.words == "worse than linear"


@settings(max_examples=40)
@given(st.floats(0, 1e3), st.floats(1e-3, 1e3))
def test_what_is_added_is_linear_whatever_the_constant_part(base: float, each: float) -> None:
    (found,) = measured(*((x, base + each * x) for x in SIZES)).stretches
    assert not found.superlinear and not found.undecided
    assert found.flat == (found.added is None)
    assert found.added is None or math.isclose(found.added.slope, 1, abs_tol=0.05)


def readings(
    rng: random.Random, base: float, power: float, rise: float, noise: float
) -> list[tuple[float, float]]:
    """Three a size of a cost that is at last ``1 + rise`` times its constant part."""
    return [
        (x, base * (1 + rise * (x / SIZES[-1]) ** power) * math.exp(rng.gauss(0, noise)))
        for x in SIZES
        for _ in range(3)
    ]


@settings(max_examples=150, derandomize=True)
@given(st.integers(0), COSTS, st.floats(1.35, 3), st.floats(0.8, 1e4), st.floats(0, 0.1))
def test_a_planted_curve_is_found_or_undecided_and_never_fine(
    seed: int, base: float, power: float, rise: float, noise: float
) -> None:
    points = readings(random.Random(seed), base, power, rise, noise)
    (found,) = measured(*points).stretches
    assert found.superlinear or found.undecided


@pytest.mark.parametrize("rise", [0.0, 1.0, 100.0])
def test_a_planted_line_is_seldom_called_worse(rise: float) -> None:
    rng = random.Random(5)
    worse = [
        measured(*readings(rng, 3.0, 1.0, rise, 0.05)).stretches[0].superlinear for _ in range(200)
    ]
    assert sum(worse) <= 0.06 * len(worse)


def test_a_slope_is_linear_only_where_more_is_ruled_out() -> None:
    assert Fit(1, 1000, 4, 0.95, 0.09).words == "perhaps worse than linear"
    assert Fit(1, 1000, 4, 0.95, 0.05).words == "linear"
    assert Fit(1, 1000, 4, 0.5, 0.29).words == "too uneven to say"


def test_three_sizes_prove_no_curve_behind_a_constant_part() -> None:
    points = [(x, y * near) for x, y in ((1, 8), (4, 5.4), (32, 40)) for near in (0.99, 1, 1.01)]
    (found,) = measured(*points).stretches
    assert not found.superlinear and found.undecided
    assert found.words == "perhaps worse than linear"


def test_what_does_not_rise_is_constant() -> None:
    (found,) = measured((1, 100), (10, 101), (100, 120), (1000, 124)).stretches
    assert found.added is None and found.flat and not found.undecided
    assert measured().stretches == []


def test_what_was_too_short_too_uneven_or_not_measured_is_not_called_fine() -> None:
    study = Study("models", "Models", "loaded models")
    study.measure("short", "s").points += [(1, 1.0), (10, 1.0)]
    study.measure("single", "s").points += [(1, 1.0)]
    study.measure("uneven", "s").points += [(1, 1), (2, 50), (4, 1), (8, 60), (16, 1)]
    study.skipped.append("loaded models: 2,000 not measured, 9 s were over")
    study.limited.append("requests/s, 1")
    assert study.bad == []
    assert study.undecided == [
        "models: loaded models: 2,000 not measured, 9 s were over",
        "models: the client was the bottleneck: requests/s, 1",
        "models: short from 1 to 10: too few points to say",
        "models: single: fewer than two sizes were measured",
        "models: uneven from 1 to 16: too uneven to say",
    ]
    page = text.markdown(a_report(study))
    assert "Not decided:" in page and "Nothing grows" not in page


def test_two_sizes_claim_nothing_however_often_they_are_measured() -> None:
    found = fit([(1, 1.0), (1, 1.1), (2, 9.0), (2, 9.1)])
    assert found.slope > 3
    assert (found.error, found.superlinear, found.words) == (None, False, "too few points to say")


@pytest.mark.parametrize("point", [(0, 1), (1, 0), (-1, 1), (1, math.nan), (math.inf, 1)])
def test_points_without_a_logarithm_are_refused(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        fit([(1, 1), (2, 2), point])


def test_students_t_falls_towards_the_normal_distribution() -> None:
    values = [t95(freedom) for freedom in range(1, 60)]
    assert values == sorted(values, reverse=True)
    assert math.isclose(t95(30), 1.697, rel_tol=0.01)
    assert math.isclose(t95(10**6), 1.645, rel_tol=0.001)


@pytest.mark.parametrize(
    ("power", "words"),
    [(-0.5, "falling"), (0.05, "constant"), (0.5, "less than linear"), (1.0, "linear")],
)
def test_slopes_in_words(power: float, words: str) -> None:
    assert fit([(x, x**power) for x in SIZES]).words == words


def test_uneven_points_say_nothing() -> None:
    assert fit([(1, 1), (2, 50), (4, 1), (8, 60), (16, 1)]).words == "too uneven to say"


def squared(name: str = "start", **how: object) -> Study:
    study = Study("models", "Models", "loaded models")
    measure = study.measure(name, "s", **how)
    for size in SIZES:
        measure.add(size, size**2)
    return study


def test_what_is_worse_than_linear_is_named() -> None:
    (line,) = squared().bad
    assert "models: start grows as loaded models to the power of 2.00" in line
    assert squared(judged=False).bad == squared(judged=False).undecided == []
    # As a rate it is a cost that falls by the square.
    assert squared(rate=True).bad == squared(rate=True).undecided == []
    assert squared(rate=True).measures[0].stretches[0].words == "falling"


def test_a_rate_that_falls_by_the_square_is_bad() -> None:
    study = Study("models", "Models", "loaded models")
    measure = study.measure("requests/s", "/s", rate=True)
    for size in SIZES:
        measure.add(size, 1e6 / size**2)
    assert len(study.bad) == 1


def test_values_below_the_grain_count_as_it() -> None:
    measure = Measure("idle", "%", [(1, 0.0), (10, 0.0), (100, 0.05), (1000, 0.1)], grain=0.1)
    assert [cost for _, cost in measure.costs] == [0.1] * 4
    assert measure.stretches[0].words == "constant"


def test_values_of_zero_are_left_out_of_the_slope_and_shown() -> None:
    measure = Measure("memory", "KiB", [(1, 0.0), (10, 10.0), (100, 100.0), (1000, 1000.0)])
    assert measure.stretches[0].cost.low == 10
    assert measure.medians[0] == (1, 0.0)


def a_report(*studies: Study) -> Report:
    return Report("now", "python -m loadtests.scale", {"cores": "2"}, {"python": "3"}, [*studies])


def test_the_page_shows_values_slopes_ratios_and_bounds() -> None:
    study = squared()
    study.comparisons.append(Comparison("scraped over not", [0.9, 1.1, 1.0]))
    study.checks.append(Check("goodput", 0.5, "", 0.9, at_most=False))
    study.checks.append(Check("p99", 3.0, "", 2.0, explained="the client shares the cores"))
    study.note("a remark")
    study.note("a remark")
    page = text.markdown(a_report(study), {"models": ["models-start.svg"]})
    assert (
        "| start | 1 | 2,000 | 2.00 ± 0.00 | 2.00 (2.00 to 2.00) | **worse than linear** |" in page
    )
    assert "| scraped over not | 1.00 | 0.90 to 1.10 |  |" in page
    assert "| goodput | 0.50 | ≥ 0.90 | **missed** |" in page
    assert "missed, explained: the client shares the cores" in page
    assert "(models-start.svg)" in page
    assert page.count("a remark") == 1
    assert "- models: goodput is 0.5, and should be ≥ 0.9" in page


def test_a_report_comes_back_from_json() -> None:
    report = a_report(squared(cuts=(100.0,)))
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


@pytest.mark.parametrize(
    ("size", "unit", "shown"),
    [(16, "bytes", "16 B"), (2**26, "bytes", "64 MiB"), (2000, "models", "2,000")],
)
def test_sizes_are_written_as_people_write_them(size: float, unit: str, shown: str) -> None:
    assert text.size_text(size, unit) == shown


def test_studies_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.chosen([]) == list(scale.STUDIES)
    assert scale.chosen(["overload", "models"]) == ["models", "overload"]
    assert scale.main(["sizes"]) == 2
    assert "no study 'sizes'; there are models, connections" in capsys.readouterr().err


def test_sizes_that_there_is_no_time_for_are_named(tmp_path: Path) -> None:
    said: list[str] = []
    bench = Bench("", tmp_path, say=said.append)
    bench.begin(1e9)
    study = Study("models", "Models", "loaded models")
    seen = []
    for size in bench.within(study, [1, 10, 1000]):
        seen.append(size)
        bench.budget_s = 0
    assert seen == [1]
    assert study.skipped == ["loaded models: 10, 1,000 not measured, 0 s were over"]
    assert said == ["models: loaded models 1"]


@contextmanager
def answering(reply: bytes, keep: int) -> Iterator[str]:
    """Answers every connection once, and closes all but the first ``keep``."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.recv(65536)
                connection.sendall(reply)
                if len(held) < keep:
                    held.append(connection)
                else:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in held:
                each.close()


def test_what_differs_in_the_way_only_shares_a_chart() -> None:
    study = Study("models", "Models", "loaded models")
    for name in ("p99, busy, gRPC", "p99, busy, HTTP/1.1", "start to ready"):
        study.measure(name, "ms").points += [(1, 2.0), (1, 4.0), (10, 5.0)]
    study.measure("never measured", "ms")
    shared, alone = drawing.charts(study)
    assert (shared.name, [each.name for each in shared.series]) == (
        "models-p99-busy",
        ["gRPC", "HTTP/1.1"],
    )
    assert alone.fit and "slope" in alone.series[0].slope
    assert alone.series[0].points == [(1, 3.0), (10, 5.0)]
    assert alone.series[0].spread == [(2.0, 4.0), (5.0, 5.0)]


def wait_until_gone(held: list[socket.socket], count: int) -> int:
    """How many are closed, once as many are as should be (or after a while)."""
    for _ in range(500):
        if connections.lost(held) >= count:
            break
        threading.Event().wait(0.01)
    return connections.lost(held)


@pytest.mark.parametrize("protocol", ["binary", "grpc"])
def test_idle_connections_that_the_server_closes_are_counted(protocol: str) -> None:
    with (
        answering(b"HTTP/1.1 200 OK\r\n\r\n", keep=3) as address,
        connections.idle(protocol, address, 5) as held,
    ):
        assert len(held) == 5
        assert wait_until_gone(held, 2) == 2


def test_idle_memory_is_held_against_a_fresh_gateway_and_zeros_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = iter([1000, 1000, 1000 + 8 * 1024, 1000 + 64 * 1024])
    server = SimpleNamespace(http="h:1", grpc="h:2", process=SimpleNamespace(pid=1))
    driven = [Driven(rate, 1.0, None, 0.1, 0.5) for rate in (10.0, 11.0, 12.0)]
    monkeypatch.setattr(connections, "settled_bytes", lambda pid: next(resident))
    monkeypatch.setattr(connections, "idle", lambda *what: nullcontext([]))
    monkeypatch.setattr(connections, "drive", lambda *what: driven)
    bench = Bench("", tmp_path, say=lambda line: None)
    (tmp_path / "connections").mkdir()
    monkeypatch.setattr(bench, "serve", lambda *what: nullcontext(server))
    study = Study("connections", "Connections", "connections")
    connections._idle(bench, study, "binary", "HTTP/1.1", (1, 16, 64, 250))
    memory, beside, cpu = study.measures
    assert [round(used) for size, used in cpu.points if size == 64] == [50_000, 45_455, 41_667]
    assert memory.points == [(16, 0.0), (64, 8.0), (250, 64.0)]
    assert [rate for size, rate in beside.points if size == 64] == [10.0, 11.0, 12.0]
    assert study.notes == ["An idle connection over HTTP/1.1 takes 0.3 KiB."]


def test_what_connections_cost_is_no_part_of_what_requests_on_them_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection takes 200 µs of the server, a request 50."""
    asked: list[int] = []

    def one(
        server: object, what: object, shape: Shape, requests: int, *_: object, **__: object
    ) -> Driven:
        asked.append(requests)
        used = shape.clients * 200e-6 + requests * 50e-6
        return Driven(1000.0, 1.0, 2.0, 0.1, 0.9, cpu_s=used, requests=requests)

    monkeypatch.setattr(drive, "_one", one)
    monkeypatch.setattr("loadtests.compare.load.calibrate", lambda *_, **__: 1000.0)
    what: Any = SimpleNamespace(options=("--h1",))
    server: Any = None
    found = drive.drive(server, what, Shape(500), 1.2, each=10, readings=2)
    assert asked == [500, 5000, 500, 5000]
    assert [each.cpu_us for each in found] == pytest.approx([50, 50])


def test_idle_connections_that_nobody_answers_are_an_error() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with (
        pytest.raises(BenchError, match="connection 0 of 5 failed"),
        connections.idle("binary", f"127.0.0.1:{port}", 5),
    ):
        pass


def test_the_peak_of_memory_is_that_since_it_was_reset() -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nx = b'x' * 2**27\ndel x\nprint(flush=True)\nsys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None and child.stdout is not None
    with child:
        child.stdout.readline()
        assert processes.peak_bytes(child.pid) > 2**27
        processes.reset_peak(child.pid)
        assert processes.peak_bytes(child.pid) < 2**26
        assert processes.cpu_seconds(child.pid) >= 0
        child.stdin.close()


def test_a_command_runs_on_the_cores_that_it_is_given() -> None:
    core = min(os.sched_getaffinity(0))
    ask = shlex.join([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"])
    said = subprocess.run(
        shlex.split(pinned.command([core], ask)),
        check=True,
        capture_output=True,
        text=True,
        cwd=processes.__file__.rpartition("/loadtests/")[0],
    )
    assert said.stdout.strip() == f"{{{core}}}"


def test_this_process_has_its_cores_back_afterwards() -> None:
    before = os.sched_getaffinity(0)
    with pinned.on([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


NEEDS_H2LOAD = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")


@NEEDS_H2LOAD
def test_a_smoke_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch, "QUICK", (1, 65))
    monkeypatch.setattr(batch, "WAYS", batch.WAYS[:1])
    monkeypatch.setattr(Bench, "seconds", 0.02)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert scale.main(["batch", "--quick"]) == scale.UNDECIDED
    said = capsys.readouterr()
    assert "## Rows in a request" in said.out
    assert "not decided: batch: rows/s, 16 in flight, gRPC" in said.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--quick"], "--quick is a smoke run"),
        (["overload", "--quick"], "--quick is a smoke run"),
        (["models"], "models: only all studies together are published"),
        (["overload", "models"], "models, overload: only all"),
    ],
)
def test_what_would_replace_a_larger_result_is_not_published(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scale.main([*words, "--publish", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_publishing_needs_what_draws_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw._converter.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert scale.main(["--publish", str(tmp_path)]) == 2
    assert "pip install 'sluicegate[bench]'" in capsys.readouterr().err


def test_what_is_published_takes_the_place_of_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "picture", lambda spec, words: json.dumps(spec, ensure_ascii=False))
    (tmp_path / "mine.svg").write_text("")
    scale.publish(a_report(squared("start"), squared("gone")), tmp_path, "scale")
    assert (tmp_path / "models-gone.svg").exists()
    scale.publish(a_report(squared("start")), tmp_path, "scale")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.svg", "models-start.svg", "scale.json", "scale.md",
    ]  # fmt: skip
    # The slope of the picture is that of the table.
    assert "slope 2.00 ± 0.00" in (tmp_path / "models-start.svg").read_text()


@NEEDS_H2LOAD
def test_a_gateway_that_does_not_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert scale.main(["batch", "--quick", "--sluice", f"{sys.executable} -c raise"]) == 2
    assert "scale: sluicegate ended with 1 before it was ready" in capsys.readouterr().err


def test_the_time_that_is_promised_is_that_of_the_budgets() -> None:
    budgets = [
        importlib.import_module(f"loadtests.scale.{name}").BUDGET_S for name in scale.STUDIES
    ]
    minutes = math.ceil(sum(budgets) / 60)
    said = " ".join(scale.arguments().format_help().split())
    assert f"all of these, {minutes} minutes at most on a quiet machine" in said
    readme = (Path(str(scale.__file__)).parents[1] / "README.md").read_text()
    assert f"all studies but overload: {minutes} minutes at most" in readme
