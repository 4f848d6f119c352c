"""kserve's unmodified InferenceRESTClient and InferenceGRPCClient."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.gateway import ROOT, GatewayProcess


def test_kserve_clients(gateway: GatewayProcess) -> None:
    result = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("kserve_cases.py")),
            gateway.http,
            gateway.grpc,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert result.stdout.count(": passed") >= 15
