"""Stopping a gateway under load: what was accepted is answered, the rest refused plainly."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.models import save, slow
from tests.support.gateway import PATIENCE, ROOT, GatewayProcess, wait_until
from tests.support.load import Load
from tests.support.onnx_models import adding, write, write_adding

SERVERS = pytest.mark.parametrize("server", ["native", "grpcio"])
REFUSALS = frozenset(("503", "UNAVAILABLE"))
LOOPS = 600_000
"""What the slow model is asked to do: at least a second of work."""


def started(tmp_path: Path, server: str = "native", **settings: object) -> GatewayProcess:
    if server == "native":
        pytest.importorskip("pygrpc_native")
    write_adding(tmp_path / "models", "m", 1.0)
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return GatewayProcess(tmp_path, [tmp_path / "models"], grpc_server=server, settings=named)


def readiness(gateway: GatewayProcess) -> bool | None:
    """What the gateway says; `None` once it does not answer any more."""
    try:
        with urllib.request.urlopen(gateway.http + "/v2/health/ready", timeout=5) as answer:
            return bool(json.loads(answer.read())["ready"])
    except urllib.error.HTTPError as error:
        with error:
            return bool(json.loads(error.read())["ready"])
    except OSError:
        return None


@SERVERS
def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path, server: str) -> None:
    gateway = started(tmp_path, server, drain__grace=1)

    async def main() -> None:
        load = Load(
            gateway.http, gateway.grpc, "m", lambda version, added: added == 1.0,
            workers=4, refusals=REFUSALS,
        )  # fmt: skip
        async with load:
            while load.sent < 200:
                await asyncio.sleep(0.01)
            gateway.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + PATIENCE
            while await asyncio.to_thread(readiness, gateway):
                assert time.monotonic() < end
            # Not ready any more, and answering all the same.
            at = {protocol: tally.answered for protocol, tally in load.tallies.items()}
            while any(load.tallies[protocol].answered < at[protocol] + 20 for protocol in at):
                assert time.monotonic() < end
                await asyncio.sleep(0.005)
            while not all(task.done() for task in load._tasks):
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
        load.check()
        http, grpc = load.tallies["http"], load.tallies["grpc"]
        assert http.answered > 50
        assert grpc.answered > 50
        assert grpc.refused.total() == 4, "each worker was told at last"
        print({name: (t.answered, dict(t.refused)) for name, t in load.tallies.items()})

    with gateway:
        asyncio.run(main())
        assert gateway.process.wait(PATIENCE) == 0


def test_a_second_signal_cuts_the_grace_short(tmp_path: Path) -> None:
    with started(tmp_path, drain__grace=60) as gateway:
        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait_for(re.compile("draining"))
        assert gateway.process.poll() is None
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(PATIENCE) == 0


def infer(gateway: GatewayProcess, loops: int) -> Any:
    tensor = {"name": "loops", "datatype": "INT64", "shape": [1], "data": [loops]}
    return asked(gateway, "/v2/models/slow/infer", {"inputs": [tensor]})


def asked(gateway: GatewayProcess, path: str, body: Any) -> Any:
    request = urllib.request.Request(gateway.http + path, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_requests_in_flight_are_answered(tmp_path: Path, number: signal.Signals) -> None:
    save(tmp_path / "models" / "slow", slow())
    settings = {"drain.grace": 0, "batching.inline_us": 0}
    with GatewayProcess(tmp_path, [tmp_path / "models"], settings=settings) as gateway:
        answers: list[Any] = []
        v1: list[Any] = []
        asking = [
            threading.Thread(target=lambda: answers.append(infer(gateway, LOOPS))),
            threading.Thread(
                target=lambda: v1.append(
                    asked(gateway, "/v1/models/slow:predict", {"instances": [1]})
                )
            ),
        ]
        for count, each in enumerate(asking, 1):
            each.start()
            wait_until(
                lambda now=count: gateway.get("/admin/v1/status")["in_flight"] == now,
                "the request to be in flight",
            )
        gateway.process.send_signal(number)
        for each in asking:
            each.join(PATIENCE)
        assert answers[0]["outputs"][0]["data"] == [LOOPS]
        assert v1[0] == {"predictions": [1]}
        assert gateway.process.wait(PATIENCE) == 0


# --- start-ups that fail


def serve(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "serve", str(folder), *arguments]
    # In a folder of the checkout, so that it is found without being installed.
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("taken", ["http", "grpc"])
@SERVERS
def test_a_port_in_use_is_one_line(tmp_path: Path, taken: str, server: str) -> None:
    if server == "native":
        pytest.importorskip("pygrpc_native")
    write_adding(tmp_path, "m", 1.0)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        addresses = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", taken: address}
        done = serve(
            tmp_path, "--http", addresses["http"], "--grpc", addresses["grpc"],
            "--grpc-server", server,
        )  # fmt: skip
    assert done.returncode not in (0, 1)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert f"cannot listen on {taken}.address {address}" in lines[0]


def test_strict_ends_with_the_cause(tmp_path: Path) -> None:
    write(tmp_path / "bad" / "1", adding(1.0)[:-20])
    write_adding(tmp_path, "m", 1.0)
    done = serve(tmp_path, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--strict")
    assert done.returncode == 4
    assert (
        "bad/1: 'model.onnx' is not an ONNX file, or it is damaged" in done.stderr.splitlines()[-1]
    )
    assert "Traceback" not in done.stderr


def test_without_strict_the_others_are_served_and_readiness_names_the_failed(
    tmp_path: Path,
) -> None:
    write(tmp_path / "models" / "bad" / "1", adding(1.0)[:-20])
    gateway = started(tmp_path)
    try:
        answer = gateway.get("/v2/health/ready")
        assert answer["ready"] is True
        assert list(answer["failed"]) == ["bad/1"]
    finally:
        assert gateway.stop() == 0
