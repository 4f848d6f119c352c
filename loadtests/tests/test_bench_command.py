"""``sluice bench`` as it is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.cli.commands import run
from loadtests.bench.histogram import Counts
from loadtests.bench.results import Result, Search, dump, load
from loadtests.errors import BenchError, Unreachable
from loadtests.tests.bench_pages import serving
from loadtests.tests.bench_points import point, result
from tests.support.gateway import ROOT, GatewayProcess
from tests.support.onnx_models import write_adding


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "give a MODEL, or two results"),
        ("add --rate 5 --concurrency 2", "give --rate or --concurrency, not both"),
        ("add --rates 1,2 --rate 2", "give --rate or --rates, not both"),
        ("add --arrivals constant", "--arrivals is for an open loop; give --rate"),
        ("add --concurrency 2 --max-in-flight 5", "--max-in-flight is for an open loop"),
        ("add --order given", "--order is for several levels"),
        ("add --rate 5 --order given", "--order is for several levels"),
        ("add --search p99<=1ms --rates 1:5 --order given", "--order is for several levels"),
        ("add --search p99<=20", "type 'p99<=20ms'"),
        ("add --search p99<=20ms --rate 5", "leave out --rate, or give --rates LOW:HIGH"),
        ("add --search p99<=20ms --concurrencies 5:2", "5 is not below 2"),
        ("add --search p99<=20ms --rates 1,2", "give its bounds, as --rates 1:1000"),
        ("add --slo p99", "'p99' is no objective"),
        ("add --duration 5d", "--duration: '5d' must be a time from 0.1 s to 24 h"),
        ("add --duration 0", "--duration: '0' must be"),
        ("add --warmup soon", "--warmup: 'soon' must be a time 0 or from"),
        ("add --timeout nan", "--timeout: 'nan' must be"),
        ("add --grpc there", "give --grpc HOST:PORT"),
        ("add --grpc h:99999", "give --grpc HOST:PORT"),
        ("add --grpc h:1 --protocol json", "json goes to --url"),
        ("add --protocol grpc --url http://h", "does not say where gRPC is; give --grpc HOST:PORT"),
        ("add --url ftp://h", "is no URL"),
        ("add --url http://me:secret@h:1", "a URL with a password"),
        ("add --header nothing", "--header must be 'NAME: VALUE'"),
        ("add --token t --header authorization:x", "give --token or --header"),
        ("add --shape x", "as --shape x=1,3,224,224"),
        ("add --shape x=1,a", "as --shape x=1,3,224,224"),
        ("add --range x=3:1", "as --range ids=0:30000"),
        ("add --data f.json --shape x=1", "--shape is for random values"),
        ("add --key a --keys 3", "give --key (one for all requests) or --keys N"),
        ("add --tolerance 5%", "--tolerance is for --compare"),
        ("add --force", "--force is for --compare"),
        ("add --concurrency 4 --processes 8", "cannot share 4 in flight; give --processes 4"),
        ("add --processes 2", "cannot share 1 in flight; give --processes 1"),
        ("add --rate 9 --processes 4 --connections 2", "give --connections 4 or more"),
        ("add --rate 9 --rest 5s", "--rest is for the time between levels"),
        ("add --concurrency 2 --data a.json --seed 3", "--seed is for random values and open"),
        ("add --data a.jsonl --rows 3", "a.jsonl holds whole requests"),
        ("add --compare a.json b.json", "leave out add"),
        ("--compare a.json b.json --rate 5", "--compare measures nothing; leave out --rate"),
        ("--compare a.json b.json --header a:b", "leave out --header"),
        ("--compare a.json b.json --tolerance x", "as --tolerance 5%"),
        ("--compare a.json b.json --tolerance 5", "'5' is 500 %; type --tolerance 5%"),
        ("--compare a.json b.json --tolerance 2000%", "a share of at most 1000%"),
        ("add --rate nan", "--rate nan is no number of requests; give --rate 500"),
        ("add --range x=0:inf", "as --range ids=0:30000"),
        ("add --range x=nan:1", "as --range ids=0:30000"),
        ("--compare a.json b.json", "a.json: no such file"),
        ("add --json no/such/a.json", "there is no directory such"),
        ("add --json same --html same", "--json and --html name the same file"),
        (f"add --ca-file {Path(__file__)}", "--ca-file is for TLS"),
    ],
)
def test_what_makes_no_sense_says_what_to_type(
    words: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLUICE_URL", raising=False)
    monkeypatch.delenv("SLUICE_TOKEN", raising=False)
    assert run(["bench", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("sluice: ") and err.count("\n") == 1
    assert says in err and "secret" not in err


def test_nobody_there_has_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with serving({}) as url:
        pass
    assert run(["bench", "add", "--url", url]) == 3
    assert "name it with --url" in capsys.readouterr().err
    with serving({}) as url:
        assert run(["bench", "add", "--url", url]) == 1  # somebody there, but without the model
    assert "status 404" in capsys.readouterr().err


def test_what_was_measured_is_kept_when_the_server_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import loadtests.bench.run as engine

    out = tmp_path / "out.json"
    one = result([point(100)], notes=["it could not go on"])
    for cause, code in ((Unreachable("nobody answers"), 3), (BenchError("killed"), 1)):

        def dies(*_: object, cause: BenchError = cause) -> object:
            raise engine.Interrupted(one, cause)

        monkeypatch.setattr(engine, "bench", dies)
        assert run(["bench", "add", "--json", str(out)]) == code
        said = capsys.readouterr()
        assert "100/s" in said.out and "it could not go on" in said.out
        assert f"sluice: {cause}\n" in said.err
        assert load(out.read_bytes()).points == one.points
        out.unlink()


def test_ctrl_c_in_the_first_level_says_that_nothing_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import loadtests.bench.run as engine

    def stops(*_: object) -> object:
        raise engine.Interrupted(None)

    monkeypatch.setattr(engine, "bench", stops)
    out = tmp_path / "out.json"
    assert run(["bench", "add", "--json", str(out)]) == 130
    said = capsys.readouterr()
    assert not said.out and "interrupted before a level was finished" in said.err
    assert not out.exists()


def test_results_without_a_level_in_common_are_of_different_things(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_bytes(dump(result([point(100)])))
    b.write_bytes(dump(result([point(200)])))
    for more in ([], ["--force"]):
        assert run(["bench", "--compare", str(a), str(b), *more]) == 2
        assert "no level is in both" in capsys.readouterr().err


def test_two_results_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "out.json"
    a.write_bytes(dump(result([point(100, us=5000)])))
    b.write_bytes(dump(result([point(100, us=6000)])))
    page = tmp_path / "page.html"
    compare = ["bench", "--compare", str(a), str(b)]
    assert run([*compare, "--json", str(out), "--html", str(page)]) == 1
    said = capsys.readouterr().out
    assert "1.200  worse" in said and said.endswith("B is worse than A\n")
    tree = json.loads(out.read_text())
    assert tree["worse"] is True and tree["levels"][0]["changes"][1]["metric"] == "p50"
    assert tree["levels"][0]["changes"][1]["ratio"] == 1.2
    assert page.read_text().lower().startswith("<!doctype html")
    assert run([*compare, "--tolerance", "30%"]) == 0
    assert run(["bench", "--compare", str(b), str(a)]) == 0
    assert capsys.readouterr().out.endswith("B is not worse than A\n")
    b.write_text('{"format": "other"}')
    assert run(compare) == 2
    assert "not a result of `sluice bench`" in capsys.readouterr().err


def measured(monkeypatch: pytest.MonkeyPatch, found: Result) -> None:
    """Lets every measurement come to this."""
    monkeypatch.setattr("loadtests.bench.run.bench", lambda order, watch: found)


@pytest.mark.parametrize(
    ("words", "found", "code"),
    [
        ("", result([point(0, 1), point(0, 4)]), 0),
        ("", result([point(0, 1, ok=5, errors={"429": 5})]), 0),
        ("", result([point(0, 1), point(0, 4, ok=0, errors={"timeout": 5})]), 1),
        ("--slo p99<=10ms", result([point(0, 1, us=5000)]), 0),
        ("--slo p99<=9ms", result([point(0, 1, us=5000)]), 1),
        ("--slo p99<=10ms", result([point(0, 1, us=5000, ok=99, errors={"503": 1})]), 1),
        ("--slo p99<=10ms", result([point(0, 1, us=5000, silent_s=2.0)]), 1),
        ("--slo error<=0.1%", result([point(0, 1, ok=5, errors={"429": 5})]), 1),
        ("--search p99<=1s", result([point(9)], search=Search("p99<=1s", 9.0, [])), 0),
        ("--search p99<=1s", result([point(9)], search=Search("p99<=1s", None, [])), 1),
        # Of a search, only the load that it found has to hold.
        (
            "--search p99<=1s --slo rate>=9",
            result([point(3), point(9)], search=Search("p99<=1s", 9.0, [])),
            0,
        ),
        (
            "--search p99<=1s --slo rate>=10",
            result([point(3), point(9), point(20)], search=Search("p99<=1s", 9.0, [])),
            1,
        ),
    ],
)
def test_exit_codes(
    words: str,
    found: Result,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured(monkeypatch, found)
    assert run(["bench", "add", *words.split()]) == code
    out = capsys.readouterr().out
    assert ("missed: " in out) == ("--slo" in words and code == 1)
    assert "LEVEL" in out


def test_documents_are_written_beside_the_table_or_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result([point(0, 1)])
    measured(monkeypatch, found)
    monkeypatch.setattr("loadtests.report.bench.render", lambda each: f"<p>{each.payload}</p>")
    page, out = tmp_path / "page.html", tmp_path / "out.json"
    out.write_text("older")
    assert run(["bench", "add", "--html", str(page), "--json", str(out)]) == 0
    assert page.read_text() == "<p>random</p>" and load(out.read_bytes()) == found
    assert "LEVEL" in capsys.readouterr().out
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.json", "page.html"]
    assert run(["bench", "add", "--json", "-"]) == 0
    assert load(capsys.readouterr().out.encode()) == found


def test_only_what_needs_histograms_needs_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
    measured(monkeypatch, result([point(100, latency=Counts.of(np.full(1000, 5000)).latency())]))
    assert run(["bench", "add", "--html", str(tmp_path / "page.html")]) == 2
    extra = "pip install 'sluicegate[bench]'"
    out, err = capsys.readouterr()
    assert out == "" and "--html: histograms" in err and extra in err
    assert run(["bench", "add"]) == 0
    out, err = capsys.readouterr()
    assert "5 ms" in out and err == ""
    kept = tmp_path / "a.json"
    assert run(["bench", "add", "--json", str(kept)]) == 0
    assert (
        f"without histograms, which need the package hdrhistogram; to have them, type: {extra}"
        in capsys.readouterr().err
    )
    assert load(kept.read_bytes()).points[0].latency.histogram == ""
    assert run(["bench", "--compare", str(kept), str(kept)]) == 0
    assert run(["bench", "--compare", str(kept), str(kept), "--html", "page.html"]) == 2


# --- the whole


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("bench")
    models = folder / "models"
    models.mkdir()
    write_adding(models, "add", 1.0, 10.0)
    (models / "add" / "traffic.yaml").write_text("weights: {1: 90, 2: 10}\n")
    with GatewayProcess(folder, [models]) as running:
        yield running


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "gateway", "bench", "add", *words]


def environment() -> dict[str, str]:
    usual = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")}
    return usual | {"PYTHONPATH": str(ROOT)}


def test_a_sweep_of_a_real_gateway(gateway: GatewayProcess, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        command(
            "--url", gateway.http, "--rates", "40,20", "--duration", "1s", "--warmup", "0.2s",
            "--keys", "50", "--token", "secret", "--slo", "p99<=1us", "--json", str(out),
        ),
        capture_output=True, text=True, timeout=120, check=False, env=environment(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # the objective cannot be met
    found = load(out.read_bytes())
    assert [each.load.rate for each in found.points] == [20, 40]
    assert all(each.ok == each.sent > 0 and not each.errors for each in found.points)
    assert all(each.server is not None and each.server.requests for each in found.points)
    assert found.expected_split == {"1": 0.9, "2": 0.1}
    assert {version for each in found.points for version in each.versions} <= {"1", "2"}
    assert "secret" not in out.read_text() + done.stdout
    assert "--token ..." in found.command
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"add at {gateway.http} (sluicegate ")
    assert [line.split()[0] for line in lines[1:4]] == ["LEVEL", "20/s", "40/s"]
    assert "missed: 20/s: p99 " in done.stdout and "(declared 90.0 %)" in done.stdout
    assert "20/s (level 1 of 2), 1 s" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle_writes_what_there_is(
    gateway: GatewayProcess, tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out.json"
    process = subprocess.Popen(
        command(
            "--grpc", gateway.grpc, "--concurrencies", "1,2", "--duration", "0.5s", "--warmup",
            "0", "--json", str(out),
        ),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        before = ""
        while "level 2" not in before:
            line = process.stderr.readline()
            assert line, before
            before += line
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does it
        else:
            os.kill(process.pid, how)
        shown, rest = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, before + rest
    assert "Traceback" not in before + rest
    found = load(out.read_bytes())
    assert [each.load.name for each in found.points] == ["c1"]
    assert "interrupted" in shown
