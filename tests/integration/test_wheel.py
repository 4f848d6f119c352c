"""The built wheel serves from an empty folder, outside the checkout."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel unpacked as pip would put it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet",
         "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("sluicegate-*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_holds_what_it_should(site: Path) -> None:
    tops = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"gateway", "runtimes"}
    assert (site / "gateway/codecs/descriptors.binpb").stat().st_size > 1000
    assert (site / "gateway/py.typed").exists()


def test_the_wheel_serves_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    # -P: nothing of the checkout may be found through the working directory.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gateway", "serve", str(ROOT / "examples/models"),
         "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = ""
        for text in process.stdout:
            if match := re.search(r"http://127\.0\.0\.1:\d+", text):
                url = match.group()
                break
        body = json.loads((ROOT / "examples/requests/iris.json").read_text())
        answer = httpx.post(f"{url}/v2/models/iris/infer", json=body, timeout=30).json()
        assert answer["outputs"][0]["data"] == ["setosa", "versicolor", "virginica"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
