"""The ``mlflow deployments`` plugin, by its own command line and client, against a real gateway."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from gateway.deployments.client import SluicegateDeployments
from tests.support.environments import environment, python
from tests.support.file_server import FileServer
from tests.support.gateway import PATIENCE, ROOT, GatewayProcess, wait_until
from tests.support.mlflow_models import save_onnx, save_sklearn
from tests.support.onnx_models import write_adding


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_sklearn(folder / "iris")
    save_onnx(folder / "doubled")
    write_adding(folder, "adding", 1.0, 2.0, 3.0)
    (folder / "broken").mkdir()
    (folder / "broken" / "model.onnx").write_bytes(b"no model")
    write_adding(folder / "source", "taken", 5.0)
    return folder


def start(folder: Path, models: Path, state: Path) -> GatewayProcess:
    settings = {"state_dir": state, "trust.code": models, "admin.token": "secret"}
    return GatewayProcess(folder, [models / "source"], settings=settings)


@pytest.fixture
def gateway(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GatewayProcess]:
    monkeypatch.setenv("SLUICE_TOKEN", "secret")
    gateway = start(tmp_path, models, tmp_path / "state")
    try:
        yield gateway
    finally:  # models that fail to load are errors in its log, and meant
        code = gateway.stop()
    assert code == 0 and "Traceback" not in gateway.log(), gateway.log()


def client_of(gateway: GatewayProcess) -> SluicegateDeployments:
    return SluicegateDeployments(f"sluicegate:/{gateway.http}")


def shares(client: SluicegateDeployments, name: str) -> dict[str, float]:
    return {each["version"]: each["share"] for each in client.get_deployment(name)["versions"]}


def test_the_life_of_a_deployment(gateway: GatewayProcess, models: Path) -> None:
    client = client_of(gateway)
    made = client.create_deployment("d", f"{models}/iris", config={"settings.max_batch_size": "8"})
    assert (made["name"], made["state"], made["flavor"]) == ("d", "ready", "mlflow")
    status = httpx.get(
        f"{gateway.http}/admin/v1/models/d", headers={"authorization": "Bearer secret"}
    ).json()
    assert status["versions"][0]["max_batch_size"] == 8
    assert "restarts" in status["versions"][0], "its code runs in a process of its own"
    names = [f"{part} {size} (cm)" for part in ("sepal", "petal") for size in ("length", "width")]
    frame = pd.DataFrame([[5.1, 3.5, 1.4, 0.2]], columns=names)
    assert client.predict("d", frame).get_predictions().iloc[0, 0] == 0
    assert [each["name"] for each in client.list_deployments()] == ["d"]
    assert [each["name"] for each in client.list_endpoints()] == ["d", "taken"]
    client.delete_deployment("d")
    client.delete_deployment("d")
    assert client.list_deployments() == []
    with pytest.raises(MlflowException, match="'d'"):
        client.predict("d", frame)


def test_versions_splits_and_restarts(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_TOKEN", "secret")
    gateway = start(tmp_path, models, tmp_path / "state")
    try:
        change_versions(client_of(gateway), models)
    finally:  # killed, it serves the same again
        gateway.process.kill()
        gateway.process.wait()
    x = np.zeros((1, 4), np.float32)
    with start(tmp_path, models, tmp_path / "state") as again:
        client = client_of(again)
        assert client.predict("add", x)["predictions"] == {"y": [[3.0] * 4]}
        assert client.get_deployment("add")["traffic"] == {"weights": {"3": 100}, "stable": "3"}
        client.update_deployment("add", config={"traffic.1": 100})
        assert client.predict("add", x)["predictions"] == {"y": [[1.0] * 4]}


def change_versions(client: SluicegateDeployments, models: Path) -> None:
    x = np.zeros((1, 4), np.float32)
    client.create_deployment("add", f"{models}/adding/1")
    updated = client.update_deployment(
        "add", f"{models}/adding/2/model.onnx", config={"traffic.new": "25"}
    )
    assert updated["traffic"] == {"weights": {"1": 75, "2": 25}, "stable": "1"}
    assert shares(client, "add") == {"1": 75.0, "2": 25.0}
    client.update_endpoint("add", {"weights": '{"1": 50, "2": 50}'})
    assert shares(client, "add") == {"1": 50.0, "2": 50.0}
    # An update that cannot be loaded changes nothing.
    before = client.get_deployment("add")
    with pytest.raises(MlflowException, match="cannot deploy 'add': version 3"):
        client.update_deployment("add", f"{models}/broken")
    with pytest.raises(MlflowException, match="max_batch_siz"):
        client.update_deployment("add", config={"settings.max_batch_siz": "8"})
    with pytest.raises(MlflowException, match="no version '7'"):
        client.update_deployment("add", config={"traffic.7": "8"})
    after = client.get_deployment("add")
    for each in (before, after):
        del each["versions"]
    assert before == after and shares(client, "add") == {"1": 50.0, "2": 50.0}
    client.update_deployment("add", f"{models}/adding/3")
    assert client.predict("add", x)["predictions"] == {"y": [[3.0] * 4]}


def test_what_is_refused(gateway: GatewayProcess, models: Path) -> None:
    client = client_of(gateway)
    cases: list[tuple[Any, str]] = [
        (lambda: client.create_deployment("taken", f"{models}/adding/1"), "already, from"),
        (lambda: client.create_deployment("b", f"{models}/broken"), "cannot deploy 'b'"),
        (lambda: client.create_deployment("b", f"{models}/nothing"), "does not exist"),
        (lambda: client.create_deployment("b", "models:/m/1"), "knows no MLflow registry"),
        (lambda: client.create_deployment("b", "ftp://x/y"), "'ftp' is not known"),
        (lambda: client.create_deployment("../b", f"{models}/adding/1"), "cannot be a model's"),
        (
            lambda: client.create_deployment("b", f"{models}/adding/1", config={"replicas": "2"}),
            "unknown config key 'replicas'",
        ),
        (
            lambda: client.create_deployment("b", f"{models}/adding/1", endpoint="other"),
            "one name",
        ),
        (
            lambda: client.create_deployment("b", f"{models}/doubled", flavor="sklearn"),
            "flavor",
        ),
        (lambda: client.update_deployment("b", f"{models}/adding/1"), "no deployment 'b'"),
        (lambda: client.update_deployment("b"), "nothing to update"),
        (lambda: client.get_deployment("b"), "no deployment 'b'"),
        (lambda: client.explain("b", None), "does not explain"),
        (lambda: client.create_endpoint("b"), "create_deployment"),
        (lambda: client.delete_endpoint("taken"), "source of the gateway"),
        (lambda: client.predict("taken", [["x"]]), "is no FP32"),
        (lambda: client.predict(), "exactly one"),
    ]
    for call, said in cases:
        with pytest.raises(MlflowException, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert client.list_deployments() == []


def test_guarded_as_the_admin_api_is(
    gateway: GatewayProcess, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{gateway.http}/admin/v1/deployments"
    body = {"name": "b", "uri": f"{models}/adding/1"}
    assert httpx.post(url, json=body).status_code == 403
    token = {"authorization": "Bearer secret"}
    for header in ({"x-forwarded-for": "10.0.0.1"}, {"host": "models.example"}):
        refused = httpx.post(url, json=body, headers=token | header)
        assert refused.status_code == 403 and "only callers on it" in refused.json()["error"]
    monkeypatch.setenv("SLUICE_TOKEN", "wrong")
    with pytest.raises(MlflowException, match="SLUICE_TOKEN"):
        client_of(gateway).list_deployments()


def test_a_gateway_that_is_not_there() -> None:
    with pytest.raises(MlflowException, match="cannot reach the gateway"):
        SluicegateDeployments("sluicegate:/http://127.0.0.1:1").list_deployments()
    for target in ("sluicegate:/ftp://h", "sluicegate:/http://h:99999", "sluicegate:/http://"):
        with pytest.raises(MlflowException, match="no gateway's address"):
            SluicegateDeployments(target)


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the plugin is installed beside MLflow, and nothing else of ours."""
    info = tmp_path / "site" / "sluicegate-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sluicegate\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[mlflow.deployments]\nsluicegate = gateway.deployments.plugin\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "MLFLOW_"))}
    return kept | {"PYTHONPATH": f"{info.parent}{os.pathsep}{ROOT}", "SLUICE_TOKEN": "secret"}


COMMANDS = """
import json
import sys

from mlflow.cli import cli

for words in json.loads(sys.argv[1]):
    cli(["deployments", *words], standalone_mode=False)
"""


def test_the_command_line(
    gateway: GatewayProcess, models: Path, tmp_path: Path, installed: dict[str, str]
) -> None:
    payload = tmp_path / "input.json"
    payload.write_text(json.dumps([{"x": [1.0, 2.0, 3.0]}]))
    uri = f"{models}/doubled"
    split = ["-C", "traffic.new=50", "-C", "settings.max_batch_size=8"]
    # In one process: MLflow takes seconds to start.
    commands = [
        ["create", "--name", "m", "-m", uri],
        ["update", "--name", "m", "-m", uri, *split],
        ["predict", "--name", "m", "-I", str(payload)],
    ]
    words = json.dumps([[*each, "-t", f"sluicegate:/{gateway.http}"] for each in commands])
    done = subprocess.run(
        [str(python(environment("mlflow"))), "-c", COMMANDS, words],
        env=installed, cwd=tmp_path, capture_output=True, text=True, timeout=4 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mlflow deployment m is created" in done.stdout
    assert "is updated" in done.stdout
    assert client_of(gateway).get_deployment("m")["traffic"]["weights"] == {"1": 50, "2": 50}
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {
        "predictions": {"y": [[2.0, 4.0, 6.0]]}
    }


def test_mlflow_finds_the_plugin(
    gateway: GatewayProcess, installed: dict[str, str], tmp_path: Path
) -> None:
    script = (
        "from mlflow.deployments import get_deploy_client, interface\n"
        f"print(get_deploy_client('sluicegate:/{gateway.http}').list_deployments())\n"
        "print(interface._target_help('sluicegate'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=installed, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[]") and "traffic.VERSION=WEIGHT" in done.stdout


@pytest.mark.parametrize(("stop", "model"), [(signal.SIGINT, "iris"), (signal.SIGTERM, "doubled")])
def test_run_local(
    stop: signal.Signals, model: str, models: Path, installed: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / f"{model}, the second"
    shutil.copytree(models / model, path)
    folders = tmp_path / "temporary"
    folders.mkdir()
    config = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0"}
    script = (
        "from gateway.deployments.plugin import run_local\n"
        f"run_local('m', '{path}', config={config})"
    )
    log = tmp_path / "local.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env=installed | {"TMPDIR": str(folders), "SLUICE_DRAIN__GRACE": "0"},
            cwd=tmp_path, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(
            lambda: process.poll() is not None or "m/1 is ready" in log.read_text(),
            "the model to be served", 3 * PATIENCE,
        )  # fmt: skip
        assert process.poll() is None, log.read_text()
    finally:
        if stop == signal.SIGINT:
            os.killpg(process.pid, stop)  # as Ctrl-C does
        else:
            process.send_signal(stop)
        assert process.wait(PATIENCE) == 0, log.read_text()
    with pytest.raises(ProcessLookupError):  # no gateway is left in its group
        os.killpg(process.pid, 0)
    assert not list(folders.glob("sluice-local-*"))


PLUS = b"""import numpy as np

class Plus:
    signature = {"inputs": {"x": ("FP32", [-1])}, "outputs": {"y": ("FP32", [-1])}}

    def infer(self, inputs):
        return {"y": inputs["x"] + np.float32(1)}
"""


def test_files_of_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_TOKEN", "secret")
    files = {"/trusted/plus.py": PLUS, "/files/plus.py": PLUS}
    with FileServer(files) as server:
        host = server.url("").removeprefix("http://").rstrip("/")
        settings = {
            "state_dir": tmp_path / "state", "trust.code": f"http://{host}/trusted",
            "admin.token": "secret",
        }  # fmt: skip
        write_adding(tmp_path / "models", "taken", 5.0)  # without a model it is not ready
        gateway = GatewayProcess(tmp_path, [tmp_path / "models"], settings=settings)
        try:
            client = client_of(gateway)
            for way, said in (
                ("trusted/../files/plus.py", "'..'"),
                ("trusted/%2e%2e/files/plus.py", "'..'"),
                ("files/plus.py", "not trusted"),
            ):
                with pytest.raises(MlflowException, match=re.escape(said)):
                    client.create_deployment("d", f"http://{host}/{way}")
            made = client.create_deployment(
                "d", f"http://ann:hidden@{host}/trusted/plus.py?s=hidden"
            )
            assert made["uri"] == f"http://{host}/trusted/plus.py?…"
            assert client.predict("d", {"x": [1.0]})["predictions"] == {"y": [2.0]}
            token = {"authorization": "Bearer secret"}
            for path in ("history", "deployments", "models/d", "models/d/history", "status"):
                shown = httpx.get(f"{gateway.http}/admin/v1/{path}", headers=token).text
                assert "hidden" not in shown
        finally:
            gateway.stop()
        assert "hidden" not in gateway.log()
    holding = [
        path.name
        for path in (tmp_path / "state").rglob("*")
        if path.is_file() and b"hidden" in path.read_bytes()
    ]
    assert holding == ["d.yaml"]


def test_target_may_be_left_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_URL", "http://127.0.0.1:7/")
    client = SluicegateDeployments("sluicegate")
    with pytest.raises(MlflowException, match=r"at http://127\.0\.0\.1:7:"):
        client.list_deployments()
