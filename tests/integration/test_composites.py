"""Models that call models, and answers in the making while a real gateway is full or stops."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.codecs.messages import ModelInferRequest, ModelStreamInferResponse
from tests.support.gateway import PATIENCE, GatewayProcess, wait_until

SERVICE = "/inference.GRPCInferenceService/"
HELD = 7.0
"""The value that `outer` and `held` keep until the test lets them go on."""

MODEL = """
import pathlib
import time

import numpy as np

from gateway.errors import InferenceFailed, InvalidInput, QueueFull

FOLDER = pathlib.Path(%r)
SIGNATURE = {"inputs": {"x": ("FP32", [1])}, "outputs": {"y": ("FP32", [1])}}


def hold(x, name):
    if x[0] == 7:
        (FOLDER / f"{name}.in").touch()
        end = time.monotonic() + 30
        while not (FOLDER / "go").exists() and time.monotonic() < end:
            time.sleep(0.005)
"""
OUTER = """
class Outer:
    signature = SIGNATURE

    def load(self, context):
        self.context = context

    def infer(self, inputs):
        hold(inputs["x"], self.context.model)
        return {"y": self.context.call("inner", {"x": inputs["x"]})["y"] * 2}
"""
INNER = """
class Inner:
    signature = SIGNATURE

    def infer(self, inputs):
        return {"y": inputs["x"] + 1}
"""
HOLDING = """
class Holding:
    signature = SIGNATURE

    def infer(self, inputs):
        hold(inputs["x"], "held")
        return {"y": inputs["x"]}
"""
RUDE = """
class Rude:
    signature = SIGNATURE

    def infer(self, inputs):
        kind = int(inputs["x"][0])
        if kind == 1:
            raise ValueError("caf\\ud800\\x00 over")
        if kind == 2:
            raise InvalidInput("caf\\ud800\\x00 over")
        if kind == 3:
            raise QueueFull("caf\\ud800\\x00 over", retry_after=float("nan"))
        if kind == 4:
            class Mute(InferenceFailed):
                def __str__(self):
                    raise RuntimeError("no words")
            raise Mute()
        return {"y": inputs["x"]}
"""
TICKS = """
class Ticks:
    signature = {"inputs": {"x": ("FP32", [1])}, "outputs": {"y": ("FP32", [-1])}}

    def infer(self, inputs):
        try:
            for _ in range(int(inputs["x"][0])):
                yield {"y": np.zeros(50_000, np.float32)}
        finally:
            if inputs["x"][0] > 1000:
                (FOLDER / "stopped").touch()
"""


def write(folder: Path, name: str, code: str, settings: str = "") -> None:
    version = folder / "models" / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL % str(folder) + code)
    (version.parent / "model.yaml").write_text("runtime: python\n" + settings)


def started(folder: Path, models: dict[str, str], **settings: object) -> GatewayProcess:
    for name, code in models.items():
        write(folder, name, code, "isolation: process\n" if name.startswith("apart") else "")
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return GatewayProcess(folder, [folder / "models"], settings=named)


def post(gateway: GatewayProcess, path: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(gateway.http + path, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def infer(gateway: GatewayProcess, model: str, value: float) -> tuple[int, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}
    return post(gateway, f"/v2/models/{model}/infer", {"inputs": [tensor]})


def in_flight(gateway: GatewayProcess) -> int:
    return int(gateway.get("/admin/v1/status")["in_flight"])


def message(model: str, value: float) -> bytes:
    request = ModelInferRequest(model_name=model)
    x = request.inputs.add(name="x", datatype="FP32", shape=[1])
    x.contents.fp32_contents.append(value)
    encoded: bytes = request.SerializeToString()
    return encoded


OUTERS = ("outer", "apart")


def test_a_model_that_was_asked_before_the_end_may_still_ask_others(tmp_path: Path) -> None:
    models = {"outer": OUTER, "apart": OUTER, "inner": INNER}
    with started(tmp_path, models, drain__grace=0) as gateway, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(infer, gateway, name, HELD) for name in OUTERS]
        for name in OUTERS:
            wait_until((tmp_path / f"{name}.in").exists, f"{name} to be asked")
        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait_for(re.compile("draining: waiting"))
        wait_until(lambda: infer(gateway, "inner", 1.0)[0] == 503, "new requests to be refused")
        (tmp_path / "go").touch()
        for each in asked:
            status, answer = each.result()
            assert status == 200, answer
            assert answer["outputs"][0]["data"] == [16.0]
        assert gateway.process.wait(PATIENCE) == 0


def test_calls_between_models_take_nobodys_place(tmp_path: Path) -> None:
    models = {"outer": OUTER, "apart": OUTER, "inner": INNER}
    with started(tmp_path, models, limits__max_in_flight=2) as gateway:
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(infer, gateway, name, HELD) for name in OUTERS]
            for name in OUTERS:
                wait_until((tmp_path / f"{name}.in").exists, f"{name} to be asked")
            status, answer = infer(gateway, "inner", 1.0)
            assert (status, "limits.max_in_flight" in answer["error"]) == (429, True)
            (tmp_path / "go").touch()
            assert [each.result()[0] for each in asked] == [200, 200]
        assert in_flight(gateway) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_waits_when_the_time_is_up_is_told(tmp_path: Path, number: signal.Signals) -> None:
    ways: dict[str, Any] = {
        "/v2/models/held/generate": {"x": HELD},
        "/v2/models/held/generate_stream": {"x": HELD},
        "/v2/models/held/infer": {
            "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [HELD]}]
        },
        "/v1/models/held:predict": {"instances": [HELD]},
    }
    if number == signal.SIGINT:
        ways.popitem()
    settings = {"drain__grace": 0, "drain__timeout": 0.2}
    with started(tmp_path, {"held": HOLDING}, **settings) as gateway:
        with ThreadPoolExecutor(len(ways)) as pool:
            asked = [pool.submit(post, gateway, path, body) for path, body in ways.items()]
            wait_until(lambda: in_flight(gateway) == len(ways), "the requests to be in flight")
            gateway.process.send_signal(number)
            answers = [each.result() for each in asked]
        (tmp_path / "go").touch()
        assert [status for status, _ in answers] == [503] * len(ways)
        assert all("draining" in answer["error"] for _, answer in answers)
        assert gateway.process.wait(PATIENCE) == 0


def test_words_that_cannot_be_sent(tmp_path: Path) -> None:
    gateway = started(tmp_path, {"rude": RUDE, "apart": RUDE})
    said = "caf?? over"
    try:
        for name in ("rude", "apart"):
            for kind, code in ((1, 500), (2, 400), (3, 429)):
                status, answer = infer(gateway, name, kind)
                assert (status, said in answer["error"]) == (code, True), answer
                for way in ("generate", "generate_stream"):
                    status, answer = post(gateway, f"/v2/models/{name}/{way}", {"x": kind})
                    assert (status, said in answer["error"]) == (code, True), answer
            assert infer(gateway, name, 4)[0] == 500
            with grpc.insecure_channel(gateway.grpc) as channel:
                unary = channel.unary_unary(SERVICE + "ModelInfer")
                for kind in (1, 2, 3, 4):
                    with pytest.raises(grpc.RpcError) as caught:
                        unary(message(name, kind), timeout=PATIENCE)
                    assert kind == 4 or said in caught.value.details()
                stream = channel.stream_stream(SERVICE + "ModelStreamInfer")
                sent = iter([message(name, kind) for kind in (1, 2, 3, 4, 5)])
                told = [
                    ModelStreamInferResponse.FromString(each).error_message
                    for each in stream(sent, timeout=PATIENCE)
                ]
                assert [said in each for each in told] == [True, True, True, False, False]
                assert [bool(each) for each in told] == [True, True, True, True, False]
            assert infer(gateway, name, 5)[0] == 200
        wait_until(lambda: in_flight(gateway) == 0, "nothing to be in flight")
    finally:
        assert gateway.stop() == 0  # its log has the model's stack traces
    assert "unexpected error" not in gateway.log()


@pytest.mark.parametrize("server", ["native", "grpcio"])
def test_a_grpc_client_that_does_not_read_gives_its_place_up(tmp_path: Path, server: str) -> None:
    settings = {"grpc__send_timeout": 0.3, "grpc__server": server}
    with started(tmp_path, {"ticks": TICKS}, **settings) as gateway:
        with grpc.insecure_channel(gateway.grpc) as channel:
            stream = channel.stream_stream(SERVICE + "ModelStreamInfer")
            idle = stream(iter([message("ticks", 1e6)]), timeout=PATIENCE)
            next(idle)
            wait_until((tmp_path / "stopped").exists, "the model to be stopped")
            # Its place is free, and the client hears of it.
            assert len(list(stream(iter([message("ticks", 3)]), timeout=PATIENCE))) == 3
            with pytest.raises(grpc.RpcError) as caught:
                for _ in idle:
                    pass
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "grpc.send_timeout" in caught.value.details()
        wait_until(lambda: in_flight(gateway) == 0, "nothing to be in flight")
        gateway.wait_for(re.compile("not read for 0.3 s"))
