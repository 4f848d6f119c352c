"""MLflow model directories behind a real gateway, asked over HTTP."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli.check import check
from tests.support.gateway import PATIENCE, GatewayProcess
from tests.support.mlflow_models import columns, save_function, save_onnx, save_sklearn, save_torch


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_sklearn(folder / "iris" / "1")
    save_onnx(folder / "onnx" / "1" / "model")
    save_torch(folder / "torch" / "1", "script")

    def predict(data: Any, params: Any) -> Any:
        return {"total": data["price"] * params["rate"], "label": data["name"] + "!"}

    inputs, outputs = (
        columns(price="double", name="string"),
        columns(total="double", label="string"),
    )
    save_function(
        folder / "priced" / "1", predict, inputs, outputs, params=[("rate", "double", 1.5)]
    )
    return folder


@pytest.fixture(scope="module")
def gateway(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), [models]) as gateway:
        yield gateway


def ask(gateway: GatewayProcess, model: str, inputs: list[Any], **more: Any) -> Any:
    tensors = [
        {"name": name, "datatype": kind, "shape": shape, "data": data}
        for name, kind, shape, data in inputs
    ]
    body = json.dumps({"inputs": tensors, **more}).encode()
    request = urllib.request.Request(f"{gateway.http}/v2/models/{model}/infer", body)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            outputs = json.load(answer)["outputs"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]
    return {each["name"]: (each["datatype"], each["shape"], each["data"]) for each in outputs}


def test_a_scikit_learn_model(gateway: GatewayProcess, tmp_path: Path) -> None:
    _, model, data = save_sklearn(tmp_path / "again")
    metadata = gateway.get("/v2/models/iris")
    assert metadata["platform"] == "mlflow_python_function"
    assert [each["name"] for each in metadata["inputs"]] == list(data.columns)
    some = data.iloc[[0, 60, 120]]
    inputs = [(name, "FP64", [3, 1], some[name].tolist()) for name in data.columns]
    assert ask(gateway, "iris", inputs) == {
        "output-0": ("INT64", [3], model.predict(some).tolist())
    }


def test_native_flavours(gateway: GatewayProcess) -> None:
    assert gateway.get("/v2/models/onnx")["platform"] == "onnxruntime_onnx"
    x = [1, 2, 3]
    assert ask(gateway, "onnx", [("x", "FP32", [1, 3], x)])["y"] == ("FP32", [1, 3], [2, 4, 6])
    twice = ask(gateway, "torch", [("input-0", "FP32", [1, 3], x)])
    assert twice == {"output-0": ("FP32", [1, 3], [2, 4, 6])}


def test_columns_and_params(gateway: GatewayProcess) -> None:
    inputs = [("price", "FP64", [2, 1], [10, 20]), ("name", "BYTES", [2, 1], ["a", "é"])]
    labels = ("BYTES", [2, 1], ["a!", "é!"])
    assert ask(gateway, "priced", inputs) == {
        "total": ("FP64", [2, 1], [15, 30]),
        "label": labels,
    }
    double = ask(gateway, "priced", inputs, parameters={"rate": 2})
    assert double["total"] == ("FP64", [2, 1], [20, 40])
    code, error = ask(gateway, "priced", inputs, parameters={"rate": "high"})
    assert code == 400 and "rate" in error
    code, error = ask(gateway, "priced", [("price", "FP64", [2], [1, 2]), inputs[1]])
    assert code == 400 and "takes shape [-1, 1]" in error


def test_untrusted_code_is_not_run(models: Path, tmp_path: Path) -> None:
    settings = {"trust.code": str(tmp_path)}
    gateway = GatewayProcess(tmp_path, [models], settings=settings, ready=False)
    try:
        match = gateway.wait_for(re.compile(r"iris/1 failed to load: (.*)"))
        what = "the python_function flavour of MLmodel (mlflow.sklearn)"
        assert match[1].startswith(f"{what} executes code, and its source is not trusted")
        gateway.wait_for(re.compile(r"onnx/1 is ready"))
    finally:
        gateway.stop()


def test_check_runs_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = tmp_path / "models"
    kind = columns(a="double")

    def predict(data: Any, params: Any) -> Any:
        mark.touch()
        return data["a"]

    save_function(folder / "m" / "1", predict, kind, kind)
    mark.unlink(missing_ok=True)
    done = CliRunner().invoke(check, [str(folder)], standalone_mode=False)
    assert done.return_value == 0 and not mark.exists()
    note = r"ok +m +1 +mlflow +runs the python_function flavour of MLmodel \(.*\) as code"
    assert re.search(note, done.stdout), done.stdout
    (folder / "m" / "1" / "MLmodel").write_text("flavors: {sklearn: {}}\n")
    done = CliRunner().invoke(check, [str(folder)], standalone_mode=False)
    assert done.return_value == 1
    assert "MLmodel has none of the flavours" in done.stdout


def test_in_a_process_of_its_own(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for version, factor in (("1", 1), ("2", 2)):
        source = tmp_path / f"source-{version}"
        source.mkdir()
        (source / "factors.py").write_text(f"FACTOR = {factor}\n")
        kind = columns(a="double")

        def predict(data: Any, params: Any) -> Any:
            import factors  # type: ignore[import-not-found]

            return data["a"] * factors.FACTOR

        code = [str(source / "factors.py")]
        save_function(folder / "own" / version, predict, kind, kind, code_paths=code)
    (folder / "own" / "model.yaml").write_text("isolation: process\nversions: {all: true}\n")
    with GatewayProcess(tmp_path, [folder]) as gateway:
        for version, factor in (("1", 1), ("2", 2)):
            path = f"own/versions/{version}"
            answer = ask(gateway, path, [("a", "FP64", [2, 1], [3, 4])])
            assert answer == {"a": ("FP64", [2, 1], [3 * factor, 4 * factor])}
