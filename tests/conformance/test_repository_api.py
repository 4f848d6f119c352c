"""Loading and unloading by the unmodified clients of Triton and KServe, over both protocols."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from gateway.codecs.messages import METHODS
from tests.support.gateway import GatewayProcess, wait_until
from tests.support.onnx_models import adding, write, write_adding

SETTINGS = {"control.enabled": True, "control.files": True, "control.load_seconds": 20}
CONFIG = json.dumps({"max_batch_size": 8})


@pytest.fixture(scope="module", params=["native", "grpcio"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway whose callers may load; on each gRPC server."""
    folder = tmp_path_factory.mktemp(f"control-{request.param}")
    write_adding(folder / "models", "m", 1.0, 2.0, 3.0)
    write(folder / "models" / "broken" / "1", adding(1.0)[:-9])
    gateway = GatewayProcess(
        folder,
        [folder / "models"],
        grpc_server=request.param,
        settings={**SETTINGS, "state_dir": folder / "state"},
    )
    yield gateway
    assert gateway.stop() == 0
    log = gateway.log()
    assert "Traceback" not in log, log
    assert "unexpected" not in log, log


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, gateway: GatewayProcess) -> Iterator[Any]:
    if request.param == "http":
        if gateway.grpc_server == "grpcio":
            pytest.skip("the gRPC server makes no difference to HTTP")
        client: Any = tritonclient.http.InferenceServerClient(gateway.http_address)
    else:
        client = tritonclient.grpc.InferenceServerClient(gateway.grpc)
    with client:
        yield client


def entries(client: Any, name: str) -> dict[str, tuple[str, str]]:
    """Version → state and reason of a model, out of the index."""
    index = client.get_model_repository_index()
    if not isinstance(index, list):
        index = [
            {"name": m.name, "version": m.version, "state": m.state, "reason": m.reason}
            for m in index.models
        ]
    return {
        m.get("version", ""): (m["state"], m.get("reason", "")) for m in index if m["name"] == name
    }


def ready(client: Any, name: str = "m") -> set[str]:
    return {v for v, (state, _) in entries(client, name).items() if state == "READY"}


def added(gateway: GatewayProcess, model: str = "m", version: str = "") -> float:
    """What the model adds."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
    answer = httpx.post(f"{gateway.http}{path}/infer", json={"inputs": [tensor]}, timeout=30)
    assert answer.status_code == 200, answer.text
    return float(answer.json()["outputs"][0]["data"][0])


def refused(call: Any, *words: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        call()
    for word in words:
        assert word in caught.value.message(), caught.value.message()


def test_load_and_unload_a_model(client: Any, gateway: GatewayProcess) -> None:
    client.unload_model("m")
    assert not client.is_model_ready("m")
    gone = {"": ("UNAVAILABLE", "unloaded")}
    wait_until(lambda: entries(client, "m") == gone, "the end of its draining")
    client.unload_model("m", unload_dependents=True)
    client.load_model("m")
    assert ready(client) == {"3"}
    assert client.is_model_ready("m")
    client.load_model("m")
    assert added(gateway) == 3.0


def test_the_server_says_that_it_can(client: Any) -> None:
    metadata = client.get_server_metadata()
    extensions = metadata["extensions"] if isinstance(metadata, dict) else metadata.extensions
    assert {"model_repository", "model_repository(unload_dependents)"} <= {*extensions}


def test_a_configuration_of_the_load_s_own(client: Any, gateway: GatewayProcess) -> None:
    def size() -> int:
        return int(gateway.get("/v2/models/m/config")["max_batch_size"])

    client.load_model("m", config=json.dumps({"max_batch_size": 5}))
    assert size() == 5
    assert added(gateway) == 3.0
    # Versions of the configuration's choice, that the directory's would not have.
    policy = {"max_batch_size": 5, "version_policy": {"specific": {"versions": [1, 2]}}}
    client.load_model("m", config=json.dumps(policy))
    wait_until(lambda: ready(client) == {"1", "2"}, "versions 1 and 2")
    assert added(gateway) == 2.0
    # Without one, the model's own counts again.
    client.load_model("m")
    wait_until(lambda: ready(client) == {"3"}, "version 3")
    assert size() == 64
    client.load_model("m", config=json.dumps({"max_batch_size": 0}))
    assert size() == 0
    client.unload_model("m")
    client.load_model("m")
    assert size() == 64


def test_files_of_the_load_s_own(client: Any, gateway: GatewayProcess) -> None:
    files = {"file:1/model.onnx": adding(10.0), "file:7/model.onnx": adding(70.0)}
    client.load_model("m", config=CONFIG, files=files)
    assert ready(client) == {"7"}
    assert added(gateway) == 70.0
    # Again, under the same names.
    client.load_model("m", config=CONFIG, files={"file:7/model.onnx": adding(71.0)})
    assert added(gateway) == 71.0
    split = httpx.put(f"{gateway.http}/admin/v1/models/m/split", json={"weights": {"7": 1}})
    assert split.status_code == 409, split.text
    client.load_model("m")
    assert added(gateway) == 3.0


def test_a_model_that_exists_by_its_files_alone(client: Any, gateway: GatewayProcess) -> None:
    client.load_model("brought", config=CONFIG, files={"file:1/model.onnx": adding(5.0)})
    assert added(gateway, "brought") == 5.0
    client.load_model("brought")
    client.unload_model("brought")
    wait_until(lambda: entries(client, "brought") == {}, "the model to be gone")
    refused(lambda: client.load_model("brought"), "Request for unknown model: 'brought'")


def test_what_is_refused(client: Any, gateway: GatewayProcess) -> None:
    good = {"file:1/model.onnx": adding(1.0)}
    refused(lambda: client.load_model("nobody"), "Request for unknown model: 'nobody'")
    refused(lambda: client.unload_model("nobody"), "Request for unknown model: 'nobody'")
    refused(lambda: client.load_model("broken"), "failed to load 'broken': version 1", "damaged")
    refused(lambda: client.load_model("m", files=good), "need the parameter 'config'")
    for config, words in (
        ("nonsense", "it is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"max_batch": 1}', "unknown field 'max_batch'; did you mean 'max_batch_size'?"),
        ('{"max_batch_size": "many"}', "config:"),
        ('{"runtime": "x.so"}', "runtime is not supported"),
        ('{"name": "other"}', "name is 'other'"),
        ('{"backend": "tensorrt"}', "no runtime here"),
    ):
        refused(lambda config=config: client.load_model("m", config=config), words)
    client.load_model("m")
    # What cannot be loaded takes nothing away from what is.
    refused(
        lambda: client.load_model("m", config=CONFIG, files={"file:1/model.onnx": b"no model"}),
        "failed to load 'm': version 1",
    )
    code = {"file:1/model.py": b"raise SystemExit(7)\n"}
    refused(
        lambda: client.load_model("m", config='{"backend": "python"}', files=code),
        "executes code, and its source is not trusted",
    )
    assert added(gateway) == 3.0


# --- one version: beyond Triton's clients


def rpc(gateway: GatewayProcess, name: str, metadata: Any = (), **fields: Any) -> Any:
    method = METHODS[name]
    with grpc.insecure_channel(gateway.grpc) as channel:
        call = channel.unary_unary(
            method.path, lambda m: m.SerializeToString(), method.response.FromString
        )
        return call(method.request(**fields), timeout=30, metadata=metadata)


def test_one_version_over_http(gateway: GatewayProcess) -> None:
    with httpx.Client(base_url=gateway.http, timeout=30) as http:
        answer = http.post("/v2/repository/models/m/versions/1/load")
        assert (answer.status_code, answer.json()) == (200, {"name": "m", "load": True})
        assert added(gateway, version="1") == 1.0
        answer = http.post("/v2/repository/models/m/unload", json={"parameters": {"version": "1"}})
        assert (answer.status_code, answer.json()) == (200, {"name": "m", "unload": True})
        assert http.get("/v2/models/m/versions/1").status_code in (404, 503)
        for path, tree, status, words in (
            ("m/versions/9/load", {}, 404, "it has: 1, 2, 3"),
            ("m/versions/1/load", {"parameters": {"version": "2"}}, 400, "different versions"),
            ("m/versions/1/load", {"parameters": {"config": "{}"}}, 400, "for a whole model"),
            ("m/load", {"parameters": {"conifg": "{}"}}, 400, "did you mean 'config'?"),
            ("m/load", {"parameters": {"config": 1}}, 400, "must be text"),
            ("m/load", {"parameters": []}, 400, "must be an object"),
            ("m/load", {"parameter": {}}, 400, "unknown key 'parameter'"),
            ("m/load", {"parameters": {"file:1/x": "?"}}, 400, "is not base64"),
            ("m/unload", {"parameters": {"unload_dependents": 1}}, 400, "true or false"),
        ):
            answer = http.post(f"/v2/repository/models/{path}", json=tree)
            assert (answer.status_code, words in answer.json()["error"]) == (status, True), (
                path, tree, answer.text,
            )  # fmt: skip


def test_one_version_over_grpc(gateway: GatewayProcess) -> None:
    one = {"version": {"string_param": "1"}}
    rpc(gateway, "RepositoryModelLoad", model_name="m", parameters=one)
    assert added(gateway, version="1") == 1.0
    rpc(gateway, "RepositoryModelUnload", model_name="m", parameters=one)
    number = {"version": {"int64_param": 2}}
    rpc(gateway, "RepositoryModelLoad", model_name="m", parameters=number)
    assert added(gateway, version="2") == 2.0
    rpc(gateway, "RepositoryModelUnload", model_name="m", parameters=number)
    for fields, code in (
        ({"model_name": "m", "parameters": {"version": {}}}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model_name": "m", "repository_name": "r"}, grpc.StatusCode.UNIMPLEMENTED),
        ({}, grpc.StatusCode.NOT_FOUND),
        (
            {"model_name": "m", "parameters": {"file:1/x": {"string_param": "x"}}},
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            rpc(gateway, "RepositoryModelLoad", **fields)
        assert caught.value.code() == code, fields  # type: ignore[attr-defined]


def test_inference_goes_on_while_a_model_loads(gateway: GatewayProcess) -> None:
    """A load that takes its time holds up neither inference nor other calls."""
    big = {f"file:1/{n}.bin": bytes(100_000) for n in range(20)}
    files = {"file:1/model.onnx": adding(1.0, padding=2_000_000), **big}
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        parameters = {name: {"bytes_param": data} for name, data in files.items()}
        method = METHODS["RepositoryModelLoad"]
        request = method.request(
            model_name="big", parameters={"config": {"string_param": CONFIG}, **parameters}
        )
        with grpc.insecure_channel(gateway.grpc) as channel:
            call = channel.unary_unary(
                method.path, lambda m: m.SerializeToString(), method.response.FromString
            )
            loading = call.future(request, timeout=30)
            tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
            while not loading.done():
                assert client.infer("m", [tensor]).as_numpy("y")[0, 0] == 3.0
            loading.result()
        client.unload_model("big")


def test_kserve_s_messages(gateway: GatewayProcess) -> None:
    """They have the model's name in the first field, and look for words in the answer."""
    script = Path(__file__).with_name("kserve_repository.py")
    result = subprocess.run(
        [sys.executable, str(script), gateway.grpc], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert result.stdout.split() == ["m", "True", "m", "True", "NOT_FOUND"]
    rpc(gateway, "RepositoryModelLoad", model_name="m")


# --- who may


def test_off_unless_enabled_and_then_for_who_has_the_token(tmp_path: Path) -> None:
    write_adding(tmp_path / "models", "m", 1.0)
    bearer = (("authorization", "Bearer sesame"),)
    cases: list[tuple[str, dict[str, object], Any, str]] = [
        ("native", {}, (), "control.enabled: true"),
        ("native", {"control.enabled": True, "control.token": "sesame"}, (), "<control.token>"),
        ("grpcio", {"control.enabled": True, "admin.token": "sesame"}, (), "<admin.token>"),
        ("grpcio", {"control.enabled": True}, (("x-forwarded-for", "1.2.3.4"),), "forwarded"),
    ]
    for server, settings, metadata, words in cases:
        settings = {**settings, "state_dir": tmp_path / "state"}
        with GatewayProcess(
            tmp_path, [tmp_path / "models"], grpc_server=server, settings=settings
        ) as gateway:
            with pytest.raises(grpc.RpcError) as caught:
                rpc(gateway, "RepositoryModelUnload", metadata, model_name="m")
            error: Any = caught.value
            assert error.code() == grpc.StatusCode.PERMISSION_DENIED
            assert words in error.details()
            path = f"{gateway.http}/v2/repository/models/m/unload"
            answer = httpx.post(path, headers=dict(metadata))
            assert (answer.status_code, words in answer.text) == (403, True), answer.text
            assert added(gateway) == 1.0
            if "token" in words:
                wrong = {"authorization": "Bearer wrong"}
                assert httpx.post(path, headers=wrong).status_code == 403
                assert httpx.post(path, headers=dict(bearer)).status_code == 200
                rpc(gateway, "RepositoryModelLoad", bearer, model_name="m")
                assert added(gateway) == 1.0
            elif words == "forwarded":
                # A page of somebody else's in a browser on this machine.
                page = {"origin": "https://evil.example"}
                assert httpx.post(path, headers=page).status_code == 403
                rpc(gateway, "RepositoryModelUnload", model_name="m")
            else:
                extensions = gateway.get("/v2")["extensions"]
                assert "model_repository(unload_dependents)" not in extensions


def test_files_are_not_taken_unless_allowed(tmp_path: Path) -> None:
    write_adding(tmp_path / "models", "m", 1.0)
    settings = {"control.enabled": True, "state_dir": tmp_path / "state"}
    with GatewayProcess(tmp_path, [tmp_path / "models"], settings=settings) as gateway:
        with tritonclient.http.InferenceServerClient(gateway.http_address) as client:
            refused(
                lambda: client.load_model(
                    "m", config=CONFIG, files={"file:1/model.onnx": adding(2.0)}
                ),
                "set control.files: true",
            )
        assert added(gateway) == 1.0


def test_a_restart_serves_what_was_loaded(tmp_path: Path) -> None:
    write_adding(tmp_path / "models", "m", 1.0, 2.0)
    settings = {**SETTINGS, "state_dir": tmp_path / "state"}
    config = {"max_batch_size": 3, "version_policy": {"all": {}}}

    def start() -> GatewayProcess:
        return GatewayProcess(tmp_path, [tmp_path / "models"], settings=settings)

    with (
        start() as gateway,
        tritonclient.http.InferenceServerClient(gateway.http_address) as client,
    ):
        client.load_model("m", config=json.dumps(config))
        client.load_model("brought", config=CONFIG, files={"file:2/model.onnx": adding(9.0)})
    gateway = start()
    with tritonclient.http.InferenceServerClient(gateway.http_address) as client:
        assert gateway.get("/v2/models/m/config")["max_batch_size"] == 3
        assert ready(client) == {"1", "2"}
        assert added(gateway, "brought") == 9.0
        client.unload_model("brought")
        gateway.process.kill()
        gateway.process.wait()
    with start() as gateway:
        assert gateway.get("/v2/models") == {"models": ["m"]}
        files = tmp_path / "state" / "control" / "files"
        assert not files.exists() or not list(files.iterdir())
