"""What the servers with a handler of ours share: routes, the end of every process, settings."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.compare import processes
from loadtests.compare.peers import find, launch
from loadtests.compare.peers.torchserve.peer import properties

NAMES = ("litserve", "bentoml", "ray", "torchserve")


@given(st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_raw_answers_come_back(count: int, inner: list[int]) -> None:
    y = np.random.default_rng(1).standard_normal((count, *inner)).astype(np.float32)
    headers = {"x-shape": ",".join(map(str, y.shape))}
    assert np.array_equal(launch.raw_answer(y.tobytes(), headers), y)


@pytest.mark.parametrize("shape", ["", "2,x", "3,4"])
def test_a_wrong_shape_is_an_error_that_names_it(shape: str) -> None:
    with pytest.raises(ValueError, match=r"32 bytes with x-shape"):
        launch.raw_answer(bytes(32), {"x-shape": shape})


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_has_all_that_its_folder_promises(name: str) -> None:
    peer = find(name)
    assert peer.name == name
    folder = launch.HERE / name
    assert (folder / "NOTES.md").is_file()
    pins = (folder / "requirements.txt").read_text().split()
    assert all("==" in pin for pin in pins)
    assert {"numpy", "onnxruntime"} <= {pin.partition("==")[0] for pin in pins}


@pytest.mark.parametrize("name", NAMES)
def test_requests_go_to_the_model_that_is_asked(name: str) -> None:
    rows = np.ones((2, 4), np.float32)
    for route in find(name).routes:
        request = route.encode("mlp", rows)
        assert "mlp" in request.path or request.headers["application"] == "mlp"
        if route.name == "native":
            assert request.body == rows.tobytes()
        elif route.name == "json":
            assert json.loads(request.body)["inputs"][0]["data"] == [1.0] * 8


def test_the_sweep_ends_what_left_the_session_and_nothing_else() -> None:
    command = [sys.executable, "-c", "print('up', flush=True); input()"]

    def child(mark: str) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, processes.MARK: mark},
            start_new_session=True,
        )
        assert made.stdout is not None
        made.stdout.readline()
        return made

    token = secrets.token_hex(8)
    ours, other = child(f"{token}.1."), child(f"{token}.12.")
    try:
        processes.sweep(f"{token}.1.")
        assert ours.wait(30) == -9
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.communicate()


LONELY = """\
import os, signal, sys
from pathlib import Path
from loadtests.compare.processes import guarded, started
child = "import os; os.setsid(); print(os.getpid(), flush=True); input()"
answer = "import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler)"
code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', " + repr(child) + "], "
code += "stdin=subprocess.PIPE); " + answer + ".serve_forever()"
address = "127.0.0.1:{port}"
command = [sys.executable, "-u", "-c", code]
with guarded(), started("x", command, (address, "", ""), Path({log!r}), ready_path="/") as server:
    print(server.process.pid, flush=True)
    sys.stdin.read()
"""


def gone(number: int) -> bool:
    """Whether a process has ended (it may not have been waited for)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_servers_end_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = LONELY.format(port=processes.free_port(), log=str(log))
    runner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=processes.ROOT,
    )
    assert runner.stdout is not None and runner.stdin is not None
    try:
        server = int(runner.stdout.readline())
        until = time.monotonic() + 60
        while not (words := log.read_text().split()) and time.monotonic() < until:
            time.sleep(0.02)
        child = next(int(word) for word in words if word.isdecimal())
        assert not gone(server) and not gone(child)
        runner.send_signal(signal.SIGKILL)
        while not (gone(server) and gone(child)) and time.monotonic() < until:
            time.sleep(0.02)
        assert gone(server)
        assert gone(child)
    finally:
        runner.kill()
        runner.communicate()


def test_a_server_does_not_inherit_what_would_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MKL_DYNAMIC"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SOMETHING", "else")
    found = processes.inherited()
    assert found["SOMETHING"] == "else"
    assert found["PATH"] == os.environ["PATH"]
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "MKL_DYNAMIC"} & set(
        found
    )


def test_a_session_is_opened_again_where_it_is_unpickled(tmp_path: Path) -> None:
    pytest.importorskip("orjson")
    from loadtests.compare import models
    from loadtests.compare.peers.onnx_serving import Onnx

    one = Onnx(str(models.make("add", tmp_path).path), 1)
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(again.run(np.ones((2, 4), np.float32)), np.full((2, 4), 2, np.float32))


def test_our_heavy_models_have_an_instance_a_core_and_the_others_the_default(
    tmp_path: Path,
) -> None:
    from loadtests.compare import models, sluice

    one = models.make("add", tmp_path / "files")
    names = sluice.write_directory(tmp_path / "d", [one, replace(one, name="cnn")], 1, {"cnn": 3})
    assert names == ["add", "cnn"]
    read = {name: (tmp_path / "d" / name / "model.yaml").read_text() for name in names}
    assert "instances" not in read["add"]
    assert read["cnn"].startswith("instances: 3\noptions:\n")


def test_a_folder_for_sockets_is_short_and_does_not_stay(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    with launch.socket_folder(long) as folder:
        assert len(str(folder)) <= launch.SOCKET_FOLDER
        assert folder.is_dir()
    assert not folder.exists()


def test_torchserve_listens_on_loopback_only(tmp_path: Path) -> None:
    names = ("inference", "management", "metrics", "grpc_inference", "grpc_management")
    text = properties({name: 1000 + n for n, name in enumerate(names)}, tmp_path)
    addresses = [line for line in text.splitlines() if "_address=" in line]
    assert len(addresses) == 5
    assert all("127.0.0.1" in line for line in addresses)
