"""The built wheel serves, from an empty folder, outside the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runtimes.discovery import BUILT_IN
from tests.integration.test_cli import MODELS, PICTURE, ROOT, environment
from tests.support.gateway import GatewayProcess


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend that is installed, so without a download."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--no-index", "--wheel-dir", folder, ROOT], check=True, cwd=folder, timeout=120
    )
    [path] = folder.glob("sluicegate-*.whl")
    return path


def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [points] = [name for name in names if name.endswith("/entry_points.txt")]
        text = archive.read(points).decode()
    assert {"gateway/codecs/descriptors.binpb", "gateway/py.typed", "runtimes/onnx.py"} <= names
    folders = {name.partition("/")[0] for name in names}
    packages = {f for f in folders if not f.endswith(".dist-info")}
    assert packages == {"gateway", "loadtests", "runtimes"}
    assert {"loadtests/report/page.css", "loadtests/compare/peers/triton/requirements.txt"} <= names
    assert not [name for name in names if name.startswith(("loadtests/tests", "loadtests/results"))]
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "sluice = gateway.cli:main" in text
    _, _, entries = text.partition("[sluicegate.runtimes]\n")
    for name, target in BUILT_IN.items():
        assert f"{name} = {target}" in entries


def test_the_wheel_serves(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()
    where = {"PYTHONPATH": str(site)}
    with GatewayProcess(empty, [MODELS], environment=where) as gateway:
        code = "import gateway; from gateway.cli import main; print(gateway.__file__); main()"
        done = subprocess.run(
            [
                *(sys.executable, "-c", code),
                *("infer", "digits", "--image", str(PICTURE), "--url", gateway.http),
            ],
            capture_output=True,
            check=False,
            cwd=empty,
            env=environment(**where),
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].startswith(str(site))
        assert "label          5" in done.stdout
