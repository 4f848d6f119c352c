"""The fork servers of a gateway: one for each kind of children, started when needed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Final

from gateway.isolation.forking import ForkServer
from gateway.isolation.limits import Surroundings
from gateway.telemetry.logs import log

IMPORT_SECONDS: Final = 120.0
"""How long a fork server may import."""
LINGER_SECONDS: Final = 60.0
"""How long one without models is kept: on-demand models come back."""
PAUSE_SECONDS: Final = 60.0
"""How long children start as programs after a fork server could not be started."""

Kind = tuple[Surroundings, tuple[str, ...]]
"""See `nursery`."""


class Forks:
    """The fork servers of one gateway. Owned by its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, starter: Executor) -> None:
        self._loop = loop
        self._starter = starter
        self._servers: dict[Kind, asyncio.Task[ForkServer | None]] = {}
        self._users: Counter[Kind] = Counter()
        self._unsafe: set[Kind] = set()
        """Imports that start threads: in these kinds, each child does them by itself."""
        self._paused: dict[Kind, float] = {}
        self._lost_at: dict[Kind, float] = {}
        self._said: set[Kind] = set()
        self._timers: dict[Kind, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._closed = False

    def kind_of(self, around: Surroundings, modules: tuple[str, ...]) -> Kind:
        """Children with other bounds may have the same fork server."""
        kind = replace(around, memory=0), modules
        return (kind[0], ()) if kind in self._unsafe else kind

    def imported(self, around: Surroundings, modules: tuple[str, ...]) -> bool:
        """Whether a fork server is there that has imported these modules."""
        task = self._servers.get((replace(around, memory=0), modules))
        return bool(task and task.done() and not task.cancelled() and task.result())

    def use(self, around: Surroundings, modules: tuple[str, ...]) -> None:
        """One more model is of this kind."""
        self._users[replace(around, memory=0), modules] += 1

    def leave(self, around: Surroundings, modules: tuple[str, ...]) -> None:
        """One less."""
        self._users[replace(around, memory=0), modules] -= 1
        self._linger(self.kind_of(around, modules))

    async def server(
        self, around: Surroundings, modules: tuple[str, ...], *, wait: bool = True
    ) -> ForkServer | None:
        """One that is ready; `None` where children have to start as programs. Without `wait`,
        also where it is not ready yet; it is made nevertheless."""
        if not (around.fork and sys.platform.startswith("linux")) or self._closed:
            return None
        while True:
            kind = self.kind_of(around, modules)
            if self._paused.get(kind, 0.0) > self._loop.time():
                return None
            task = self._servers.get(kind)
            if task is None:
                task = self._servers[kind] = self._loop.create_task(self._open(kind))
            if not (wait or task.done()):
                return None
            server = await asyncio.shield(task)
            if server is not None and not server.fits():
                self.lost(server, "")
                continue
            if server is not None or kind not in self._unsafe:
                self._linger(kind)
                return server

    async def _open(self, kind: Kind) -> ForkServer | None:
        server = None
        making = self._loop.run_in_executor(self._starter, ForkServer, *kind)
        try:
            server = await asyncio.shield(making)
            ready = self._loop.create_future()
            self._loop.add_reader(server.end.fileno(), self._heard, kind, server, ready)
            async with asyncio.timeout(IMPORT_SECONDS):
                threads = await ready
        except Exception as error:  # whatever it is: children can start without one
            if isinstance(error, TimeoutError):
                error = TimeoutError(f"its imports took more than {IMPORT_SECONDS:g} s")
            self._paused[kind] = self._loop.time() + PAUSE_SECONDS
            self._say(kind, str(error) or type(error).__name__)
        except asyncio.CancelledError:
            if server is None:
                making.add_done_callback(_never_wanted)
            else:
                self._end(server)
            raise
        else:
            if not threads:
                return server
            self._unsafe.add(kind)
            log.info(
                "isolation: %s cannot be imported before a fork: threads %s; children of this "
                "kind import it themselves", ", ".join(kind[1]) or "what children need",
                ", ".join(threads),
            )  # fmt: skip
            if not kind[1]:
                self._paused[kind] = float("inf")
        if server is not None:
            self._end(server)
        self._servers.pop(kind, None)
        return None

    def _heard(self, kind: Kind, server: ForkServer, ready: asyncio.Future[Any]) -> None:
        try:
            data = server.end.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            if not ready.done():
                try:
                    ready.set_result(json.loads(data))
                except ValueError as error:
                    ready.set_exception(error)
            return
        self._loop.remove_reader(server.end.fileno())
        why = server.last_words()
        if not ready.done():
            ready.set_exception(ValueError(why))
        else:
            self.lost(server, why)
            if self._used(kind) and self._paused.get(kind, 0.0) <= self._loop.time():
                self._servers[kind] = self._loop.create_task(self._open(kind))

    def lost(self, server: ForkServer, why: str) -> None:
        """It is of no use any more; the next child makes another one."""
        for kind, task in list(self._servers.items()):
            if task.done() and not task.cancelled() and task.result() is server:
                del self._servers[kind]
                now = self._loop.time()
                if why and now - self._lost_at.get(kind, -PAUSE_SECONDS) < PAUSE_SECONDS:
                    self._paused[kind] = now + PAUSE_SECONDS
                self._lost_at[kind] = now
                self._say(kind, why)
                self._end(server)

    def _say(self, kind: Kind, why: str) -> None:
        if why and kind not in self._said:
            self._said.add(kind)
            log.warning(
                "isolation: the fork server for %s is gone (%s); no model is harmed, the next "
                "processes may take longer to start", kind[0].python, why,
            )  # fmt: skip

    def _end(self, server: ForkServer) -> None:
        with contextlib.suppress(ValueError, OSError):
            self._loop.remove_reader(server.end.fileno())
        closing = self._loop.run_in_executor(None, server.close)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _linger(self, kind: Kind) -> None:
        if (timer := self._timers.pop(kind, None)) is not None:
            timer.cancel()
        if not self._closed:
            self._timers[kind] = self._loop.call_later(LINGER_SECONDS, self._idle, kind)

    def _idle(self, kind: Kind) -> None:
        del self._timers[kind]
        if self._used(kind):
            return
        task = self._servers.get(kind)
        if task is not None and task.done():
            del self._servers[kind]
            if (server := task.result()) is not None:
                self._end(server)

    def _used(self, kind: Kind) -> bool:
        return any(count and self.kind_of(*of) == kind for of, count in self._users.items())

    async def close(self) -> None:
        """Ends all of them."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in self._servers.values():
            if task.done() and not task.cancelled() and (server := task.result()) is not None:
                self._end(server)
            elif not task.done():
                task.cancel()
        await asyncio.gather(*self._servers.values(), return_exceptions=True)
        self._servers.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)


def _never_wanted(making: asyncio.Future[ForkServer]) -> None:
    """One that is there, perhaps only now, when the gateway is closing."""
    if not making.cancelled() and making.exception() is None:
        making.result().close()
