"""Memory comes back after unloading, and a budget holds, on a real gateway with real models."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from loadtests.compare import sluice as gateway_command
from loadtests.registry.memory import measure
from tests.integration.test_on_demand import post, states, tensor
from tests.support.gateway import GatewayProcess
from tests.support.onnx_models import adding, write


def test_memory_comes_back(tmp_path: Path) -> None:
    command = gateway_command.default_command()
    figure = measure(command, tmp_path, cycles=4, megabytes=40, isolated=False)
    # Two models that stay would be 80 MB, more than half of the whole gateway.
    assert figure.value is not None and figure.value < 25, figure


def test_within_a_budget_all_models_answer_in_turn(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for n in range(4):
        write(root / f"m{n}" / "1", adding(float(n)))
        (root / f"m{n}" / "model.yaml").write_text("on_demand: true\nmemory_mb: 40\n")
    write(root / "huge" / "1", adding(1.0, padding=25_000_000))
    (root / "huge" / "model.yaml").write_text("on_demand: true\n")
    settings = {
        "state_dir": tmp_path / "state",
        "lifecycle.memory_budget_mb": 100,
        "drain.grace": 0,
    }
    with GatewayProcess(tmp_path, [root], settings=settings) as gateway:
        for n in (0, 1, 2, 3, 0, 1):
            status, answer, _ = post(gateway, f"/v2/models/m{n}/infer", {"inputs": [tensor()]})
            assert (status, answer["outputs"][0]["data"][0]) == (200, float(n))
            held = [
                version.get("memory_mb", 0.0)
                for model in models(gateway)
                for version in model["versions"]
            ]
            assert 0 < sum(held) <= 100
        assert states(gateway, "m1") == {"1": "ready"}
        assert states(gateway, "m2") == states(gateway, "m3") == {"1": "on demand"}
        status, answer, headers = post(gateway, "/v2/models/huge/infer", {"inputs": [tensor()]})
        assert status == 503
        assert "lifecycle.memory_budget_mb is 100: set it to at least" in answer["error"]
        assert int(headers["Retry-After"]) >= 1
        gateway.process.terminate()
        assert gateway.process.wait(60) == 0
        gateway.log_path.write_text("")


def models(gateway: GatewayProcess) -> list[dict[str, Any]]:
    with urllib.request.urlopen(gateway.http + "/admin/v1/models", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["models"]
    return found
