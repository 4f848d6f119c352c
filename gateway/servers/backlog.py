"""The line of new connections: how long it may grow, and how fast it is taken."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from stat import S_ISSOCK
from typing import Any, Final

from gateway.telemetry.logs import log

BACKLOG: Final = 2048
"""Connections that may wait to be taken. What comes while the line is full tries again a second
later, by itself and unseen, and then after two, four, ..."""
AT_LEAST: Final = 64
"""Connections that may be taken in one turn of the event loop, however few are open."""


class Acceptor:
    """Takes all connections that wait, beside a loop that takes one of them a turn.

    That is what libuv does, and a turn takes as long as all requests that came meanwhile: among
    hundreds of busy connections, the last of hundreds of new ones would wait for seconds. Owned by
    the event loop; `sock` does not block.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[..., asyncio.BaseProtocol],
        connections: Collection[object],
    ) -> None:
        self._sock = sock
        self._protocol = protocol
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._due = False
        self._closed = False

    def protocol(self, **settings: Any) -> asyncio.BaseProtocol:
        """The protocol of a new connection. Where there is one, there may be more."""
        if not self._due and not self._closed:
            self._due = True
            self._loop.call_soon(self._accept, settings)
        return self._protocol(**settings)

    def _accept(self, settings: dict[str, Any]) -> None:
        self._due = False
        # Those that are open already wait twice as long by it at most.
        for _ in range(max(AT_LEAST, len(self._connections))):
            if self._closed:
                return
            try:
                connection, _ = self._sock.accept()
            except OSError:
                # Nobody waits; or it is something that the loop meets and deals with itself.
                return
            task = self._loop.create_task(self._open(connection, settings))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, connection: socket.socket, settings: dict[str, Any]) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(lambda: self.protocol(**settings), connection)
        except OSError:  # it is gone already
            connection.close()
        except BaseException:
            connection.close()
            raise

    async def close(self) -> None:
        """Takes no more; those that were taken have their protocols then."""
        self._closed = True
        for failure in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(failure, Exception):
                log.error("cannot take a connection", exc_info=failure)


def lengthen(port: int) -> None:
    """Gives the sockets of this process that listen on `port` our `BACKLOG`: for servers whose
    own is shorter and no setting. Does nothing where the system does not tell what is open."""
    try:
        names = os.listdir("/dev/fd")
    except OSError:
        return
    for name in names:
        with suppress(OSError):
            if not S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and sock.family != socket.AF_UNIX and sock.getsockname()[1] == port:
                    sock.listen(BACKLOG)
