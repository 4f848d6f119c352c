"""The comparison's own parts: bytes, h2load's report, validity, verdicts, summary."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from loadtests.commands import command
from loadtests.compare import __main__ as comparison
from loadtests.compare import cells, load, measure, summary, wire
from loadtests.compare.measure import Counter, Run
from loadtests.compare.processes import ROOT, free_port
from loadtests.compare.runner import Outcome
from loadtests.compare.verify import Verdict, compare, verifier
from loadtests.errors import BenchError

REPORT = """
finished in 1.67s, 89557.05 req/s, 3.42MB/s
requests: 150000 total, 150000 started, 150000 done, 150000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 150000 2xx, 0 3xx, 0 4xx, 0 5xx
                     min         max         mean         sd        +/- sd
time for request:       46us      3.54ms      1.02ms       109us    93.04%
"""  # noqa: E501


def test_requests_are_what_a_client_would_send() -> None:
    pb = pytest.importorskip("tritonclient.grpc.service_pb2")
    rows = np.arange(1200, dtype=np.float32).reshape(300, 4)
    wanted = pb.ModelInferRequest(model_name="add")
    wanted.inputs.add(name="x", datatype="FP32", shape=[300, 4])
    wanted.raw_input_contents.append(rows.tobytes())
    assert pb.ModelInferRequest.FromString(wire.grpc_request("add", rows)) == wanted
    assert wire.grpc_frame(b"abc") == b"\x00\x00\x00\x00\x03abc"


def test_answers_are_read_as_a_client_would() -> None:
    pb = pytest.importorskip("tritonclient.grpc.service_pb2")
    rows = np.arange(300, dtype=np.float32).reshape(300, 1)
    answer = pb.ModelInferResponse(model_name="add", model_version="1", id="7")
    answer.parameters["sequence_id"].int64_param = 3
    answer.outputs.add(name="y", datatype="FP32", shape=[300, 1])
    answer.raw_output_contents.append(rows.tobytes())
    assert np.array_equal(wire.grpc_answer(answer.SerializeToString()), rows)
    answer.outputs[0].datatype = "FP64"
    with pytest.raises(ValueError, match="FP32"):
        wire.grpc_answer(answer.SerializeToString())


def test_http_answers_binary_and_json() -> None:
    rows = np.array([[1.5, 2.5]], np.float32)
    output: dict[str, object] = {"name": "y", "datatype": "FP32", "shape": [1, 2]}
    head = json.dumps({"outputs": [output]}).encode()
    assert np.array_equal(wire.http_answer(head + rows.tobytes(), str(len(head))), rows)
    output["data"] = [1.5, 2.5]
    assert np.array_equal(wire.http_answer(json.dumps({"outputs": [output]}).encode(), None), rows)


def test_report_of_h2load_is_read() -> None:
    result = load.Result(150000)
    load.parse(REPORT, result)
    assert (result.seconds, result.per_second) == (1.67, 89557.05)
    assert math.isclose(result.mean_us, 1020)
    assert result.problems() == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("0 failed", "3 failed", "3 failed"),
        ("0 timeout", "1 timeout", "1 timeouts"),
        ("150000 succeeded", "149999 succeeded", "149999 of 150000 succeeded"),
        ("codes: 150000 2xx", "codes: 149990 2xx", "149990 of 150000 answered 2xx"),
        ("finished in", "gave up after", "cannot be read"),
    ],
)
def test_failures_of_h2load_make_a_run_invalid(old: str, new: str, reason: str) -> None:
    result = load.Result(150000)
    load.parse(REPORT.replace(old, new), result)
    assert any(reason in problem for problem in result.problems())


def test_percentiles_come_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"1795297728692524\t200\t{i}\n" for i in range(1, 101)))
    result = load.Result(100)
    load.percentiles(log, result)
    assert (result.mean_us, result.p50_us) == (50.5, 50.5)
    assert result.p99_us is not None and 99 <= result.p99_us <= 100


def test_what_was_before_all_connections_were_answered_is_left_out(tmp_path: Path) -> None:
    """Three connections: the third is answered late, and the others go on meanwhile."""
    opening = [(0, 10), (1, 10), (2, 9000), *((at, 10) for at in range(20, 9000, 100))]
    settled = [(9002 + 100 * at, 50 + at) for at in range(4)]
    log = tmp_path / "log"
    log.write_text("".join(f"{at}\t200\t{took}\n" for at, took in [*settled, *opening]))
    result = load.Result(len(opening) + len(settled))
    load.percentiles(log, result, 3)
    assert result.problems() != ["h2load was done before all connections had been answered once"]
    assert (result.opening_us, result.mean_us, result.p50_us) == (9002, 51.5, 51.5)
    assert result.per_second == pytest.approx(4 / 353e-6)
    assert {type(result.per_second), type(result.opening_us)} == {float}  # what JSON can hold


def test_what_was_in_flight_then_counts_in_the_rate(tmp_path: Path) -> None:
    """Ten connections, each answered 10 ms after it asked: a thousand a second, all the time."""
    log = tmp_path / "log"
    lines = [(10_000 * turn + at, 10_000) for at in range(10) for turn in range(4)]
    log.write_text("".join(f"{1000 * (at % 10_000) + at}\t200\t{took}\n" for at, took in lines))
    result = load.Result(len(lines))
    load.percentiles(log, result, 10)
    assert not result.problem and result.p50_us == 10_000
    assert result.per_second == pytest.approx(1000, rel=0.01)


def test_a_run_that_hardly_outlasts_its_connections_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{at}\t200\t10\n" for at in (0, 1, 2, 20, 21)))
    result = load.Result(5)
    load.percentiles(log, result, 3)
    assert result.problems() == ["h2load was done before all connections had been answered once"]


METRICS = b"""# TYPE nv_inference_request_success counter
nv_inference_request_success{model="add",version="1"} 12.000000
nv_inference_request_success{model="add",version="2"} 99
nv_inference_request_success{model="add_1x",version="1"} 98
nv_inference_request_failure{model="add",reason="OTHER",version="1"} 2
nv_inference_request_failure{model="add",reason="REJECTED",version="1"} 3
"""


def test_counter_is_the_model_s_own() -> None:
    assert measure.parse_counter(METRICS, "add", "1") == Counter(12, 5)
    assert measure.parse_counter(METRICS, "mlp", "1") == Counter(None, 0)


def good_result() -> load.Result:
    result = load.Result(150000)
    load.parse(REPORT, result)
    return result


def test_exact_count_is_valid() -> None:
    rise, problems = measure.judge(
        good_result(), Verdict(sent=7), Counter(5, 1), Counter(150012, 1)
    )
    assert (rise, problems) == (150007, [])


@pytest.mark.parametrize(
    ("verdict", "after", "reason"),
    [
        (Verdict(sent=7), Counter(150011, 1), "counted 150006 successes, not 150007"),
        (Verdict(sent=7), Counter(150013, 1), "counted 150008 successes, not 150007"),
        (Verdict(sent=7), Counter(150012, 2), "counted 1 failures"),
        (Verdict(sent=7), Counter(None, 1), "shows no nv_inference_request_success"),
        (Verdict(sent=7, mismatches=1, first_problem="row"), Counter(150012, 1), "1 mismatches"),
        (Verdict(sent=7, errors=2, first_problem="gone"), Counter(150012, 1), "2 errors"),
        (Verdict(sent=1), Counter(150006, 1), "only 1 requests"),
    ],
)
def test_what_makes_a_run_invalid(verdict: Verdict, after: Counter, reason: str) -> None:
    _, problems = measure.judge(good_result(), verdict, Counter(5, 1), after)
    assert any(reason in problem for problem in problems)


def test_answers_are_compared_exactly_or_closely() -> None:
    row = np.ones((1, 4), np.float32)
    assert compare(row, row.copy(), exact=True) == ""
    assert compare(row, row + np.float32(1e-6), exact=True)
    assert compare(row, row + np.float32(1e-6), exact=False) == ""
    assert "off by" in compare(row, row + np.float32(0.1), exact=False)
    assert "shape" in compare(row, np.ones((2, 4), np.float32), exact=False)


def test_goals() -> None:
    rate = cells.Goal(2.3, 3.0)
    assert [rate.verdict(value) for value in (3.1, 2.5, 2.2)] == ["AIM", "PASS", "MISS"]
    latency = cells.Goal(0.9, 0.7, smaller_is_better=True)
    assert [latency.verdict(value) for value in (0.6, 0.8, 1.0)] == ["AIM", "PASS", "MISS"]


def a_run(who: str, number: int, rate: float, *problems: str) -> Run:
    result = load.Result(100, 1.0, rate, mean_us=64 / rate * 1e6)
    return Run(cells.TAIL_CELL, who, number, result, rate, problems=list(problems))


def the_row(*runs: Run) -> summary.Row:
    cell = next(cell for cell in cells.all_cells() if cell.name == cells.TAIL_CELL)
    (row,) = summary.rows([cell], Outcome(runs=list(runs)))
    return row


def test_the_better_rival_counts_and_ratios_are_taken_round_by_round() -> None:
    row = the_row(
        *(a_run("sluicegate", i, rate) for i, rate in enumerate([40_000, 50_000, 60_000])),
        *(a_run("triton 1x", i, rate) for i, rate in enumerate([10_000, 10_000, 10_000])),
        *(a_run("triton 2x", i, rate) for i, rate in enumerate([20_000, 20_000, 20_000])),
    )
    assert row.rival is not None and row.rival.label == "triton 2x"
    assert (row.ratio, row.ratio_low, row.ratio_high) == (2.5, 2.0, 3.0)
    assert row.verdict == "PASS"


def test_one_invalid_run_makes_the_side_invalid_and_is_shown() -> None:
    row = the_row(
        a_run("sluicegate", 1, 50_000), a_run("sluicegate", 2, 50_000, "lost a request"),
        a_run("triton 1x", 1, 10_000), a_run("triton 1x", 2, 10_000),
    )  # fmt: skip
    assert (row.verdict, row.ratio, row.ours) == ("INVALID", None, None)
    assert row.notes == ["sluicegate, round 2: lost a request"]


def test_a_cell_without_ours_among_two_sides_is_invalid() -> None:
    assert the_row(a_run("triton 1x", 1, 10_000)).verdict == ""
    assert the_row(a_run("sluicegate", 1, 10_000, "x"), a_run("triton 1x", 1, 9)).verdict


def test_a_verifier_without_a_server_says_so(tmp_path: Path) -> None:
    pool = tmp_path / "pool.npz"
    np.savez(pool, rows=np.ones((8, 4), np.float32), answers=np.ones((8, 4), np.float32))
    address = f"127.0.0.1:{free_port()}"
    with verifier("json", address, "add", pool, rate=50, max_rows=4, exact=True) as checking:
        checking.go()
        verdict = checking.stop()
    assert verdict.errors == 1


NEEDS_H2LOAD = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
SHORT = ["--only", "sluicegate", "--rounds", "1", "--duration", "0.5", "--what", "cells"]


def verdicts(folder: Path) -> list[str]:
    (data,) = folder.glob("*.json")
    return [row["verdict"] for row in json.loads(data.read_text())["rows"]]


def fake(fault: str) -> str:
    """What starts a server with a fault."""
    return f"{sys.executable} {Path(__file__).parent / 'fake_gateway.py'} --fault {fault}"


@NEEDS_H2LOAD
def test_against_a_server_that_behaves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.compare", *SHORT, "--sluice", fake("none")]
    command += ["--cells", "add/*/c16*", "--out", str(tmp_path)]
    said = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, said.stderr
    for protocol in ("grpc", "binary", "json"):
        assert f"add/{protocol}/c16" in said.stdout
    assert set(verdicts(tmp_path)) == {""}


@NEEDS_H2LOAD
@pytest.mark.parametrize(
    ("protocol", "fault", "reason"),
    [
        ("grpc", "swapped", "mismatch"),
        ("grpc", "grpc-error", "successes, not"),
        ("binary", "uncounted", "successes, not"),
        ("json", "http-error", "2xx"),
        ("json", "no-counter", "shows no nv_inference_request_success"),
    ],
)
def test_against_a_server_that_misbehaves(
    protocol: str,
    fault: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In this process, where nobody waits long for a counter that stays wrong.
    monkeypatch.setattr(measure, "settled", partial(measure.settled, wait_s=0.3))
    words = [*SHORT, "--sluice", fake(fault), "--cells", f"add/{protocol}/c16*"]
    (tmp_path / "work").mkdir()
    args = comparison.arguments().parse_args([*words, "--out", str(tmp_path)])
    assert comparison.run(args, tmp_path / "work") == 1
    assert reason in capsys.readouterr().out
    assert verdicts(tmp_path) == ["INVALID"]


def test_commands_end_with_the_same_codes(capsys: pytest.CaptureFixture[str]) -> None:
    @command("study")
    def main(how: str) -> int:
        if how == "told":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        if how == "broken":
            raise BenchError("h2load is missing")
        return 1

    before = signal.getsignal(signal.SIGTERM)
    assert [main(how) for how in ("well", "broken", "told")] == [1, 2, 130]
    assert capsys.readouterr().err == "study: h2load is missing\n"
    assert signal.getsignal(signal.SIGTERM) is before
