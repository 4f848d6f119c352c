"""A model that is busy for as long as a test wants, to see what happens to those behind it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any, ClassVar

import httpx

from tests.support.gateway import GatewayProcess, wait_until

_used: Counter[int] = Counter()


class SlowModel:
    """One slow model of a gateway, that nobody has used yet. It runs one request at a time."""

    loops_a_second: ClassVar[float] = 100_000.0
    """The most that was ever seen: on a busy machine a test rather takes longer."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self.name = f"slow-{_used[gateway.pid]}"
        self.path = f"/v2/models/{self.name}/infer"
        _used[gateway.pid] += 1
        # The gateway learns that this one must not run on its event loop, and we its speed.
        self.request(1)
        started = time.perf_counter()
        self.request(20_000)
        self._learned = time.perf_counter() - started
        """Seconds of what the gateway has learned from, and a little more."""
        self._before = 0
        self._before = self.executions()

    @staticmethod
    def body(loops: int) -> dict[str, Any]:
        return {"inputs": [{"name": "loops", "shape": [1], "datatype": "INT64", "data": [loops]}]}

    def request(self, loops: int) -> None:
        """Runs it once."""
        started = time.perf_counter()
        answer = httpx.post(self.gateway.http + self.path, json=self.body(loops), timeout=60)
        assert answer.status_code == 200, answer.text
        speed = loops / (time.perf_counter() - started)
        SlowModel.loops_a_second = max(SlowModel.loops_a_second, speed)

    def loops(self, seconds: float) -> int:
        """How many take about as long, and hardly less."""
        return int(1.5 * seconds * self.loops_a_second)

    def limit(self, seconds: float) -> float:
        """A time limit of about so long, which the gateway will not call too short beforehand."""
        return max(seconds, 3 * self._learned)

    def occupy(self, seconds: float) -> threading.Thread:
        """Keeps the model busy from now on; join the thread to wait for the end."""
        loops = self.loops(seconds)
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
