"""A model that is busy for as long as a test wants, to see what happens to those behind it."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import httpx

from tests.support.gateway import GatewayProcess, wait_until

_used: Counter[int] = Counter()


class SlowModel:
    """One slow model of a gateway, that nobody has used yet. It runs one request at a time."""

    def __init__(self, gateway: GatewayProcess, loops_a_second: float) -> None:
        self.gateway = gateway
        self.loops_a_second = loops_a_second
        self.name = f"slow-{_used[gateway.pid]}"
        self.path = f"/v2/models/{self.name}/infer"
        _used[gateway.pid] += 1
        self._before = 0
        if loops_a_second:
            # Once, so that the gateway knows it for one that must not run on its event loop.
            self.request(int(0.02 * loops_a_second))
            self._before = self.executions()

    @staticmethod
    def body(loops: int) -> dict[str, Any]:
        return {"inputs": [{"name": "loops", "shape": [1], "datatype": "INT64", "data": [loops]}]}

    def request(self, loops: int) -> None:
        """Runs it once."""
        answer = httpx.post(self.gateway.http + self.path, json=self.body(loops), timeout=60)
        assert answer.status_code == 200, answer.text

    def occupy(self, seconds: float) -> threading.Thread:
        """Keeps the model busy from now on; join the thread to wait for the end."""
        loops = int(seconds * self.loops_a_second)
        thread = threading.Thread(target=self.request, args=(loops,))
        thread.start()
        wait_until(lambda: self.pending() > 0, "the slow model to be busy")
        return thread

    def pending(self) -> int:
        """Requests that wait or run."""
        status = self.gateway.get(f"/admin/v1/models/{self.name}")
        return int(status["versions"][0]["pending"])

    def wait_pending(self, count: int) -> None:
        """Until so many requests wait or run."""
        wait_until(lambda: self.pending() == count, f"{count} pending requests")

    def executions(self) -> int:
        """How often the model ran since it was made."""
        stats = self.gateway.get(f"/v2/models/{self.name}/stats")["model_stats"][0]
        return int(stats["execution_count"]) - self._before
