"""Finds children that hang: a call that runs too long, or no sign of life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.isolation.messages import PING
from gateway.isolation.process import ChildProcess

LOADING_SECONDS = 60.0
"""A child that starts or loads may be away for at least so long."""


class Watch:
    """Looks at a child every now and then; kills it for a hang. `oldest` gives the seconds for
    which the longest running call has run, `busy` whether an answer is expected at all."""

    def __init__(
        self,
        child: ChildProcess,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
        oldest: Callable[[], float],
        busy: Callable[[], bool],
    ) -> None:
        self._child = child
        self._seconds = seconds
        self._loop = loop
        self._oldest = oldest
        self._busy = busy
        self._every = min(max(seconds / 4, 0.02), 5.0)
        self._asked: float | None = None
        self._timer = loop.call_later(self._every, self._look)

    def _look(self) -> None:
        child = self._child
        if child.dead:
            return
        self._timer = self._loop.call_later(self._every, self._look)
        now = self._loop.time()
        ran = self._oldest()
        if ran > self._seconds:
            child.kill(
                f"a call has run for {ran:.1f} s, more than isolation.hang_seconds = "
                f"{self._seconds:g}"
            )
        elif not self._busy():
            self._asked = None
        elif ran > 0.0:
            # What runs may keep the child from answering; it has its own limit.
            self._asked = None
        elif self._asked is None or child.heard >= self._asked:
            self._asked = now
            child.send((PING,))
        elif now - self._asked > self._seconds:
            child.kill(
                f"no sign of life for {now - self._asked:.1f} s, more than "
                f"isolation.hang_seconds = {self._seconds:g}"
            )

    def cancel(self) -> None:
        self._timer.cancel()


def watch_loading(child: ChildProcess, seconds: float, loop: asyncio.AbstractEventLoop) -> Watch:
    """For a child that loads: it may take its time, but must be there."""
    return Watch(child, max(seconds, LOADING_SECONDS), loop, lambda: 0.0, lambda: True)
