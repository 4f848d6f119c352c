"""What the gateway holds when nobody asks anything of it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.compare.processes import Server, get, tree
from loadtests.kernel import status
from loadtests.soak.watch import descriptors

PATIENCE_S: Final = 60.0
_IN_FLIGHT: Final = re.compile(
    rb"^sluice_in_flight_requests(?:\{[^}]*\})? ([0-9.eE+-]+)\s*$", re.MULTILINE
)


@dataclass(frozen=True)
class Rest:
    """One look at a gateway without load."""

    descriptors: dict[int, int]
    """Of each process, the gateway's own first."""
    threads: int
    zombies: int
    """Processes that have ended and that nobody has waited for."""
    waiting: float | None
    """Requests in the gateway, by its own count; ``None`` where it says nothing."""

    @property
    def processes(self) -> int:
        """Those that run."""
        return len(self.descriptors)


def is_zombie(pid: int) -> bool:
    """Whether it has ended and is still listed."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[0] == "Z"
    return False


def in_flight(server: Server) -> float | None:
    """Requests in the gateway: its own metric, over all its labels."""
    code, page = get(server.metrics, "/metrics")
    found = _IN_FLIGHT.findall(page)
    return sum(float(each) for each in found) if code == 200 and found else None


def look(server: Server) -> Rest:
    """What is held now. Blocks for an answer of ``/metrics``."""
    waiting = in_flight(server)
    members = tree(server.process.pid)
    dead = [pid for pid in members if is_zombie(pid)]
    held = {pid: descriptors(pid) for pid in members if pid not in dead}
    return Rest(held, status(server.process.pid, "Threads"), len(dead), waiting)


async def settled(server: Server, holds: Callable[[Rest], bool], patience_s: float) -> Rest:
    """The first look at which ``holds``, or the last one that there was time for."""
    until = time.monotonic() + patience_s
    while True:
        found = await asyncio.to_thread(look, server)
        if holds(found) or time.monotonic() > until or server.process.poll() is not None:
            return found
        await asyncio.sleep(0.5)
