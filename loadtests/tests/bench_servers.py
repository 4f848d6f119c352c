"""Servers that misbehave as they are told, on 127.0.0.1, in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

BODY = (
    b'{"model_name":"m","model_version":"7","outputs":'
    b'[{"name":"y","shape":[1],"datatype":"FP32","data":[1.0]}]}'
)
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


@contextlib.contextmanager
def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that gives every connection to `handler`, until the end."""
    loop = asyncio.new_event_loop()
    started: threading.Event = threading.Event()
    ports: list[int] = []
    over = asyncio.Event()
    handlers: set[Any] = set()

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handled, "127.0.0.1", 0, ssl=tls)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        await over.wait()
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers)
        for _ in range(5):  # what is closed is told in the next rounds of the loop
            await asyncio.sleep(0)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert started.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


async def http_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of the next request. Raises `asyncio.IncompleteReadError` at the end."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    return head, await reader.readexactly(length)


class Http:
    """HTTP/1.1: `answer` says what is written to the request of a number (the first one is 1);
    ``None``: nothing, ever; ``b""``: the connection is reset. `stall_at`: from when that request
    has come, for `stall_s` seconds no request is answered."""

    def __init__(
        self,
        answer: Callable[[int], bytes | None] = lambda number: GOOD,
        *,
        stall_at: int = 0,
        stall_s: float = 1.0,
    ) -> None:
        self.answer = answer
        self.stall_at, self.stall_s = stall_at, stall_s
        self.numbers = itertools.count(1)
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.connections = 0
        self.until = 0.0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head, body = await http_request(reader)
            number = next(self.numbers)
            self.heads.append(head)
            self.bodies.append(body)
            if number == self.stall_at:
                self.until = time.monotonic() + self.stall_s
            if (wait := self.until - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            answer = self.answer(number)
            if answer is None:
                await asyncio.Event().wait()
            elif not answer:
                writer.transport.abort()
                return
            else:
                writer.write(answer)
                if b"connection: close" in answer or b"until the end" in answer:
                    await writer.drain()
                    return
