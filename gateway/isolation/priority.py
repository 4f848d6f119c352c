"""Processor time of a child that loads, so that those who serve come first. Linux.

Without privileges the priority of a process can be lowered but not raised again. That of its
autogroup can: the kernel makes one for each session, and a child begins a session. Where there
are none (another system; a container whose cgroup has a cpu controller), nothing happens.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.isolation.process import ChildProcess

LOADING: Final = 5
"""Nice value while a version loads and others serve: a third of their weight."""
WAITING: Final = 10
"""While a spare imports."""
AGAIN_SECONDS: Final = 0.12
"""The kernel takes one change in 0.1 s, of all users together."""


class Shares:
    """What children are due beside others. Owned by the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wanted: dict[ChildProcess, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def want(self, child: ChildProcess, nice: int) -> None:
        """A nice value for a child's session: now, or when its turn comes."""
        self._wanted.pop(child, None)
        self._wanted[child] = nice
        if self._timer is None:
            self._tell()

    def _tell(self) -> None:
        """Those that are due most come first: they serve, the others only begin to load."""
        self._timer = None
        for child, nice in sorted(self._wanted.items(), key=lambda of: of[1]):
            if not child.ended.is_set() and nice != child.nice:
                if not set_group(child.pid, nice):
                    self._timer = self._loop.call_later(AGAIN_SECONDS, self._tell)
                    return
                child.nice = nice
            del self._wanted[child]


def set_group(pid: int, nice: int) -> bool:
    """Sets the nice value of a process's session; `False` if it has to be tried again."""
    try:
        with open(f"/proc/{pid}/autogroup", "w") as file:
            file.write(str(nice))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
