"""The last state that a source was seen in, for a start while it cannot be reached."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from threading import RLock
from typing import Final

from gateway.errors import ConfigError
from gateway.state import StateDir, file_name
from gateway.telemetry.logs import log
from gateway.times import local_time

FOLDER: Final = "remembered"
CONFIRM_SECONDS: Final = 60.0
"""How often it is noted that what is remembered still holds."""
WRITE_SECONDS: Final = 30.0
"""What changes again and again is written no more often than this."""


class Remembered:
    """One document per source, kept below ``remembered/`` in the state directory.

    What is in it is the registry's own affair. Without a state directory nothing is kept, and one
    that cannot be written costs one line in the log. For any thread.
    """

    def __init__(self, state: StateDir | None, source: str) -> None:
        self._state = state
        self._name = file_name(source)
        self._last: bytes | None = None
        self._confirmed = 0.0
        self._trouble = ""
        self._later: Callable[[], bytes] | None = None
        self._written = -math.inf
        self._lock = RLock()

    def changed(self, make: Callable[[], bytes]) -> None:
        """Keeps what `make` gives as what the source said just now: at once, or, where something
        was written a moment ago, with one of the next calls."""
        with self._lock:
            self._later = make
            self._write_later()

    def flush(self) -> None:
        """Writes now what was to be written later."""
        with self._lock:
            make, self._later = self._later, None
            if make is not None and self._state is not None:
                self.save(make())
                self._written = time.monotonic()

    def _write_later(self) -> None:
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.flush()

    def save(self, content: bytes) -> None:
        """Keeps `content` as what the source said just now; cheap when nothing has changed."""
        with self._lock:
            self._save(content)

    def _save(self, content: bytes) -> None:
        if self._state is None:
            return
        if content == self._last:
            self.confirm()
            return
        try:
            self._state.write(content, FOLDER, self._name)
        except ConfigError as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                log.warning("%s; a restart needs the source to be there", error)
            return
        self._trouble = ""
        self._last = content
        self._confirmed = time.monotonic()

    def load(self) -> tuple[bytes, float] | None:
        """What was saved, and when (seconds since the epoch) it was last seen to hold."""
        if self._state is None:
            return None
        content = self._state.read(FOLDER, self._name)
        if content is None:
            return None
        try:
            return content, (self._state.path / FOLDER / self._name).stat().st_mtime
        except OSError:
            return None

    def confirm(self) -> None:
        """Notes that what was saved last still holds; cheap."""
        with self._lock:
            if self._later is not None:
                self._write_later()
            else:
                self._confirm()

    def _confirm(self) -> None:
        now = time.monotonic()
        if self._state is None or now - self._confirmed < CONFIRM_SECONDS:
            return
        self._confirmed = now
        try:
            os.utime(self._state.path / FOLDER / self._name)
        except OSError:
            self._last = None  # it is gone: written again at the next look


def when(seconds: float) -> str:
    """See `local_time`."""
    return local_time(seconds)
