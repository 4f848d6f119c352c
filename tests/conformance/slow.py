"""A model that is busy for as long as a test wants, to see what happens to those behind it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.gateway import GatewayProcess, wait_until


@dataclass
class SlowModels:
    """One slow model of a gateway. It runs one request at a time."""

    gateway: GatewayProcess
    name: str
    loops_a_second: float

    @staticmethod
    def body(loops: int) -> dict[str, Any]:
        return {
            "inputs": [{"name": "loops", "shape": [1], "datatype": "INT64", "data": [loops]}]
        }

    @staticmethod
    def request(gateway: GatewayProcess, name: str, loops: int) -> httpx.Response:
        url = f"{gateway.http}/v2/models/{name}/infer"
        answer = httpx.post(url, json=SlowModels.body(loops), timeout=60)
        assert answer.status_code == 200, answer.text
        return answer

    def occupy(self, seconds: float) -> threading.Thread:
        """Keeps the model busy from now on; join the thread to wait for the end."""
        loops = int(seconds * self.loops_a_second)
        thread = threading.Thread(target=self.request, args=(self.gateway, self.name, loops))
        before = self.pending()
        thread.start()
        wait_until(lambda: self.pending() > before, "the slow model to be busy")
        return thread

    def version(self) -> dict[str, Any]:
        """What the admin API says of the model."""
        found: dict[str, Any] = self.gateway.get(f"/admin/v1/models/{self.name}")["versions"][0]
        return found

    def pending(self) -> int:
        """Requests that wait or run."""
        return int(self.version()["pending"])

    def executions(self) -> int:
        """How often the model ran."""
        stats = self.gateway.get(f"/v2/models/{self.name}/stats")["model_stats"][0]
        return int(stats["execution_count"])
