"""What the servers with a handler of ours share: routes, the end of every process, settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_the_sweep_ends_what_left_the_session_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('up', flush=True); input()"]

    def child(mark: str) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, launch.SETTINGS: mark},
            start_new_session=True,
        )
        assert made.stdout is not None
        made.stdout.readline()
        return made

    ours, other = child(str(tmp_path / "a")), child(str(tmp_path / "ab"))
    try:
        launch.sweep(str(tmp_path / "a"))
        assert ours.wait(30) == -9
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.communicate()


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
