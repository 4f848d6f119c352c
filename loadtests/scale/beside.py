"""How long others wait while something large goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from loadtests.compare.processes import Server, get
from loadtests.errors import BenchError

PAUSE_S = 0.001


def longest_wait(server: Server, during: Callable[[], object]) -> float:
    """Milliseconds that the slowest of many calls took that the gateway answers at once
    (``/v2/health/live``), made one after the other while ``during`` runs.

    It is how long the gateway's event loop did nothing else. Raises what ``during`` raises, and
    `BenchError` when a call is not answered.
    """
    failed: list[Exception] = []

    def work() -> None:
        try:
            during()
        except Exception as error:
            failed.append(error)

    worker = threading.Thread(target=work)
    worst = 0.0
    worker.start()
    try:
        while worker.is_alive():
            began = time.perf_counter()
            status, _ = get(server.http, "/v2/health/live", timeout_s=60)
            worst = max(worst, time.perf_counter() - began)
            if status != 200:
                raise BenchError(f"/v2/health/live answers {status}")
            time.sleep(PAUSE_S)
    finally:
        worker.join()
    if failed:
        raise failed[0]
    return worst * 1e3
