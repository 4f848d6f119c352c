"""Models that are loaded when somebody asks for them, over every protocol, on a real gateway."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as tc
from click.testing import CliRunner
from tritonclient.utils import InferenceServerException

from gateway.cli.commands import sluice
from tests.support.gateway import GatewayProcess, wait_until
from tests.support.onnx_models import adding, write

PATIENCE = 60.0
OUTER = """
class Model:
    signature = {"inputs": {"x": ("FP32", [-1, 4])}, "outputs": {"y": ("FP32", [-1, 4])}}

    def load(self, context):
        self.context = context
        # While this one holds the only thread that loads.
        assert context.describe("inner").inputs[0].name == "x"

    def infer(self, inputs):
        return self.context.call("inner", inputs)
"""
HANGS = """
import os
import pathlib
import threading


class Model:
    signature = {"inputs": {"x": ("FP32", [-1, 4])}, "outputs": {"y": ("FP32", [-1, 4])}}

    def load(self, context):
        pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
        threading.Event().wait()

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""
MODELS = ("oip", "raw", "v1", "generate", "grpc", "stream", "metadata", "config", "held", "named")


def on_demand(root: Path, name: str, *values: float, more: str = "") -> Path:
    for version, value in enumerate(values, 1):
        write(root / name / str(version), adding(value))
    (root / name / "model.yaml").write_text(f"on_demand: true\n{more}")
    return root / name


@pytest.fixture(scope="module", params=["native", "grpcio"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("on-demand")
    root = folder / "models"
    for name in MODELS:
        on_demand(root, name, 1.0, 2.0, more="versions: {all: true}\n")
    on_demand(root, "broken", 1.0)
    (root / "broken" / "1" / "model.onnx").write_bytes(adding(1.0)[:-9])
    settings = {
        "state_dir": folder / "state",
        "lifecycle.retry_seconds": 300,
        "lifecycle.on_demand_wait": 60,
        "drain.grace": 0,
    }
    with GatewayProcess(folder, [root], grpc_server=request.param, settings=settings) as made:
        yield made
        made.process.terminate()
        assert made.process.wait(PATIENCE) == 0
        made.log_path.write_text("")


def post(gateway: GatewayProcess, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(gateway.http + path, data, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            head = answer.headers.get("Inference-Header-Content-Length")
            data = answer.read()
            tree = json.loads(data if head is None else data[: int(head)])
            if head is not None:
                tree["outputs"][0]["data"] = np.frombuffer(data[int(head) :], np.float32)
            return answer.status, tree, answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers


def tensor() -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}


def states(gateway: GatewayProcess, model: str) -> dict[str, str]:
    found = gateway.get(f"/admin/v1/models/{model}")["versions"]
    return {each["version"]: each["state"] for each in found}


def grpc_inputs() -> list[tc.InferInput]:
    made = tc.InferInput("x", [1, 4], "FP32")
    made.set_data_from_numpy(np.zeros((1, 4), np.float32))
    return [made]


def by_oip(gateway: GatewayProcess) -> float:
    status, answer, headers = post(gateway, "/v2/models/oip/infer", {"inputs": [tensor()]})
    assert status == 200, answer
    assert headers["x-sluice-version"] == "2"
    return float(answer["outputs"][0]["data"][0])


def by_raw(gateway: GatewayProcess) -> float:
    status, answer, _ = post(
        gateway, "/v2/models/raw/infer", bytes(16), **{"Inference-Header-Content-Length": "0"}
    )
    assert status == 200, answer
    return float(answer["outputs"][0]["data"][0])


def by_v1(gateway: GatewayProcess) -> float:
    status, answer, _ = post(gateway, "/v1/models/v1:predict", {"instances": [[0, 0, 0, 0]]})
    assert status == 200, answer
    return float(answer["predictions"][0][0])


def by_generate(gateway: GatewayProcess) -> float:
    status, answer, _ = post(gateway, "/v2/models/generate/generate", {"x": [[0, 0, 0, 0]]})
    assert status == 200, answer
    return float(np.ravel(answer["y"])[0])


def by_grpc(gateway: GatewayProcess) -> float:
    with tc.InferenceServerClient(gateway.grpc) as client:
        answer = client.infer("grpc", grpc_inputs())
        return float(answer.as_numpy("y")[0, 0])


def by_stream(gateway: GatewayProcess) -> float:
    found: SimpleQueue[Any] = SimpleQueue()
    with tc.InferenceServerClient(gateway.grpc) as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        for n in range(5):
            client.async_stream_infer("stream", grpc_inputs(), request_id=str(n))
        answers = [found.get(timeout=PATIENCE) for _ in range(5)]
        client.stop_stream()
    assert [error for _, error in answers] == [None] * 5
    assert [result.get_response().id for result, _ in answers] == list("01234")
    return float(answers[0][0].as_numpy("y")[0, 0])


@pytest.mark.parametrize("ask", [by_oip, by_raw, by_v1, by_generate, by_grpc, by_stream])
def test_the_first_request_waits_until_the_model_is_loaded(
    gateway: GatewayProcess, ask: Callable[[GatewayProcess], float]
) -> None:
    name = ask.__name__.removeprefix("by_")
    assert states(gateway, name) == {"1": "on demand", "2": "on demand"}
    assert ask(gateway) == 2.0
    assert states(gateway, name) == {"2": "ready", "1": "on demand"}


def test_metadata_and_configuration_load_it(gateway: GatewayProcess) -> None:
    assert gateway.get("/v2/models/metadata/ready")["ready"] is True
    assert gateway.get("/v1/models/metadata")["ready"] is True
    assert states(gateway, "metadata")["2"] == "on demand"  # asking for that loads nothing
    assert gateway.get("/v2/models/metadata")["inputs"][0]["name"] == "x"
    assert states(gateway, "metadata")["2"] == "ready"
    with tc.InferenceServerClient(gateway.grpc) as client:
        assert client.is_model_ready("config")
        assert client.get_model_config("config").config.name == "config"
    assert states(gateway, "config")["2"] == "ready"


def test_a_version_that_is_named_is_loaded_and_answers_nobody_else(
    gateway: GatewayProcess,
) -> None:
    body = {"inputs": [tensor()]}
    status, answer, headers = post(gateway, "/v2/models/named/versions/1/infer", body)
    assert (status, answer["outputs"][0]["data"][0]) == (200, 1.0)
    assert headers["x-sluice-route"] == "version"
    assert states(gateway, "named") == {"1": "ready", "2": "on demand"}
    status, answer, headers = post(gateway, "/v2/models/named/infer", body)
    assert (answer["outputs"][0]["data"][0], headers["x-sluice-route"]) == (2.0, "split")
    assert post(gateway, "/v2/models/named/versions/7/infer", body)[0] == 404


def test_a_model_that_cannot_be_loaded_says_why_at_once_and_tells_the_whole_story(
    gateway: GatewayProcess,
) -> None:
    assert gateway.get("/v2/models/broken/ready")["ready"] is True
    answers: list[tuple[int, Any, Any]] = []

    def ask() -> None:
        answers.append(post(gateway, "/v2/models/broken/infer", {"inputs": [tensor()]}))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    ask()  # and without another try
    assert [status for status, _, _ in answers] == [503] * 9
    for _, answer, headers in answers:
        assert "could not be loaded" in answer["error"]
        assert int(headers["Retry-After"]) > 1
    with pytest.raises(urllib.error.HTTPError) as caught:
        gateway.get("/v2/models/broken/ready")
    caught.value.close()
    assert caught.value.code == 503
    assert states(gateway, "broken") == {"1": "failed"}
    shown = CliRunner().invoke(sluice, ["log", "broken", "--url", gateway.http])
    assert shown.exit_code == 0, shown.output
    assert "Traceback (most recent call last)" in shown.output
    assert "loading" in shown.output and "failed: " in shown.output
    assert gateway.log().count(" ERROR ") == 1  # eight callers, and one try
    with (
        tc.InferenceServerClient(gateway.grpc) as client,
        pytest.raises(InferenceServerException, match="UNAVAILABLE"),
    ):
        client.infer("broken", grpc_inputs())


def test_all_count_as_served_before_anything_is_loaded(tmp_path: Path) -> None:
    for name in ("a", "b"):
        on_demand(tmp_path / "models", name, 1.0)
    settings = {"state_dir": tmp_path / "state", "lifecycle.on_demand_idle": 0.5}
    with GatewayProcess(tmp_path, [tmp_path / "models"], settings=settings) as gateway:
        assert gateway.get("/v2/health/ready") == {"ready": True}
        assert gateway.get("/v2/models") == {"models": ["a", "b"]}
        assert {each["state"] for each in gateway.get("/admin/v1/models")["models"]} == {
            "on demand"
        }
        for _ in range(2):  # loaded, unloaded when idle, and loaded again
            status, _, _ = post(gateway, "/v2/models/a/infer", {"inputs": [tensor()]})
            assert status == 200
            wait_until(lambda: states(gateway, "a") == {"1": "on demand"}, "a to be unloaded")
        (version,) = gateway.get("/admin/v1/models/a")["versions"]
        assert version["cause"].startswith("last used ")
        assert "a/1 is unloaded for now" in gateway.log()


def test_a_model_that_asks_for_another_one_has_it_loaded(tmp_path: Path) -> None:
    on_demand(tmp_path, "inner", 5.0)
    (tmp_path / "outer" / "1").mkdir(parents=True)
    (tmp_path / "outer" / "1" / "model.py").write_text(OUTER)
    (tmp_path / "outer" / "model.yaml").write_text("on_demand: true\nruntime: python\n")
    settings = {"state_dir": tmp_path / "state", "lifecycle.load_threads": 1}
    with GatewayProcess(tmp_path, [tmp_path], settings=settings) as gateway:
        status, answer, _ = post(gateway, "/v2/models/outer/infer", {"inputs": [tensor()]})
        assert status == 200, answer
        assert answer["outputs"][0]["data"] == [5.0] * 4


def test_under_a_budget_too_a_model_that_loads_may_ask_for_another_one(tmp_path: Path) -> None:
    on_demand(tmp_path, "inner", 5.0)
    (tmp_path / "outer" / "1").mkdir(parents=True)
    (tmp_path / "outer" / "1" / "model.py").write_text(OUTER)
    (tmp_path / "outer" / "model.yaml").write_text("on_demand: true\nruntime: python\n")
    settings = {
        "state_dir": tmp_path / "state",
        "lifecycle.load_threads": 1,
        "lifecycle.memory_budget_mb": 4000,
    }
    with GatewayProcess(tmp_path, [tmp_path], settings=settings) as gateway:
        status, answer, _ = post(gateway, "/v2/models/outer/infer", {"inputs": [tensor()]})
        assert status == 200, answer
        assert answer["outputs"][0]["data"] == [5.0] * 4


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_the_process_ends_while_a_load_hangs(tmp_path: Path, isolation: str) -> None:
    (tmp_path / "models" / "hangs" / "1").mkdir(parents=True)
    (tmp_path / "models" / "hangs" / "1" / "model.py").write_text(HANGS)
    (tmp_path / "models" / "hangs" / "model.yaml").write_text(
        f"on_demand: true\nruntime: python\nisolation: {isolation}\n"
    )
    on_demand(tmp_path / "models", "other", 1.0)
    settings = {"state_dir": tmp_path / "state", "lifecycle.on_demand_wait": 0}
    with GatewayProcess(tmp_path, [tmp_path / "models"], settings=settings) as gateway:
        assert post(gateway, "/v2/models/hangs/infer", {"inputs": [tensor()]})[0] == 503
        pid_file = tmp_path / "models" / "hangs" / "1" / "pid"
        wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), "the load to begin")
        assert gateway.stop() == 0
        pid = int(pid_file.read_text())
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the child to end")
