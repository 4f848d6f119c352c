"""Unary gRPC over HTTP/2: many streams on few connections, little work for each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from loadtests.bench.clients.base import (
    CONNECT_S,
    CONNECTION,
    Call,
    Done,
    grpc_address,
    headers_of,
    nobody,
)
from loadtests.bench.clients.connection2 import Connection
from loadtests.bench.clients.frames import DEFAULT_TABLE, RequestBlocks
from loadtests.bench.plan import Target
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire

TOGETHER = 32
"""Connections that are being made at a time."""
OPEN_S = 30.0
"""Seconds within which all of them must be there."""


class Http2Client:
    """Calls over a fixed number of connections; one that is lost is made again when needed."""

    def __init__(
        self, target: Target, payloads: Sequence[Wire], *, connections: int, done: Done
    ) -> None:
        self.address = grpc_address(target)
        self.done = done
        self.messages = [b"\0" + len(each.body).to_bytes(4, "big") + each.body for each in payloads]
        scheme = "https" if self.address.tls else "http"
        own = [
            (":method", "POST"),
            (":scheme", scheme),
            (":authority", self.address.authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "sluice-bench"),
        ]
        self._requests = [
            [own[0], own[1], (":path", each.path), *own[2:], *headers_of(each, target)]
            for each in payloads
        ]
        self._blocks: dict[int, RequestBlocks] = {}
        self._connections: list[Connection | None] = [None] * max(connections, 1)
        self._waiting: deque[Call] = deque()
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._turn = 0
        self._closed = False
        self._error: Exception | None = None
        self.blocks(DEFAULT_TABLE)

    def blocks(self, table_size: int) -> RequestBlocks:
        """Header blocks for a server whose table has this size."""
        blocks = self._blocks.get(table_size)
        if blocks is None:
            blocks = self._blocks[table_size] = RequestBlocks(self._requests, table_size)
        return blocks

    async def open(self) -> None:
        """Makes all connections, a few at a time. Raises `BenchError`."""
        deadline = asyncio.get_running_loop().time() + OPEN_S
        while missing := [i for i, each in enumerate(self._connections) if each is None]:
            if asyncio.get_running_loop().time() >= deadline:
                raise BenchError(
                    f"the server at {self.address.authority} closes connections as they are "
                    f"opened: {len(missing)} of {len(self._connections)} are missing after "
                    f"{OPEN_S:g} s; use fewer --connections, or let it take more"
                )
            await asyncio.wait([self._start(i) for i in missing[:TOGETHER]])
            if self._error is not None:
                raise nobody(self.address, self._error) from None

    def send(self, call: Call) -> None:
        """On the connection of its place, or that whose turn it is."""
        connections = self._connections
        count = len(connections)
        first = call.slot
        if first < 0:
            first = self._turn
            self._turn = (first + 1) % count
        for index in range(first, first + count):
            connection = connections[index % count]
            if connection is not None and connection.usable:
                connection.send(call)
                return
            if index % count not in self._opening:
                self._start(index % count)
        self._waiting.append(call)

    def cancel(self, call: Call) -> None:
        """Its stream is reset."""
        if isinstance(call.via, Connection):
            call.via.cancel(call)

    async def close(self) -> None:
        """Ends all connections."""
        self._closed = True
        tasks = list(self._opening.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for connection in self._connections:
            if connection is not None:
                connection.drop()
        await asyncio.sleep(0)  # transports end in the next round of the loop

    # --- connections

    def _start(self, index: int) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._connect(index))
        self._opening[index] = task
        return task

    async def _connect(self, index: int) -> None:
        address, loop = self.address, asyncio.get_running_loop()
        connection = Connection(self, index)
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(
                    lambda: connection, address.host, address.port, ssl=address.tls
                )
                await connection.ready
        except (OSError, TimeoutError, BenchError) as error:
            connection.drop()
            self._error = error
            self._opening.pop(index, None)
            self._refused()
            return
        self._error = None
        self._opening.pop(index, None)
        self._connections[index] = connection
        while self._waiting:
            call = self._waiting.popleft()
            if not call.ended:
                connection.send(call)

    def _refused(self) -> None:
        """Nobody waits for what cannot be had."""
        if self._opening:
            return
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.ended:
                self.done(call, CONNECTION, "", str(self._error).encode())

    def again(self, call: Call) -> bool:
        """Sends a call that the server has said it did not look at, once."""
        if call.retried or self._closed:
            return False
        call.retried = True
        self.send(call)
        return True

    def lost(self, connection: Connection) -> None:
        """The connection takes no more calls."""
        if self._connections[connection.index] is connection:
            self._connections[connection.index] = None
