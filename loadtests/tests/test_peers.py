"""The comparison with other servers: cells, rounds against a stand-in, table, environments."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtests.compare import bare, load
from loadtests.compare import models as files
from loadtests.compare.models import Model
from loadtests.compare.peers import FOLDER, NAMES, OURS, environments, find, oip, route
from loadtests.compare.peers import __main__ as command
from loadtests.compare.peers.base import Peer, Route
from loadtests.compare.peers.cells import JSON_TOO, MODELS, Cell, LeftOut, cells_of, is_text
from loadtests.compare.peers.document import Facts, document, markdown, write
from loadtests.compare.peers.outcome import BARE, LOOP, Outcome, Run
from loadtests.compare.peers.rounds import Plan, Runner, Subject
from loadtests.compare.peers.runs import lost
from loadtests.compare.peers.table import Line, lines
from loadtests.compare.processes import Server
from loadtests.compare.wire import Rows
from loadtests.errors import BenchError

OTHERS = [name for name in NAMES if name != OURS]
NEEDS_H2LOAD = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")


@pytest.mark.parametrize("name", OTHERS)
def test_every_server_has_a_whole_folder_and_pins(name: str) -> None:
    folder = FOLDER / name
    for file in ("peer.py", "requirements.txt", "NOTES.md", "__init__.py"):
        assert (folder / file).is_file(), file
    wanted = (folder / "requirements.txt").read_text().splitlines()
    pins = [line for line in wanted if line and not line.startswith("#")]
    assert pins
    assert all("==" in pin for pin in pins), pins
    peer = find(name)
    assert peer.name == name
    assert peer.packages
    assert len((folder / "NOTES.md").read_text()) > 500


@pytest.mark.parametrize("name", NAMES)
def test_every_server_has_cells_and_says_what_is_left_out(name: str) -> None:
    peer = find(name)
    cells, left = cells_of(peer, MODELS)
    done = {(cell.model, cell.route.name) for cell in cells}
    out = {(each.model, each.route) for each in left}
    for model in MODELS:
        for each in peer.routes_of(model):
            assert (model, each.name) in done or out & {(model, each.name), (model, "")}
    assert all(each.reason for each in left)
    assert len({cell.key for cell in cells}) == len(cells)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["add", "embedding"])
def test_requests_of_every_route_can_be_posted(name: str, model: str) -> None:
    rows: Rows = np.arange(64, dtype=np.int64).reshape(2, 32)
    if model == "add":
        rows = np.ones((2, 4), np.float32)
    for each in find(name).routes_of(model):
        request = each.encode(model, rows)
        assert request.path.startswith("/")
        assert request.body
        assert each.like in {"", *(ours.name for ours in find(OURS).routes)}
        if each.name == "native":
            assert each.like


def test_routes_by_their_names() -> None:
    assert route("grpc") is oip.GRPC
    assert route("mlflow:add:native") is find("mlflow").routes[0]
    with pytest.raises(BenchError, match="no server is called 'tritn'; there are: sluicegate"):
        route("tritn:add:native")
    with pytest.raises(BenchError, match="mlflow has no route 'grp'"):
        route("mlflow:add:grp")


def test_large_text_is_left_out_unless_there_is_nothing_else() -> None:
    cells, left = cells_of(find(OURS), ["echo"])
    assert {cell.route.name for cell in cells} == {"grpc", "binary", "invocations"}
    alone = {cell.shape.concurrency for cell in cells if cell.route.name == "invocations"}
    assert alone == {1}
    found = [(each.route, each.concurrency) for each in left]
    assert found == [("json", 0), ("invocations", 16)]
    cells, left = cells_of(find("mlflow"), ["echo"])
    assert [cell.shape.concurrency for cell in cells] == [1]
    assert [(each.route, each.concurrency) for each in left] == [("native", 16)]


@pytest.mark.parametrize("name", NAMES)
def test_the_fastest_routes_and_some_json_are_measured_unless_all_are_asked_for(name: str) -> None:
    peer = find(name)
    names = {each.name for each in peer.routes}
    assert {best.rpartition("/")[2] for best in peer.best} <= names
    cells, _ = cells_of(peer, MODELS, every=False)
    for model in ("add", "cnn"):
        routes = {cell.route.name for cell in cells if cell.model == model}
        text = {each.name for each in peer.routes if each.name == "json" and model in JSON_TOO}
        best = {each for each in names if {each, f"{model}/{each}"} & set(peer.best)}
        assert routes == (best if peer.best else names) | text


def test_a_server_with_several_configurations_is_measured_in_each() -> None:
    cells, _ = cells_of(find("triton"), ["add"], every=False)
    assert {cell.variant for cell in cells} == {"_1x", "_2x"}
    assert len({cell.key for cell in cells}) == len(cells) == 8


def test_refusals_are_in_the_table() -> None:
    peer = replace(find(OURS), refusals={"cnn": "too deep", "add/json": "no text"})
    cells, left = cells_of(peer, ["add", "cnn"])
    assert {cell.route.name for cell in cells} == {"grpc", "binary", "invocations"}
    assert {(each.model, each.route, each.reason) for each in left} == {
        ("cnn", "", "too deep"),
        ("add", "json", "no text"),
    }


# Summing up.


def a_run(
    server: str, number: int, value: float, concurrency: int = 64, *problems: str, way: str = "json"
) -> Run:
    """``value`` requests/s, or microseconds with one in flight."""
    rate, mean = (1e6 / value, value) if concurrency == 1 else (value, 64e6 / value)
    name, like = ("native", way) if server == "mlflow" else (way, "")
    server, _, variant = server.partition(" ")
    return Run(
        *(server, "add", name, like, concurrency, number, rate, mean, mean, mean),
        problems=problems,
        variant=variant,
    )


def the_lines(*runs: Run) -> dict[str, Line]:
    return {f"{line.server} {line.concurrency}": line for line in lines(Outcome(runs=list(runs)))}


def test_ratios_are_taken_round_by_round() -> None:
    found = the_lines(
        *(a_run(OURS, i, rate) for i, rate in enumerate([1000, 2000, 4000], 1)),
        *(a_run("mlflow", i, rate) for i, rate in enumerate([500, 500, 500], 1)),
        *(a_run(OURS, i, us, 1) for i, us in enumerate([100, 200, 100], 1)),
        *(a_run("mlflow", i, us, 1) for i, us in enumerate([300, 300, 300], 1)),
    )
    busy, alone = found["mlflow 64"], found["mlflow 1"]
    assert (busy.ratio, busy.ratio_low, busy.ratio_high) == (0.25, 0.125, 0.5)
    assert (alone.ratio, alone.ratio_low, alone.ratio_high) == (3.0, 1.5, 3.0)
    assert (busy.figure, alone.figure, busy.against) == ("rate", "mean", "json")
    assert found[f"{OURS} 64"].ratio == 1.0
    assert found[f"{OURS} 64"].rate == 2000


def test_one_run_that_does_not_count_leaves_no_figure_and_no_ratio() -> None:
    found = the_lines(
        *(a_run(OURS, 1, 1000), a_run(OURS, 2, 1000)),
        *(a_run("triton", 1, 500), a_run("triton", 2, 500, 64, "lost a request")),
    )
    line = found["triton 64"]
    assert (line.rate, line.ratio, line.valid) == (None, None, False)
    assert line.problem == "round 2: lost a request"
    found = the_lines(a_run(OURS, 1, 1000, 64, "mine"), a_run("triton", 1, 500))
    assert found["triton 64"].rate == 500
    assert found["triton 64"].ratio is None


def test_the_best_configuration_of_a_server_counts_cell_by_cell() -> None:
    found = the_lines(
        *(a_run(OURS, i, 1000) for i in (1, 2)),
        *(a_run(OURS, i, 100, 1) for i in (1, 2)),
        *(a_run("triton _1x", i, 500) for i in (1, 2)),
        *(a_run("triton _2x", i, 800) for i in (1, 2)),
        *(a_run("triton _1x", i, 200, 1) for i in (1, 2)),
        *(a_run("triton _2x", i, 300, 1) for i in (1, 2)),
    )
    busy, alone = found["triton 64"], found["triton 1"]
    assert (busy.variant, busy.rate, busy.ratio, busy.runs) == ("2x", 800, 0.8, 2)
    assert (alone.variant, alone.mean_us, alone.ratio) == ("1x", 200, 2.0)


def test_a_configuration_that_does_not_count_leaves_the_other_and_is_named() -> None:
    found = the_lines(
        a_run(OURS, 1, 1000),
        a_run("triton _1x", 1, 500),
        a_run("triton _2x", 1, 800, 64, "lost a request"),
    )
    line = found["triton 64"]
    assert (line.variant, line.ratio) == ("1x", 0.5)
    assert line.note == "2x, round 1: lost a request"
    found = the_lines(a_run("triton _1x", 1, 500, 64, "a"), a_run("triton _2x", 1, 800, 64, "b"))
    assert not found["triton 64"].valid


def test_rounds_that_one_side_lacks_are_not_compared() -> None:
    found = the_lines(*(a_run(OURS, i, 1000) for i in (1, 2)), a_run("triton", 2, 500))
    assert (found["triton 64"].ratio, found["triton 64"].runs) == (0.5, 1)


def test_the_bare_loop_is_held_against_our_best_route() -> None:
    runs = [a_run(OURS, 1, 1000), a_run(OURS, 1, 4000, way="grpc")]
    loop = Run(BARE, "add", LOOP, "", 64, 1, 8000, 1.0, 1.0, 1.0)
    found = lines(Outcome(runs=[*runs, loop], batches={"add": 32}))
    assert (found[-1].server, found[-1].ratio, found[-1].against) == (BARE, 2.0, "grpc")
    assert found[-1].batch == 32


def test_mlflow_is_held_against_the_same_body_and_nothing_else() -> None:
    theirs, ours = find("mlflow").routes[0], find(OURS).routes[-1]
    rows = np.ones((2, 4), np.float32)
    assert theirs.like == ours.name
    assert theirs.encode("add", rows).body == ours.encode("add", rows).body
    assert ours.encode("add", rows).path == "/models/add/invocations"
    runs = [a_run(OURS, 1, 1000, way="binary"), a_run("mlflow", 1, 100, way="invocations")]
    assert lines(Outcome(runs=runs))[-1].ratio is None
    runs.append(a_run(OURS, 1, 500, way="invocations"))
    assert lines(Outcome(runs=runs))[-1].ratio == 0.2


def the_facts(folder: Path, rounds: int = 1) -> Facts:
    plan = Plan(rounds, 0.2, 1, folder / "peers", folder, every_route=False)
    machine = {"date": "2026-01-02 03:04 UTC", "cpu": "one"}
    return Facts("python -m x", machine, {"python": "3", "h2load": "h2load 1"}, plan)


def test_the_page_shows_everything_and_the_document_is_plain_json(tmp_path: Path) -> None:
    outcome = Outcome(
        runs=[
            *(a_run(OURS, 1, 1000), a_run(OURS, 1, 100, 1)),
            *(a_run("mlflow", 1, math.nan, 64, "it | broke"), a_run("mlflow", 1, 300, 1)),
        ],
        versions={"mlflow": {"python": "3.11", "mlflow": "9"}},
        ready_s={"mlflow": [3.0, 2.0]},
        notes=["round 1: mlflow add did not start at first (it slept), then did"],
    )
    outcome.left_out = cells_of(find("mlflow"), ["echo"])[1]
    text = markdown(the_facts(tmp_path), outcome, ["add.svg"])
    for part in (
        *("## add", "INVALID", "it | broke", "echo/native, c=16", "mlflow 9", "after 2.0 s"),
        *("--routes all", "did not start at first"),
        *("![add](add.svg)", "cpu: one", "`python -m x`", "3.00"),
    ):
        assert part in text
    _, data = write(the_facts(tmp_path), outcome, tmp_path / "out", "peers")
    found = json.loads(data.read_text(), parse_constant=lambda name: pytest.fail(name))
    first = found["lines"][0]
    assert {"server", "model", "route", "concurrency", "rate", "mean_us", "p50_us"} <= set(first)
    assert {"p99_us", "ratio", "ratio_low", "ratio_high", "problem"} <= set(first)
    assert str(tmp_path) not in json.dumps(document(the_facts(tmp_path), outcome))


# Environments.


def test_what_is_not_installed_says_what_to_type(tmp_path: Path) -> None:
    assert environments.missing(tmp_path, OURS) == ""
    said = environments.missing(tmp_path, "triton")
    assert said.startswith("not installed; type: python -m loadtests.compare.peers install triton")
    assert environments.weights(tmp_path) is None
    stamp = tmp_path / "triton" / environments.STAMP
    stamp.parent.mkdir()
    stamp.write_text("nvidia-pytriton==0.0.1\n")
    assert "other versions" in environments.missing(tmp_path, "triton")
    stamp.write_text((FOLDER / "triton" / "requirements.txt").read_text())
    assert environments.missing(tmp_path, "triton") == ""


def test_a_failed_installation_says_what_pip_said_and_is_not_taken_for_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "WEIGHTS", (str(tmp_path / "nothing"), "nothing"))
    with pytest.raises(BenchError, match="embedding cannot be installed: ERROR"):
        environments.install(tmp_path / "root", environments.EMBEDDING, lambda text: None)
    assert environments.missing(tmp_path / "root", environments.EMBEDDING)


# The rounds, with stand-ins.


def told(*words: str) -> argparse.Namespace:
    return command.arguments().parse_args(list(words))


def test_help_lists_the_names_that_can_be_chosen() -> None:
    said = " ".join(command.arguments().format_help().split())
    for names in (command.EVERYTHING, MODELS):
        assert f"of {', '.join(names)} (default: all)" in said


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_duration_is_a_number(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        told("--duration", value)
    assert ended.value.code == 2 and f"'{value}'" in capsys.readouterr().err


FAKE = f"{sys.executable} {Path(__file__).parent / 'fake_gateway.py'} --fault "


def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """One route: two cells."""

    def few(peer: Peer, models: Sequence[str], *, every: bool) -> tuple[list[Cell], list[LeftOut]]:
        cells, _ = cells_of(peer, models)
        return [cell for cell in cells if cell.route is oip.GRPC], []

    monkeypatch.setattr("loadtests.compare.peers.rounds.cells_of", few)
    monkeypatch.setattr("loadtests.compare.peers.rounds.WARM_MOST_S", 0.3)


@NEEDS_H2LOAD
def test_servers_are_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shortened(monkeypatch)
    args = told(
        *("--servers", f"{OURS},triton,bare", "--models", "add", "--environments", str(tmp_path)),
        *("--rounds", "1", "--duration", "0.2", "--sluice", FAKE + "none", "--out", str(tmp_path)),
    )
    (tmp_path / "work").mkdir()
    monkeypatch.setattr("loadtests.compare.bare.BATCHES", (4,))
    assert command.run(args, tmp_path / "work") == 0, capsys.readouterr().err
    (data,) = tmp_path.glob("*.json")
    found = json.loads(data.read_text())
    assert {line["server"] for line in found["lines"]} == {OURS, BARE}
    assert {line["concurrency"] for line in found["lines"]} == {1, 64}
    assert all(line["ratio"] for line in found["lines"])
    # Another command was started: only it knows what it is.
    assert set(found["servers"][OURS]) == {"says"}
    assert "sluicegate" not in found["versions"]
    ((server, why),) = [(each["server"], each["reason"]) for each in found["left_out"]]
    assert server == "triton"
    assert "install triton" in why


@NEEDS_H2LOAD
def test_wrong_answers_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shortened(monkeypatch)
    args = told(
        *("--servers", OURS, "--models", "add", "--rounds", "1", "--duration", "0.2"),
        *("--sluice", FAKE + "swapped", "--out", str(tmp_path)),
    )
    (tmp_path / "work").mkdir()
    assert command.run(args, tmp_path / "work") == 1
    (data,) = tmp_path.glob("*.json")
    problems = [line["problem"] for line in json.loads(data.read_text())["lines"]]
    assert problems
    assert all("mismatch" in problem for problem in problems)


def test_errors_that_h2load_takes_for_answers_are_noticed() -> None:
    found = load.Result(100, data_bytes=4500)
    assert lost(found, 45) == []
    assert "some answers were errors" in lost(replace(found, data_bytes=4455), 45)[0]
    assert lost(replace(found, data_bytes=0), 0)
    # One of a hundred thousand is one too many.
    many = load.Result(100_000, data_bytes=99_999 * 45)
    assert "some answers were errors" in lost(many, 45)[0]


def a_runner(tmp_path: Path, *peers: Peer) -> Runner:
    plan = Plan(3, 0.2, 1, tmp_path, tmp_path)
    model = files.make("add", tmp_path / "files")
    subjects = {"add": Subject(model, tmp_path / "none.npz")}
    return Runner(plan, peers, subjects, with_bare=False)


def test_a_server_that_does_not_start_is_tried_twice_and_reported(tmp_path: Path) -> None:
    starts = []

    @contextmanager
    def never(
        environment: Path, models: Sequence[Model], work: Path, threads: int
    ) -> Iterator[Server]:
        starts.append(list(work.iterdir()))
        raise BenchError("it wants\n   a license")
        yield

    runner = a_runner(tmp_path, replace(find(OURS), serve=never))
    outcome = runner.run()
    assert starts == [[], []]
    assert runner.broken
    assert outcome.runs == []
    assert outcome.left_out[-1].reason == "round 1: it wants a license"


def test_a_start_that_failed_before_one_that_did_not_is_named(tmp_path: Path) -> None:
    starts = []

    @contextmanager
    def late(
        environment: Path, models: Sequence[Model], work: Path, threads: int
    ) -> Iterator[Server]:
        starts.append(work)
        if len(starts) == 1:
            raise BenchError("it slept")
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        yield Server("late", "127.0.0.1:9", "127.0.0.1:9", "127.0.0.1:9", ended, work / "log")

    runner = a_runner(tmp_path, replace(find(OURS), serve=late))
    runner.plan = replace(runner.plan, rounds=1)
    np.savez(tmp_path / "none.npz", rows=np.ones((1, 4), np.float32))
    outcome = runner.run()
    (note,) = outcome.notes
    assert note.startswith(f"round 1: {OURS}")
    assert "it slept" in note
    assert outcome.runs
    assert all("had ended" in run.problems[0] for run in outcome.runs)


def test_a_server_whose_turn_is_over_gets_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    @contextmanager
    def slow(
        environment: Path, models: Sequence[Model], work: Path, threads: int
    ) -> Iterator[Server]:
        starts.append(work)
        monkeypatch.setattr(Runner, "_is_over", lambda self: True)
        ended = subprocess.Popen([sys.executable, "-c", ""])
        yield Server("slow", "127.0.0.1:9", "127.0.0.1:9", "127.0.0.1:9", ended, work / "log")
        ended.wait()

    runner = a_runner(tmp_path, replace(find(OURS), serve=slow, warm_s=0.0))
    np.savez(tmp_path / "none.npz", rows=np.ones((1, 4), np.float32))
    outcome = runner.run()
    assert len(starts) == 1
    assert runner.broken
    assert outcome.left_out[-1].reason.startswith("behind round 1: its turn took too long")
    assert outcome.runs
    assert not any(line.valid for line in lines(outcome))


def test_the_bare_loops_run_at_once_and_large_batches_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.make("add", tmp_path).path
    monkeypatch.setattr(bare, "BATCHES", (1, 4, 8))
    best, rates = bare.best_batch(path, 1, 0.05, row_bytes=bare.LARGEST // 4, loops=2, passes=1)
    assert list(rates) == [1, 4]
    assert rates[best] > 0
    with pytest.raises(BenchError, match="the bare loop failed"):
        bare.measure(tmp_path / "none.onnx", 1, 1, 0.05)


def test_what_cannot_be_drawn_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise BenchError("vl-convert is missing")

    monkeypatch.setattr("loadtests.report.draw.available", missing)
    with pytest.raises(BenchError, match="vl-convert is missing"):
        command.run(told("--servers", OURS, "--models", "add", "--publish"), tmp_path)


def test_what_a_server_needs_beside_its_packages_is_said(tmp_path: Path) -> None:
    peer = replace(find(OURS), extra=lambda: "Java is missing: install it")
    outcome = a_runner(tmp_path, peer).run()
    assert [each.reason for each in outcome.left_out] == ["Java is missing: install it"]


# The command line.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--servers", "tritn"], "--servers: tritn is not known; there are: sluicegate"),
        (["--models", "add,resnet"], "--models: resnet is not known"),
        (["--models", ","], "--models names nothing"),
        (["--rounds", "0"], "must be above 0"),
    ],
)
def test_bad_options_say_what_to_type(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=said):
        command.run(told(*words), tmp_path)


def test_install_knows_its_names(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="install: tritn is not known; there are: embedding"):
        command.install(["tritn"], tmp_path)
    assert command.install([OURS], tmp_path) == 0
    assert told("install", "triton", "--environments", "x").environments == Path("x")


def test_a_text_route_is_one_of_numbers_as_json() -> None:
    assert is_text(oip.JSON)
    assert is_text(find("mlflow").routes[0])
    assert is_text(Route("native", oip.JSON.encode, oip.JSON.decode, like="json"))
    assert not is_text(oip.GRPC)
