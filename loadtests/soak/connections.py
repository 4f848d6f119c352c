"""HTTP/1.1 connections that are kept, and what can be done to them that no client library does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

IDLE_S = 2.0
"""A connection that was idle for longer is not used again: the server may be closing it."""


@dataclass(frozen=True)
class Answer:
    """Status, headers (lower case) and body."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Connection:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: float = 0.0

    async def close(self) -> None:
        """Closes it, whatever state it is in."""
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


def post(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a request."""
    lines = [f"POST {path} HTTP/1.1", "host: soak", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Pool:
    """Connections to one address, ``host:port``."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._free: list[Connection] = []

    async def open(self) -> Connection:
        """A new connection."""
        return Connection(*await asyncio.open_connection(self._host, self._port))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One that is free; kept afterwards unless the block raises."""
        found = None
        while self._free:
            found = self._free.pop()
            if time.monotonic() - found.used < IDLE_S:
                break
            await found.close()
            found = None
        if found is None:
            found = await self.open()
        try:
            yield found
        except BaseException:
            found.writer.close()
            raise
        found.used = time.monotonic()
        self._free.append(found)

    async def ask(self, request: bytes) -> Answer:
        """Sends one request and reads its answer. Raises `OSError` or `IncompleteReadError`."""
        async with self.connection() as connection:
            connection.writer.write(request)
            return await read_answer(connection.reader)

    async def close(self) -> None:
        """Closes what is kept."""
        while self._free:
            await self._free.pop().close()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One answer with a known length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in head[1:] if line]
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(head[0].split(" ")[1]), headers, body)
