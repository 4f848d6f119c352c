"""The last state that a source was seen in, for a start while it cannot be reached."""

from __future__ import annotations

import os
import time
from typing import Final

from gateway.errors import ConfigError
from gateway.state import StateDir, file_name
from gateway.telemetry.logs import log

FOLDER: Final = "remembered"
CONFIRM_SECONDS: Final = 60.0
"""How often it is noted that what is remembered still holds."""


class Remembered:
    """One document per source, kept below ``remembered/`` in the state directory.

    What is in it is the registry's own affair. Without a state directory nothing is kept, and one
    that cannot be written costs one line in the log. For one thread at a time.
    """

    def __init__(self, state: StateDir | None, source: str) -> None:
        self._state = state
        self._name = file_name(source)
        self._last: bytes | None = None
        self._confirmed = 0.0
        self._trouble = ""

    def save(self, content: bytes) -> None:
        """Keeps `content` as what the source said just now; cheap when nothing has changed."""
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
        now = time.monotonic()
        if self._state is None or now - self._confirmed < CONFIRM_SECONDS:
            return
        self._confirmed = now
        try:
            os.utime(self._state.path / FOLDER / self._name)
        except OSError:
            self._last = None  # it is gone: written again at the next look


def when(seconds: float) -> str:
    """A time for people, in the zone of this machine: ``2026-11-17 12:00:00``."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
