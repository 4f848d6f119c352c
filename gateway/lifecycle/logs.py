"""What happened in the last loads of a version, kept in memory: the whole story behind a cause."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gateway.times import local_time

KEPT: Final = 64 * 1024
"""Most characters of one version's log; the oldest entries go first."""
LONGEST: Final = 32 * 1024
"""Most characters of one entry; of a longer one, beginning and end are kept."""
VERSIONS: Final = 16
"""Most versions of one model whose logs are kept."""


class LoadLog:
    """The log of one version's loads. Written by one thread at a time, read by any."""

    __slots__ = ("_entries", "_size", "dropped")

    def __init__(self) -> None:
        self._entries: deque[str] = deque()
        self._size = 0
        self.dropped = False
        """Whether older entries had to go."""

    def write(self, text: str) -> None:
        """Adds an entry of one or more lines, with the time."""
        text = text.rstrip("\n")
        if len(text) > LONGEST:
            half = LONGEST // 2
            left = len(text) - 2 * half
            text = f"{text[:half]}\n[... {left} characters left out ...]\n{text[-half:]}"
        entry = f"{local_time()} {text}"
        self._entries.append(entry)
        self._size += len(entry) + 1
        while self._size > KEPT and len(self._entries) > 1:
            self._size -= len(self._entries.popleft()) + 1
            self.dropped = True

    def failure(self, error: BaseException) -> None:
        """Adds an error with its traceback and all that caused it."""
        self.write("".join(traceback.format_exception(error)))

    def text(self) -> str:
        """Everything that is kept, oldest first."""
        first = ("[older entries are not kept]",) if self.dropped else ()
        return "".join(f"{entry}\n" for entry in (*first, *list(self._entries)))

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Adds what is logged in this thread meanwhile, by whichever library."""
        handler = _Ear(self)
        loggers = [logging.getLogger(), logging.getLogger("sluice")]
        if loggers[1].propagate:
            del loggers[1]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


class _Ear(logging.Handler):
    """Hears what one thread logs."""

    def __init__(self, log: LoadLog) -> None:
        super().__init__()
        self._log = log
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            try:
                text = f"{record.levelname} {record.name}: {record.getMessage()}"
                if record.exc_info and record.exc_info[0] is not None:
                    text += "\n" + "".join(traceback.format_exception(*record.exc_info))
                self._log.write(text)
            except Exception:
                self.handleError(record)


class LoadLogs:
    """The logs of one model, by version: of the last ones that were loaded."""

    __slots__ = ("_logs",)

    def __init__(self) -> None:
        self._logs: dict[str, LoadLog] = {}

    def of(self, version: str) -> LoadLog:
        """The log to write to."""
        log = self._logs.pop(version, None) or LoadLog()
        self._logs[version] = log  # now the newest
        while len(self._logs) > VERSIONS:
            del self._logs[next(iter(self._logs))]
        return log

    def get(self, version: str) -> LoadLog | None:
        """The log to read; `None` where the version was not loaded, or long ago."""
        return self._logs.get(version)
