"""Commands that need no running gateway: check, config, runtimes, and mistakes in usage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.integration.test_cli import MODELS, one_line, sluice


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS, tmp_path / "models"))


@pytest.mark.parametrize("load", [(), ("--load",)])
def test_check_a_good_directory(load: tuple[str, ...]) -> None:
    result = sluice("check", MODELS, *load)
    assert result.returncode == 0, result.stdout
    assert "3 models, all well" in result.stdout


def test_check_names_everything_that_is_wrong(models: Path) -> None:
    (models / "iris" / "model.yaml").write_text("max_batch: 3\n")
    (models / "text" / "traffic.yaml").write_text('weights: {"1": 90, "7": 10}\n')
    (models / "empty").mkdir()
    (models / "empty" / "model.yaml").write_text("max_batch_size: 4\n")
    (models / "other" / "1").mkdir(parents=True)
    (models / "other" / "1" / "model.bin").touch()
    (models / "notes").mkdir()
    result = sluice("check", models, "--json")
    assert result.returncode == 1
    assert result.stderr == ""
    tree = json.loads(result.stdout)
    assert tree["ok"] is False
    found = {finding["model"]: finding for finding in tree["findings"]}
    assert {name: finding["state"] for name, finding in found.items()} == {
        "digits": "ok",
        "iris": "wrong",
        "text": "wrong",
        "empty": "wrong",
        "other": "wrong",
        "notes": "ignored",
    }
    assert "did you mean 'max_batch_size'?" in found["iris"]["text"]
    assert "there is no version 7 (there are: 1)" in found["text"]["text"]
    assert "no version folders" in found["empty"]["text"]
    assert "no runtime can load" in found["other"]["text"]

    table = sluice("check", models).stdout
    assert "6 models" not in table  # what is ignored is no model
    assert "5 models, 4 problems" in table


def test_check_load_finds_broken_files(models: Path) -> None:
    (models / "iris" / "1" / "model.onnx").write_bytes(b"junk")
    image = "image: {input: pixels, width: 8, height: 8}\n"
    (models / "digits" / "model.yaml").write_text(image)
    assert sluice("check", models).returncode == 0
    result = sluice("check", models, "--load")
    assert result.returncode == 1
    assert "image.input 'pixels' is no input; known: image" in result.stdout
    assert "wrong  iris" in result.stdout


def test_check_a_directory_without_models(tmp_path: Path) -> None:
    result = sluice("check", tmp_path)
    assert result.returncode == 1
    assert "holds no model" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["serve"], "give a SOURCE"),
        (["serve", "nothing"], "source 'nothing' does not exist"),
        (["serve", "ftp://host/models"], "scheme 'ftp' is not known"),
        (["serve", str(MODELS), "--set", "grpc.sever=native"], "did you mean 'grpc.server'?"),
        (["serve", str(MODELS), "--set", "drain.grace"], "must be KEY=VALUE"),
        (["serve", str(MODELS), "--set", "drain.grace=long"], "drain.grace"),
        (["serve", str(MODELS), "--http", "8080"], "must be HOST:PORT"),
        (["serve", str(MODELS), "--grpc", "here:8081"], "grpc.address here:8081"),
        (["serve", str(MODELS), "--config", "nothing.yaml"], "cannot read nothing.yaml"),
        (["serve", str(MODELS), "--grpc-server", "fast"], "--grpc-server"),
        (["serve", str(MODELS), "--strcit"], "did you mean '--set' or '--strict'?"),
        (["check", "nothing"], "source 'nothing' does not exist"),
        (["modles"], "did you mean 'models'?"),
        (["models", "--url", "ftp://x"], "no URL"),
    ],
)
def test_mistakes_are_one_line(words: list[str], expected: str) -> None:
    assert expected in one_line(sluice(*words), 2)


def test_an_unknown_variable_is_refused() -> None:
    error = one_line(sluice("config", "show", SLUICE_GRPC__SEVER="native"), 2)
    assert "SLUICE_GRPC__SEVER" in error
    assert "did you mean 'grpc.server'?" in error


def test_config_show(tmp_path: Path) -> None:
    file = tmp_path / "sluice.yaml"
    file.write_text("drain: {grace: 3}\nadmin: {token: hush-hush}\n")
    variables = {"SLUICE_GRPC__SERVER": "grpcio", "SLUICE_URL": "x", "SLUICE_TOKEN": "hush-hush"}
    result = sluice("config", "show", "--config", file, **variables)
    assert result.returncode == 0, result.stderr
    assert "hush-hush" not in result.stdout
    tree = yaml.safe_load(result.stdout)
    assert tree["drain"]["grace"] == 3
    assert tree["grpc"]["server"] == "grpcio"
    assert tree == json.loads(
        sluice("config", "show", "--config", file, "--json", **variables).stdout
    )

    result = sluice("config", "show", "--config", file, "--origin", "--json", **variables)
    origins = {key: each["origin"] for key, each in json.loads(result.stdout).items()}
    assert origins["drain.grace"] == str(file)
    assert origins["grpc.server"] == "environment variable SLUICE_GRPC__SERVER"
    assert origins["http.address"] == "default"


def test_runtimes() -> None:
    reports = json.loads(sluice("runtimes", "--json").stdout)["runtimes"]
    found = {each["name"]: each for each in reports}
    assert list(found)[:6] == ["oip", "triton", "mlflow", "onnx", "torch", "python"]
    assert found["onnx"]["available"] and found["onnx"]["built_in"]
    lines = [line.split() for line in sluice("runtimes").stdout.splitlines()]
    assert [line[1] for line in lines if line[0] == "onnx"] == ["yes"]


def test_version_and_help() -> None:
    assert sluice("--version").stdout.startswith("sluice 0.")
    result = sluice("--help")
    assert result.returncode == 0
    assert "Exit codes:" in result.stdout
    assert sluice().returncode == 2
