"""The access log: one structured line a request, for a sampled share of them.

The event loop only puts a small tuple into a bounded queue; a thread formats and writes. If the
writer cannot keep up, lines are dropped and counted, never requests delayed.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from random import random
from typing import Any, Final, TextIO

from gateway.call import Call

QUEUE: Final = 10_000
Entry = tuple[float, str, str, str, str, str, float, int]


class AccessLog:
    """`share` of requests, 0 to 1, gets a line; at 0 the hot path pays one comparison a batch."""

    def __init__(self) -> None:
        self.share = 0.0
        self.dropped = 0
        self._entries: queue.Queue[Entry | None] = queue.Queue(QUEUE)
        self._thread: threading.Thread | None = None
        self._stream: TextIO = sys.stderr

    def start(self, share: float, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.share = share
        if share and self._thread is None:
            self._thread = threading.Thread(target=self._write, name="sluice-access", daemon=True)
            self._thread.start()

    def record(self, call: Call, version: str, code: str, seconds: float) -> None:
        """One request ended with `code` (``ok`` or an error's name)."""
        if not call.protocol or (self.share < 1 and random() >= self.share):
            return
        request = getattr(call, "request", None)
        entry = (
            time.time(),
            call.protocol,
            "" if request is None else request.model,
            version,
            "" if request is None else request.id,
            code,
            seconds,
            call.rows,
        )
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self.dropped += 1

    def stop(self) -> None:
        """Writes what is left, for a second at most."""
        self.share = 0.0
        if self._thread is not None:
            self._entries.put(None)
            self._thread.join(1)
            self._thread = None

    def _write(self) -> None:
        while (entry := self._entries.get()) is not None:
            self._stream.write(line(entry) + "\n")
            if self._entries.empty():
                self._stream.flush()
        self._stream.flush()


def line(entry: Entry) -> str:
    """An entry as one JSON object; JSON's escapes keep it on one line whatever a client sent."""
    at, protocol, model, version, request_id, code, seconds, rows = entry
    fields: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z",
        "logger": "access",
        "protocol": protocol,
        "model": model[:256],
        "version": version,
        "code": code,
        "ms": round(seconds * 1000, 3),
        "rows": rows,
    }
    if request_id:
        fields["id"] = request_id[:256]
    return json.dumps(fields)


access_log = AccessLog()
"""The process's own."""
