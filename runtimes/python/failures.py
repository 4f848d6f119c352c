"""What callers and the log are told when a model's own code fails."""

from __future__ import annotations

import logging
import time
from typing import Final

from gateway.errors import InferenceFailed, SluiceError
from runtimes.interface import MADE_UP
from runtimes.python.modules import ModelModules

TRACE_SECONDS: Final = 10.0
"""A stack trace of the same failure is logged this often at most: whoever sends bad input must
not fill the log."""


class Failures:
    """Turns exceptions of one model's code into ours."""

    def __init__(self, label: str, log: logging.Logger, modules: ModelModules) -> None:
        self._label = label
        self._log = log
        self._modules = modules
        self._logged: dict[str, float] = {}

    def inference(self, error: BaseException) -> SluiceError:
        """For the caller: type and message. The stack trace goes to the log."""
        if isinstance(error, SluiceError):
            return error
        text = self._modules.where(error)
        self.log(text, error)
        # Callers have no use for our line numbers.
        what = text.partition(": ")[2] if text.startswith(_place(text)) else text
        return InferenceFailed(f"the model failed: {what}")

    def warn(self, text: str) -> None:
        """One line about the model, without a stack trace."""
        self._log.warning("%s: %s", self._label, text)

    def log(self, text: str, error: BaseException) -> None:
        """One line with a stack trace, not too often."""
        if MADE_UP.get():
            return
        now = time.monotonic()
        place = text[:120]
        if now - self._logged.get(place, float("-inf")) < TRACE_SECONDS:
            return
        if len(self._logged) > 100:
            self._logged.clear()
        self._logged[place] = now
        trace = (type(error), error, error.__traceback__)
        self._log.error("%s failed: %s", self._label, text, exc_info=trace)


def _place(text: str) -> str:
    """``model.py, line 12: `` in front of a text, where it has that."""
    head, found, _ = text.partition(": ")
    return f"{head}: " if found and ".py, line " in head else "\0"
