"""Locust itself, as people run it, against a real gateway."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests.compare.processes import free_port
from tests.support.gateway import PATIENCE, ROOT, GatewayProcess, wait_until
from tests.support.onnx_models import write_adding

LOCUSTFILE = str(ROOT / "loadtests" / "locustfile.py")
SPLIT = 'weights: {"1": 80, "2": 20}\nstable: "1"\n'
SLOW = """
import time

class Model:
    signature = {"inputs": {"x": ("FP32", [-1])}, "outputs": {"y": ("FP32", [-1])}}

    def infer(self, inputs):
        time.sleep(0.4)
        return {"y": inputs["x"] + 0}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("locust")
    write_adding(folder / "models", "add", 1.0, 2.0)
    (folder / "models" / "add" / "traffic.yaml").write_text(SPLIT)
    (folder / "models" / "slow" / "1").mkdir(parents=True)
    (folder / "models" / "slow" / "1" / "model.py").write_text(SLOW)
    with GatewayProcess(folder, [folder / "models"]) as running:
        yield running


def environment() -> dict[str, str]:
    usual = {k: v for k, v in os.environ.items() if not k.startswith(("LOCUST_", "SLUICE_"))}
    return usual | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def locust(folder: Path, *arguments: str, file: str = LOCUSTFILE) -> subprocess.Popen[str]:
    """A locust of its own; what it writes is in ``<pid>.log`` of ``folder``."""
    command = [sys.executable, "-m", "locust", "-f", file, *arguments]
    with (folder / "locust.log").open("a") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment(), text=True
        )


def run(folder: Path, *arguments: str, file: str = LOCUSTFILE) -> tuple[int, str]:
    """Exit code and output of a headless run."""
    command = [sys.executable, "-m", "locust", "-f", file, "--headless", "--only-summary"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def run_until(folder: Path, wanted: int, kinds: int, *arguments: str) -> tuple[int, str]:
    """A headless run that goes on until locust has counted so many requests, of so many protocols:
    how long that takes is the machine's business."""
    path = folder / "master.log"
    command = [sys.executable, "-m", "locust", "-f", LOCUSTFILE, "--headless", *arguments]

    def enough() -> bool:
        log = path.read_text()
        assert process.poll() is None, log
        seen = re.findall(r"^(\w+) +add +[1-9]\d* ", log, re.MULTILINE)
        counted = [int(each) for each in re.findall(r"Aggregated +(\d+) ", log)]
        return len(set(seen)) >= kinds and max(counted, default=0) >= wanted

    with path.open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment(), text=True
        )
    try:
        wait_until(enough, f"{wanted} requests", 2 * PATIENCE)
        process.terminate()
        return process.wait(PATIENCE), path.read_text()
    finally:
        process.kill()
        process.wait()


def at(gateway: GatewayProcess) -> list[str]:
    return ["--host", gateway.http, "--grpc-host", gateway.grpc, "--model", "add"]


def versions(output: str) -> dict[str, list[str]]:
    """The lines of the table, by version."""
    found = re.findall(r"^add +(\S+) +(.*)$", output, re.MULTILINE)
    return {version: rest.split() for version, rest in found}


def test_every_protocol_and_both_versions(tmp_path: Path, gateway: GatewayProcess) -> None:
    mix = "Json,Binary,Grpc,Stream,V1,Invocations"
    code, output = run_until(
        tmp_path, 100, 6, *at(gateway), "-u", "6", "-r", "6", "--user-mix", mix, "--rows", "2",
        "--fail-error-rate", "0%", "--fail-share", "15%", "--fail-p99", "30s", "--fail-rate", "1",
    )  # fmt: skip
    assert code == 0, output
    for protocol in ("json", "binary", "grpc", "stream", "v1", "invocations"):
        line = re.search(rf"^{protocol} +add +[1-9]\d* +0\(0.00%\)", output, re.MULTILINE)
        assert line is not None, output
    table = versions(output)
    assert set(table) == {"1", "2"}, output
    assert table["1"][2] == "80.0%" and table["2"][2] == "20.0%"
    assert all(int(row[0]) > 0 and row[1] == "0" for row in table.values())
    assert all(float(row[-1]) >= 2 for row in table.values()), "rows of a batch"
    assert output.count("PASS") == 5 and "FAIL" not in output
    for word in ("Traceback", "Warning", "WARNING", "ERROR"):
        assert word not in output, output


def test_two_workers_and_a_threshold_that_fails(tmp_path: Path, gateway: GatewayProcess) -> None:
    port = str(free_port())
    recording = tmp_path / "traffic.jsonl"
    body = {"instances": [[1, 2, 3, 4]]}
    lines = [{"at_s": n / 100, "model": "add", "body": body} for n in range(100)]
    recording.write_text("\n".join(map(json.dumps, lines)))
    workers = [locust(tmp_path, "--worker", "--master-port", port) for _ in range(2)]
    try:
        code, output = run_until(
            tmp_path, 50, 2, *at(gateway), "--master", "--master-bind-port", port,
            "--master-bind-host", "127.0.0.1", "--expect-workers", "2", "-u", "4", "-r", "4",
            "--user-mix", "Json,Grpc", "--data", str(recording), "--pace", "recorded",
            "--fail-p99", "1us", "--fail-error-rate", "0%",
        )  # fmt: skip
        log = (tmp_path / "locust.log").read_text()
        assert code == 1, output + log
        assert [worker.wait(PATIENCE) for worker in workers] == [0, 0], log
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert "FAIL  p99" in output and "PASS  errors 0 of " in output
    assert "2 workers connected" in output
    table = versions(output)
    assert sum(int(row[0]) for row in table.values()) >= 50, output
    assert table["1"][2] == "80.0%", output
    assert "Traceback" not in output + log


def test_what_cannot_run_says_why_in_one_line(tmp_path: Path, gateway: GatewayProcess) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    code, output = run(tmp_path, *at(gateway), "-t", "1s", "--data", "x.npy")
    assert code == 2
    assert output.splitlines()[-1] == (
        "locust: x.npy, input 'x': shape [2, 3] does not fit x FP32 [-1, 4]"
    )
    assert "Traceback" not in output


def test_a_worker_that_cannot_go_on_fails_the_run(tmp_path: Path, gateway: GatewayProcess) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "body.json").write_text('{"instances": [[1, 2, 3, 4]]}')
    port = str(free_port())
    # The worker has no such file.
    worker = locust(tmp_path / "there", "--worker", "--master-port", port)
    try:
        code, output = run(
            tmp_path / "here", *at(gateway), "--master", "--master-bind-port", port,
            "--master-bind-host", "127.0.0.1", "--expect-workers", "1", "-t", "60s",
            "--data", "body.json", "--fail-error-rate", "50%",
        )  # fmt: skip
        worker.wait(PATIENCE)
    finally:
        worker.kill()
        worker.wait()
    assert code == 2, output
    assert "a worker cannot go on: 'body.json' cannot be read" in output


OWN = """
from loadtests.users import GrpcUser

class Adding(GrpcUser):
    model = "add"
    grpc_host = "{grpc}"
    rows = 3
    data = "rows.npy"
"""


def test_a_locustfile_of_ones_own_stops_when_saturated(
    tmp_path: Path, gateway: GatewayProcess
) -> None:
    np.save(tmp_path / "rows.npy", np.ones((9, 4)))
    own = tmp_path / "own.py"
    own.write_text(OWN.format(grpc=gateway.grpc))
    # No server keeps to a microsecond, so that the first step is the last.
    code, output = run(
        tmp_path, "--host", gateway.http, "-u", "40", "--shape", "step:start=2,hold=2s,p99=1us",
        file=str(own),
    )  # fmt: skip
    assert code == 0, output
    assert "Adding: rows.npy: 3 requests of 3 rows" in output
    assert "p99 above 0.001 ms" in output and "knee: none" in output
    assert re.search(r"^ +2 +\d+\.\d +\d+\.\d +0.00%", output, re.MULTILINE), output


def test_the_web_ui_has_a_tab_of_versions(tmp_path: Path, gateway: GatewayProcess) -> None:
    port = free_port()
    process = locust(
        tmp_path, *at(gateway), "--web-host", "127.0.0.1", "--web-port", str(port),
        "--autostart", "-u", "2", "-r", "2",
    )  # fmt: skip

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        return json.loads(text) if answer.headers["content-type"] == "application/json" else text

    def shown() -> bool:
        try:
            rows = get("/sluice/versions")["versions"]
        except OSError:
            return False
        return len(rows) == 2 and all(row["requests"] > 20 for row in rows)

    try:
        wait_until(shown, "answers of both versions", 2 * PATIENCE)
        page = get("/")
        assert '"sluice-versions"' in page and '"Versions"' in page
        extended = get("/stats/requests")["extended_stats"]
        assert extended[0]["key"] == "sluice-versions"
        assert [row["expected"] for row in extended[0]["data"]] == ["80.0%", "20.0%"]
        first = get("/sluice/versions")["versions"][0]
        low, high = first["confidence"]
        assert low <= first["actual_share"] <= high and first["expected_share"] == 0.8
        assert get("/sluice/versions/csv").splitlines()[0].startswith("Model,Version,Requests")
    finally:
        process.terminate()
        process.wait(PATIENCE)
    assert process.returncode == 0, (tmp_path / "locust.log").read_text()


BLOCKING = """
import sys, threading, time
from loadtests.users import GrpcStreamUser, GrpcUser  # patches, and arranges gRPC
import gevent
from locust.env import Environment
from locust import events
from locust.argument_parser import get_parser

options = get_parser().parse_args(["-f", "x", "--model", "slow", "--grpc-host", sys.argv[1]])
classes = [type("A", (GrpcUser,), {}), type("B", (GrpcStreamUser,), {})]
environment = Environment(user_classes=classes, parsed_options=options)
environment.create_local_runner()
told = []
environment.events.request.add_listener(lambda **said: told.append(said))
users = [cls(environment) for cls in classes]
ticks = 0
done = False

def tick():
    global ticks
    while not done:
        ticks += 1
        gevent.sleep(0.01)

ticker = gevent.spawn(tick)
began = time.perf_counter()
gevent.joinall([gevent.spawn(user.ask) for user in users], raise_error=True)
took = time.perf_counter() - began
done = True
for user in users:
    user.on_stop()
assert [said["exception"] for said in told] == [None, None], told
assert all(said["response_time"] > 390 for said in told), told
assert {said["context"]["sluice_version"] for said in told} == {"1"}, told
print(ticks)
"""


def test_a_slow_call_lets_other_greenlets_run(gateway: GatewayProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKING, gateway.grpc],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # A call takes 0.4 s: a loop that was blocked would have ticked once or twice.
    assert int(done.stdout) > 8
