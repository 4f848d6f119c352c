"""Waiting until a server has nothing left to do."""

from __future__ import annotations

import re
import time
from typing import Final

from loadtests.compare.processes import Server, get
from loadtests.errors import BenchError

PATIENCE_S: Final = 60.0
_IN_FLIGHT: Final = re.compile(rb"^sluice_in_flight_requests(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def drained(server: Server, patience_s: float = PATIENCE_S) -> None:
    """Returns once no request is in the gateway. Raises `BenchError` after ``patience_s``."""
    end = time.monotonic() + patience_s
    while True:
        status, page = get(server.http, "/metrics", timeout_s=max(patience_s, 5.0))
        found = _IN_FLIGHT.search(page)
        if status == 200 and (found is None or float(found[1]) == 0):
            return
        if time.monotonic() > end:
            left = found[1].decode() if found else "unknown"
            raise BenchError(
                f"{patience_s:.0f} s after the load, requests are still in the gateway: {left}"
            )
        time.sleep(0.1)
