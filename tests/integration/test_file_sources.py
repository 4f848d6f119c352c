"""One file as SOURCE of a real gateway."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.support.gateway import PATIENCE, ROOT, GatewayProcess

MINE = """
import os

class Mine:
    signature = {"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1, 2])}}

    def infer(self, inputs):
        return {"y": inputs["x"] + 1}
"""


def test_a_file_named_on_the_command_line_is_served_and_trusted_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "other.py").write_text(MINE)
    with GatewayProcess(tmp_path, [tmp_path / "mine.py"]) as gateway:
        assert gateway.get("/v2/models")["models"] == ["mine"]
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        body = json.dumps({"inputs": [tensor]}).encode()
        url = f"{gateway.http}/v2/models/mine/infer"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=PATIENCE) as answer:
            assert json.loads(answer.read())["outputs"][0]["data"] == [2.0, 3.0]


def test_trust_in_nothing_holds_for_the_command_line_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    environment = {"SLUICE_TRUST__CODE": ""}
    gateway = GatewayProcess(tmp_path, [tmp_path / "mine.py"], environment=environment, ready=False)
    try:
        gateway.wait_for(re.compile("its source is not trusted"))
    finally:
        assert gateway.stop() == 0


def test_a_file_that_is_no_model_by_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"x")
    command = [sys.executable, "-m", "gateway", "serve", str(tmp_path / "model.pt")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode not in (0, 1) and "Traceback" not in done.stderr
    assert ".onnx, .pt2, .py" in done.stderr and "model.yaml" in done.stderr
