"""Time for the batcher, so that tests can bring their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Something that will happen unless it is cancelled."""

    def cancel(self) -> object: ...


class Clock(Protocol):
    """A monotonic clock in seconds and the means to be called back on the owning thread."""

    def now(self) -> float: ...

    def call_soon(self, action: Callable[[], object], /) -> object: ...

    def call_later(self, delay: float, action: Callable[[], object], /) -> Timer: ...


class LoopClock:
    """The clock of a running event loop, with a finer `now` than uvloop's milliseconds."""

    now = staticmethod(time.perf_counter)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.call_soon = loop.call_soon
        self.call_later = loop.call_later
        self.call_soon_threadsafe = loop.call_soon_threadsafe
