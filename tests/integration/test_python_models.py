"""Python models in a real gateway, reached by real clients."""

from __future__ import annotations

import json
import queue
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from tests.support.gateway import PATIENCE, ROOT, GatewayProcess, wait_until

EXAMPLES = ROOT / "examples"
ONE = "\n".join(["   ##", "  ###", "   ##", "   ##", "   ##", "   ##", "   ##", "  ####"])
MINE = """
import numpy as np

class Mine:
    signature = {"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1, 2])}}

    def infer(self, inputs):
        if (inputs["x"] < 0).any():
            raise ValueError("below zero")
        return {"y": inputs["x"] + VALUE}
"""
METRICS = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        family = pb_utils.MetricFamily("my_requests", "Mine.", pb_utils.MetricFamily.COUNTER)
        self.metric = family.Metric({"model": args["model_name"]})
        level = pb_utils.MetricFamily("my_level", "A level.", pb_utils.MetricFamily.GAUGE)
        self.level = level.Metric()
        self.folder = args["model_repository"]

    def execute(self, requests):
        answers = []
        for request in requests:
            self.metric.increment(1)
            self.level.set(2.5)
            while request.request_id() == "wait" and not request.is_cancelled():
                open(self.folder + "/waiting", "w").close()
                time.sleep(0.005)
            if request.is_cancelled():
                open(self.folder + "/cancelled", "w").close()
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            ready = pb_utils.is_model_ready("mine") and not pb_utils.is_model_ready("nobody")
            tensor = pb_utils.Tensor("y", x + (1 if ready else 0))
            answers.append(pb_utils.InferenceResponse([tensor], parameters={"note": "hello"}))
        return answers
"""
METRICS_CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def write(folder: Path, name: str, code: str, config: str = "") -> None:
    version = folder / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(code)
    if config:
        (folder / name / "config.pbtxt").write_text(config)


def post(gateway: GatewayProcess, path: str, body: Any) -> tuple[int, str]:
    request = urllib.request.Request(gateway.http + path, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def x_of(*values: float) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}
    return {"inputs": [tensor]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write(folder, "mine", MINE.replace("VALUE", "np.float32(1)"))
    write(folder, "metrics", METRICS, METRICS_CONFIG)
    return folder


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    sources = [EXAMPLES / "models", EXAMPLES / "python", models]
    ours = GatewayProcess(folder, sources)
    try:
        yield ours
    finally:
        assert ours.stop() == 0


@pytest.mark.parametrize("module", [grpc_client, http_client])
def test_the_examples_answer_real_clients(gateway: GatewayProcess, module: Any) -> None:
    address = gateway.grpc if module is grpc_client else gateway.http_address
    client = module.InferenceServerClient(address)
    try:
        x = module.InferInput("x", [2, 4], "FP32")
        x.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4))
        y = client.infer("add", [x]).as_numpy("y")
        assert y.tolist() == (np.arange(8).reshape(2, 4) + 2.5).tolist()
        drawing = module.InferInput("drawing", [1], "BYTES")
        drawing.set_data_from_numpy(np.array([ONE.encode()], object))
        given = client.infer("digits_text", [drawing])
        assert given.as_numpy("word").tolist() == [b"one"]
        assert 0 < given.as_numpy("sure")[0] <= 1
    finally:
        client.close()


def test_the_counting_example_streams(gateway: GatewayProcess) -> None:
    code, text = post(gateway, "/v2/models/count/generate_stream", {"to": 3, "pause": 0})
    assert code == 200
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["number"] for event in events] == [1, 2, 3]
    answers: queue.Queue[Any] = queue.Queue()
    to = grpc_client.InferInput("to", [1], "INT32")
    to.set_data_from_numpy(np.array([4], np.int32))
    with grpc_client.InferenceServerClient(gateway.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("count", [to], parameters={"pause": 0})
        for number in (1, 2, 3, 4):
            result, error = answers.get(timeout=PATIENCE)
            assert error is None
            assert result.as_numpy("number").tolist() == [number]


def test_failures_tell_callers_the_message_and_the_log_the_place(gateway: GatewayProcess) -> None:
    code, text = post(gateway, "/v2/models/mine/infer", x_of(-1, 2))
    assert (code, text) == (500, '{"error":"the model failed: ValueError: below zero"}')
    gateway.wait_for(re.compile("mine/1 failed: model.py, line 9: ValueError: below zero\nTrace"))
    assert post(gateway, "/v2/models/mine/infer", x_of(1, 2))[0] == 200


def test_callers_batched_with_a_bad_one_get_their_answers(gateway: GatewayProcess) -> None:
    seen: dict[int, int] = {}

    def ask(number: int) -> None:
        value = -1 if number % 4 == 0 else number
        seen[number] = post(gateway, "/v2/models/mine/infer", x_of(value, 2))[0]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert seen == {n: 500 if n % 4 == 0 else 200 for n in range(16)}


def test_metrics_parameters_and_readiness_of_a_triton_model(gateway: GatewayProcess) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    code, text = post(gateway, "/v2/models/metrics/infer", {"inputs": [tensor]})
    answer = json.loads(text)
    assert code == 200
    assert answer["outputs"][0]["data"] == [2]
    assert answer["parameters"] == {"note": "hello"}
    page = gateway.get("/metrics")
    assert "# TYPE my_requests counter" in page
    assert 'my_requests{model="metrics"} 1.0' in page
    assert "my_level 2.5" in page


def test_a_triton_model_sees_that_its_caller_is_gone(gateway: GatewayProcess, models: Path) -> None:
    x = grpc_client.InferInput("x", [1], "FP32")
    x.set_data_from_numpy(np.zeros(1, np.float32))
    with grpc_client.InferenceServerClient(gateway.grpc) as client:
        call = client.async_infer("metrics", [x], lambda result, error: None, request_id="wait")
        wait_until((models / "metrics" / "waiting").exists, "the model to be at work")
        call.cancel()
        wait_until((models / "metrics" / "cancelled").exists, "the model to hear of it")


SHORT = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = x[:1] if x[0, 0] == 7 else x  # as a detector: fewer rows out than in
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return answers
"""
SHORT_CONFIG = METRICS_CONFIG + "max_batch_size: 4 dynamic_batching { }"


def test_rows_are_a_triton_models_own_but_slices_must_fit(tmp_path: Path) -> None:
    write(tmp_path / "models", "short", SHORT, SHORT_CONFIG)
    with Quiet(tmp_path, [tmp_path / "models"]) as gateway:

        def ask(*values: int) -> tuple[int, Any]:
            tensor = {"name": "x", "datatype": "FP32", "shape": [len(values), 1], "data": values}
            code, text = post(gateway, "/v2/models/short/infer", {"inputs": [tensor]})
            answer = json.loads(text)
            return code, answer["outputs"][0]["data"] if code == 200 else answer["error"]

        assert ask(1, 2, 3) == (200, [1, 2, 3])
        assert ask(7, 2, 3) == (200, [7])
        assert ask(*range(10, 21)) == (200, list(range(10, 21)))
        code, error = ask(1, 1, 1, 1, 7, 1)
        assert code == 500
        assert "for a batch of 2 rows" in error


# --- code trust


def test_code_from_configured_sources_needs_trust(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(models, "mine", MINE.replace("VALUE", "np.float32(1)"))
    (tmp_path / "sluice.yaml").write_text(f"sources: ['{models}']\n")
    config = {"SLUICE_CONFIG": str(tmp_path / "sluice.yaml")}
    source = {"SLUICE_SOURCES": str(models)}
    refused = (
        r"model.py executes code.*?set trust.code: \['([^']*)'\].*?SLUICE_TRUST__CODE='([^']*)'"
    )
    for environment in (config, source):
        with configured(tmp_path, environment) as gateway:
            found = gateway.wait_for(re.compile(refused))
            assert found.groups() == (str(models), str(models))
            code, text = post(gateway, "/v2/models/mine/infer", x_of(1, 2))
            assert code == 503
            assert str(tmp_path) not in text
    trusting = {**config, "SLUICE_TRUST__CODE": found[2]}
    with configured(tmp_path, trusting, ready=True) as gateway:
        assert post(gateway, "/v2/models/mine/infer", x_of(1, 2))[0] == 200


class Quiet(GatewayProcess):
    """One that may complain in its log."""

    def stop_cleanly(self) -> None:
        assert self.stop() == 0


def configured(folder: Path, environment: dict[str, str], *, ready: bool = False) -> Quiet:
    """A gateway whose sources are not on the command line."""
    more = dict(environment)
    file = more.pop("SLUICE_CONFIG", None)
    return Quiet(folder, ["--config", file] if file else [], environment=more, ready=ready)


def test_what_is_named_on_the_command_line_is_trusted(tmp_path: Path) -> None:
    models, single = tmp_path / "models", tmp_path / "single"
    write(models, "mine", MINE.replace("VALUE", "np.float32(1)"))
    write(single, "alone", MINE.replace("VALUE", "np.float32(2)"))
    with GatewayProcess(tmp_path, [models, single / "alone"]) as gateway:
        for name, value in (("mine", 2), ("alone", 3)):
            code, text = post(gateway, f"/v2/models/{name}/infer", x_of(1, 2))
            assert code == 200
            assert json.loads(text)["outputs"][0]["data"][0] == value


def test_a_link_out_of_a_trusted_directory_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(models, "mine", MINE.replace("VALUE", "np.float32(1)"))
    evil = tmp_path / "elsewhere"
    write(evil, "bad", MINE.replace("VALUE", "np.float32(9)"))
    (models / "bad" / "1").mkdir(parents=True)
    (models / "bad" / "1" / "model.py").symlink_to(evil / "bad" / "1" / "model.py")
    with Quiet(tmp_path, [models]) as gateway:
        gateway.wait_for(re.compile(r"bad/1 failed to load: .*'model.py' is a link out of"))
        assert post(gateway, "/v2/models/bad/infer", x_of(1, 2))[0] == 503
        assert post(gateway, "/v2/models/mine/infer", x_of(1, 2))[0] == 200


def test_a_new_file_is_a_new_model_and_a_broken_one_leaves_the_old(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(models, "mine", MINE.replace("VALUE", "np.float32(1)"))
    with Quiet(tmp_path, [models]) as gateway:

        def value() -> float:
            code, text = post(gateway, "/v2/models/mine/infer", x_of(1, 2))
            assert code == 200, text
            return float(json.loads(text)["outputs"][0]["data"][0])

        assert value() == 2
        write(models, "mine", MINE.replace("VALUE", "np.float32(10)"))
        wait_until(lambda: value() == 11, "the new file to be served")
        write(models, "mine", "def broken(:\n")
        gateway.wait_for(re.compile(r"mine/1 failed to load: .*model.py, line 1: SyntaxError"))
        assert value() == 11


def test_a_single_file_that_is_named_imports_nothing_beside_it(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "helper.py").write_text("VALUE = 7\n")
    (files / "lonely.py").write_text(MINE.replace("VALUE", "np.float32(1)"))
    (files / "other.py").write_text("from helper import VALUE\n" + MINE)
    with Quiet(tmp_path, [files / "lonely.py", files / "other.py"]) as gateway:
        gateway.wait_for(re.compile(r"other/1 failed .*a file that is named alone are not used"))
        assert post(gateway, "/v2/models/lonely/infer", x_of(1, 2))[0] == 200
    trusted = {"SLUICE_TRUST__CODE": str(files)}
    sources = [files / "lonely.py", files / "other.py"]
    with GatewayProcess(tmp_path, sources, environment=trusted) as gateway:
        assert post(gateway, "/v2/models/other/infer", x_of(1, 2))[0] == 200


UNPICKLES = """
import importlib, pickle
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.add = pickle.loads(b"cbeside_config\\nAdder\\n(I5\\ntR.")
        assert importlib.import_module("beside_config").Adder is type(self.add)

    def execute(self, requests):
        def answer(request):
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            return pb_utils.InferenceResponse([pb_utils.Tensor("y", x + self.add.value)])
        return [answer(request) for request in requests]
"""


def test_an_isolated_triton_model_unpickles_what_its_helpers_define(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(models, "adds", UNPICKLES)
    (models / "adds" / "config.pbtxt").write_text(METRICS_CONFIG)
    (models / "adds" / "model.yaml").write_text("isolation: process\ninstances: 2\n")
    (models / "adds" / "beside_config.py").write_text(
        "class Adder:\n    def __init__(self, value):\n        self.value = value\n"
    )
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}]}
    with GatewayProcess(tmp_path, [models]) as gateway:
        code, text = post(gateway, "/v2/models/adds/infer", body)
        assert (code, json.loads(text)["outputs"][0]["data"]) == (200, [6.5])
