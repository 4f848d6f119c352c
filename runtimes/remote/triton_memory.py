"""Memory shared with a Triton server on this machine: tensors are written there once, instead of
being copied through two HTTP/2 stacks.

A region is a file in ``/dev/shm`` that Triton maps when it is registered; then its name is
removed, so that nothing stays behind however this process ends. A region is used by one call at
a time, and again only after Triton has surely done with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from gateway.remote_document import Location

FOLDER: Final = Path("/dev/shm")
THRESHOLD: Final = 65536
"""Bytes of tensors from which shared memory costs less than sending them."""
ALIGNMENT: Final = 64
MAX_IDLE: Final = 256 * 2**20
"""Most bytes of regions that are kept for later calls, for each server."""
PAUSE: Final = 0.5
"""Seconds before Triton is asked to let go of a region whose call did not end well; doubled
each time, as it refuses while the call is still at work."""
MAX_PAUSE: Final = 60.0
"""Seconds between further attempts."""
MAX_REGION: Final = 256 * 2**20
"""Bytes of the largest region; what needs more is sent like any request."""
MAX_TOTAL: Final = 2**30
"""Most bytes of all regions that one server knows, those that it has not let go of included."""
INLINE: Final = 2**20
"""Bytes from which memory is taken in a thread: the system clears it first."""

_numbers = itertools.count()
_token = secrets.token_hex(4)


class NoRoom(Exception):
    """A region would be larger than allowed, or be one too many."""


class Region:
    """One piece of shared memory: `size` bytes, a power of two, called `name` by Triton."""

    __slots__ = ("map", "name", "path", "registered", "size")

    def __init__(self, size: int) -> None:
        self.name = f"sluicegate-{os.getpid()}-{_token}-{next(_numbers)}"
        self.path: Path = FOLDER / self.name
        self.size = size
        self.registered = False
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Takes the memory now: where there is none, writing would end this process.
            os.posix_fallocate(descriptor, 0, size)
            self.map = mmap.mmap(descriptor, size)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    @property
    def key(self) -> str:
        """The POSIX name."""
        return f"/{self.name}"

    def unlink(self) -> None:
        """Removes the name; who has mapped the memory keeps it."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives our side of the memory back."""
        self.unlink()
        self.map.close()


class Regions:
    """The regions that one server knows. Owned by the event loop.

    `register` and `unregister` ask the server; `register` raises what the call then fails with,
    `unregister` returns whether the server has let go.
    """

    def __init__(
        self,
        register: Callable[[Region], Awaitable[None]],
        unregister: Callable[[Region], Awaitable[bool]],
    ) -> None:
        self._register = register
        self._unregister = unregister
        self._idle: dict[int, list[Region]] = {}
        self._idle_bytes = 0
        self._used: set[Region] = set()
        self._leaving: dict[Region, asyncio.Task[None]] = {}
        self._making = 0
        """Bytes of regions that are being made."""
        self._closed = False

    async def take(self, size: int) -> Region:
        """A region of at least `size` bytes that is registered, for one call.

        Raises `NoRoom`, `OSError` where there is no memory left, and what `register` raises.
        """
        size = 1 << max(size - 1, 1).bit_length()
        if size > MAX_REGION:
            raise NoRoom
        idle = self._idle.get(size)
        if idle:
            region = idle.pop()
            self._idle_bytes -= size
            self._used.add(region)
            return region
        if self._bytes() + size > MAX_TOTAL:
            # What is kept for calls of other sizes gives way, for the next time.
            for region in self._take_idle():
                self.drop(region)
            raise NoRoom
        region = await self._made(size)
        self._used.add(region)
        try:
            await self._register(region)
        except BaseException:
            # The server may have heard of it.
            self.drop(region)
            raise
        region.registered = True
        region.unlink()
        return region

    async def _made(self, size: int) -> Region:
        if size < INLINE:
            return Region(size)
        self._making += size
        work = asyncio.get_running_loop().run_in_executor(None, Region, size)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_discard)
            raise
        finally:
            self._making -= size

    def give_back(self, region: Region) -> None:
        """The call is over, and the server does not look at its region any more."""
        if self._closed or self._idle_bytes + region.size > MAX_IDLE:
            self.drop(region)
            return
        self._used.discard(region)
        self._idle.setdefault(region.size, []).append(region)
        self._idle_bytes += region.size

    def drop(self, region: Region) -> None:
        """Nobody knows whether the server still looks at the region: never used again."""
        self._used.discard(region)
        region.close()
        if not self._closed:
            task = asyncio.get_running_loop().create_task(self._let_go(region))
            self._leaving[region] = task
            task.add_done_callback(lambda _: self._leaving.pop(region, None))

    def forget(self) -> None:
        """The server was started again and knows none of the regions."""
        for region in self._take_idle():
            region.close()

    async def close(self, timeout: float = 1.0) -> None:
        """Gives everything back; the server is told, if it answers within `timeout` seconds."""
        self._closed = True
        leaving = list(self._leaving)
        for task in list(self._leaving.values()):
            task.cancel()
        for region in self._used:
            region.unlink()
        idle = self._take_idle()
        for region in idle:
            region.close()
        told = [self._quietly(region) for region in (*idle, *leaving)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*told), timeout)

    def status(self) -> dict[str, int]:
        """How many regions there are, and their bytes; how many the server has not let go of."""
        every = [*self._used, *(region for regions in self._idle.values() for region in regions)]
        return {
            "regions": len(every),
            "bytes": sum(region.size for region in every),
            "leaving": len(self._leaving),
        }

    def _bytes(self) -> int:
        """Those of all regions, whatever becomes of them."""
        others = sum(region.size for region in (*self._used, *self._leaving))
        return self._idle_bytes + others + self._making

    def _take_idle(self) -> list[Region]:
        idle = [region for regions in self._idle.values() for region in regions]
        self._idle = {}
        self._idle_bytes = 0
        return idle

    async def _let_go(self, region: Region) -> None:
        pause = PAUSE
        while True:
            await asyncio.sleep(pause)
            if await self._quietly(region):
                return
            pause = min(pause * 2, MAX_PAUSE)

    async def _quietly(self, region: Region) -> bool:
        try:
            return await self._unregister(region)
        except Exception:
            return False


def _discard(work: asyncio.Future[Region]) -> None:
    """Nobody waits for the region any more."""
    if not work.cancelled() and work.exception() is None:
        work.result().close()


def is_local(address: str) -> bool:
    """Whether an IP address is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def not_local(locations: Sequence[Location]) -> list[str]:
    """Those of `locations` that are not on this machine, as far as their names can be looked
    up; blocking."""
    found = []
    for location in locations:
        try:
            entries = socket.getaddrinfo(location.host, location.port, type=socket.SOCK_STREAM)
        except OSError:
            continue
        if not all(is_local(str(entry[4][0])) for entry in entries):
            found.append(str(location))
    return found
