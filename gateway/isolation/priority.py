"""Processor time of a child that loads, so that those who serve come first. Linux.

Without privileges the priority of a process can be lowered but not raised again. That of its
autogroup can: the kernel makes one for each session, and a child begins a session. Where there
are none (another system; a container whose cgroup has a cpu controller), nothing happens.
"""

from __future__ import annotations

from typing import Final

LOADING: Final = 5
"""Nice value while a version loads and others serve: a third of their weight."""
WAITING: Final = 10
"""While a spare imports."""
AGAIN_SECONDS: Final = 0.12
"""The kernel takes one change in 0.1 s, of all users together."""


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
