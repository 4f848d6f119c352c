"""The example plugin, as a third party has it: installed by pip, tested, listed and served."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import PATIENCE, ROOT, GatewayProcess

PLUGIN = ROOT / "examples" / "plugin"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with the plugin, and with our packages beside."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", code], text=True).strip())
    # At the end of the path: what is installed here comes first.
    (site / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = run(python, *install, str(PLUGIN))
    assert done.returncode == 0, done.stderr
    assert (site / "sluicegate_linear.py").is_file()
    return python


def run(python: Path, *arguments: str, folder: Path | None = None) -> Any:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "PYTHONPATH"))}
    return subprocess.run(
        [python, *arguments],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        text=True,
        timeout=120,
    )


def test_it_passes_the_conformance_suite(python: Path, tmp_path: Path) -> None:
    tests = [str(PLUGIN / "tests"), "-q", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    done = run(python, "-m", "pytest", *tests, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 30


def test_it_is_listed(python: Path, tmp_path: Path) -> None:
    done = run(python, "-m", "gateway", "runtimes", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)["runtimes"]}
    linear = found["linear"]
    assert (linear["package"], linear["package_version"]) == ("sluicegate-linear", "1.0.0")
    assert linear["available"] and not linear["built_in"] and linear["formats"] == ["model.csv"]
    assert found["onnx"]["built_in"]
    table = run(python, "-m", "gateway", "runtimes", folder=tmp_path).stdout
    [line] = [line for line in table.splitlines() if line.startswith("linear ")]
    assert "sluicegate-linear 1.0.0" in line


def test_its_models_are_checked(python: Path, tmp_path: Path) -> None:
    command = ["-m", "gateway", "check", "--load", str(PLUGIN / "models")]
    done = run(python, *command, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"ok +diabetes +1 +linear", done.stdout)


@pytest.fixture
def gateway(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(sys, "executable", str(python))
    with GatewayProcess(tmp_path, [PLUGIN / "models"]) as gateway:
        yield gateway.http


def test_it_is_served(gateway: str) -> None:
    with urllib.request.urlopen(f"{gateway}/v2/models/diabetes", timeout=PATIENCE) as answer:
        metadata = json.load(answer)
    assert metadata["platform"] == "linear_csv"
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    data = [59, 32.1, 101, 48, 21.6, 87]
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": data}
    request = urllib.request.Request(
        f"{gateway}/v2/models/diabetes/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        [output] = json.load(answer)["outputs"]
    lines = (PLUGIN / "models" / "diabetes" / "1" / "model.csv").read_text().splitlines()
    intercept, *weights = map(float, lines[1].split(",")[1:])
    expected = [
        intercept + sum(w * x for w, x in zip(weights, row, strict=True))
        for row in (data[:3], data[3:])
    ]
    assert output["name"] == "progression" and output["shape"] == [2]
    assert output["data"] == pytest.approx(expected, rel=1e-4)
