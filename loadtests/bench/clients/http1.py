"""HTTP/1.1 over kept-alive connections, one request at a time on each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import httptools

from loadtests.bench.clients.base import (
    BEGINNING,
    CONNECT_S,
    CONNECTION,
    PROTOCOL,
    Address,
    Call,
    Done,
    headers_of,
    http_address,
    json_version,
    nobody,
)
from loadtests.bench.plan import Protocol, Target
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire

TOGETHER: Final = 32
"""Connections that are being made at a time."""
OPEN_S: Final = 30.0
"""Seconds within which all of them must be there."""
GLANCE_S: Final = 0.02
"""How long a connection is looked at before it counts: a server that has enough of them closes it
at once."""
MAX_HEAD: Final = 65536
MAX_HEADS: Final = 1024
JOINED: Final = 65536
"""Bytes of a body up to which it is held behind its head, and written with it."""
BROKEN: Final = (httptools.HttpParserError, httptools.HttpParserUpgrade)

_now = time.monotonic_ns


class _Head(NamedTuple):
    """What an answer's head says."""

    outcome: str
    """Empty: 2xx."""
    length: int | None
    """``None``: chunked, or until the connection ends; or not an answer yet (1xx)."""
    version: str
    keep: bool
    """Whether the connection stays open."""


class Http1Client:
    """POSTs over a pool of connections. Calls wait while all of `most` are taken."""

    def __init__(
        self, target: Target, payloads: Sequence[Wire], *, connections: int, most: int, done: Done
    ) -> None:
        self.address = http_address(target)
        self.done = done
        self.oip = target.protocol in (Protocol.BINARY, Protocol.JSON)
        self.requests = [_request(wire, target, self.address) for wire in payloads]
        self.heads: dict[bytes, _Head] = {}
        self._connections = connections
        self._most = max(most, connections)
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[Call] = deque()
        self._live: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False
        self._error: Exception | None = None
        self._made = self._gone = 0
        """Connections that were made, and that the server has closed."""

    async def open(self) -> None:
        """Makes the connections, a few at a time. Raises `BenchError`, also where the server
        closes as many as it was to hold."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + OPEN_S
        while (missing := self._connections - len(self._live)) > 0:
            if self._gone >= self._connections or loop.time() >= deadline:
                raise BenchError(self._too_few())
            tasks = [self._start() for _ in range(min(missing, TOGETHER))]
            await asyncio.wait(tasks)
            if self._error is not None:
                raise nobody(self.address, self._error) from None
            if len(self._live) >= self._connections:
                await asyncio.sleep(GLANCE_S)

    def _too_few(self) -> str:
        where = self.address.authority
        if not self._gone:
            return (
                f"{len(self._live)} of {self._connections} connections to {where} were made in "
                f"{OPEN_S:g} s; use fewer with --connections"
            )
        return (
            f"the server at {where} closed {self._gone} of {self._made} connections before a "
            "request was sent on them; use fewer (--connections, --concurrency), or let it take "
            "more"
        )

    def send(self, call: Call) -> None:
        """On a connection that is free, or the next one that will be."""
        while self._idle:
            connection = self._idle.popleft()
            if connection.transport is not None:
                connection.send(call)
                return
        self._waiting.append(call)
        if len(self._live) + len(self._opening) < self._most:
            self._start()

    def cancel(self, call: Call) -> None:
        """Its connection is closed: the answer may still come."""
        if isinstance(call.via, _Connection):
            call.via.drop()

    async def close(self) -> None:
        """Ends all connections."""
        self._closed = True
        for connection in list(self._live):
            connection.drop()
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening)
        await asyncio.sleep(0)  # transports end in the next round of the loop

    # --- connections

    def _start(self) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return task

    async def _connect(self) -> None:
        address = self.address
        connection = _Connection(self)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(
                    lambda: connection, address.host, address.port, ssl=address.tls
                )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self._error = error
            self._refused()
            return
        self._error = None
        self._made += 1
        if connection.transport is None:  # closed already
            self._gone += 1
            return
        self._live.add(connection)
        self.free(connection)

    def _refused(self) -> None:
        """One request less waits for what cannot be had; or none, if nothing else is left."""
        only = bool(self._live) or len(self._opening) > 1
        while self._waiting:
            call = self._waiting.popleft()
            if not call.ended:
                self.done(call, CONNECTION, "", str(self._error).encode())
                if only:
                    return

    def free(self, connection: _Connection) -> None:
        """The connection can take the next call."""
        while self._waiting:
            call = self._waiting.popleft()
            if not call.ended:
                connection.send(call)
                return
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        """The connection is no more."""
        if connection in self._live:
            self._gone += 1
            self._live.discard(connection)
        room = len(self._live) + len(self._opening) < self._most
        if self._waiting and room and not self._closed:
            self._start()


def _request(wire: Wire, target: Target, address: Address) -> tuple[bytes, bytes]:
    """The head, with the body where that is small, and the body where it is large."""
    lines = [
        f"POST {address.prefix}{wire.path} HTTP/1.1",
        f"host: {address.authority}",
        f"content-length: {len(wire.body)}",
        *(f"{name}: {value}" for name, value in headers_of(wire, target)),
    ]
    if any("\r" in line or "\n" in line for line in lines):
        raise BenchError("a header holds a line break; leave it out")
    head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
    return (head + wire.body, b"") if len(wire.body) <= JOINED else (head, wire.body)


class _Connection(asyncio.Protocol):
    __slots__ = (
        "_beginning", "_buffer", "_call", "_head", "_kept", "_parser", "_rest", "client",
        "transport",
    )  # fmt: skip

    def __init__(self, client: Http1Client) -> None:
        self.client = client
        self.transport: Any = None
        self._call: Call | None = None
        self._buffer = b""
        self._head: _Head | None = None
        self._rest = 0
        """Bytes of the body that are still to come."""
        self._kept: list[bytes] = []
        self._parser: _Parsed | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, call: Call) -> None:
        self._call = call
        call.via = self
        head, body = self.client.requests[call.number % len(self.client.requests)]
        call.left = _now()
        self.transport.write(head)
        if body:
            self.transport.write(body)

    def drop(self) -> None:
        """Without a word to whoever waits for an answer."""
        self._call = None
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:  # nothing was asked
            self.drop()
        elif self._parser is not None:
            self._parse(call, data)
        elif self._head is not None:
            self._body(call, self._head, data)
        else:
            self._begin(call, self._buffer + data if self._buffer else data)

    def _begin(self, call: Call, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._buffer = data
            if len(data) > MAX_HEAD:
                self._fail(call, PROTOCOL)
            return
        self._buffer = b""
        raw = data[:end]
        heads = self.client.heads
        head = heads.get(raw)
        if head is None:
            try:
                head = _read_head(raw)
            except BROKEN:
                self._fail(call, PROTOCOL)
                return
            if len(heads) >= MAX_HEADS:
                heads.clear()
            heads[raw] = head
        if head.length is None:
            self._parser = _Parsed()
            self._parse(call, data)
            return
        self._head, self._rest = head, head.length
        self._body(call, head, data[end:])

    def _body(self, call: Call, head: _Head, data: bytes) -> None:
        self._rest -= len(data)
        if call.keep or not self._kept:
            self._kept.append(data if call.keep else data[:BEGINNING])
        if self._rest < 0:  # more than was announced
            self._fail(call, PROTOCOL)
        elif self._rest == 0:
            self._end(call, head)

    def _parse(self, call: Call, data: bytes) -> None:
        parsed = self._parser
        assert parsed is not None
        try:
            parsed.feed(data)
        except BROKEN:
            self._fail(call, PROTOCOL)
            return
        if parsed.complete:
            self._kept = [parsed.body]
            self._end(call, parsed.head())

    def _end(self, call: Call, head: _Head) -> None:
        body = b"".join(self._kept) if call.keep else self._kept[0]
        self._call = self._head = self._parser = None
        self._kept.clear()
        client = self.client
        version = head.version
        if not version and client.oip and not head.outcome:
            version = json_version(body[:BEGINNING])
        if head.keep:
            client.free(self)
        else:
            self.drop()
        client.done(call, head.outcome, version, body)

    def _fail(self, call: Call, outcome: str, text: bytes = b"") -> None:
        self.drop()
        self.client.done(call, outcome, "", text)

    def connection_lost(self, error: Exception | None) -> None:
        call, self._call, self.transport = self._call, None, None
        if call is not None:
            parsed = self._parser
            if parsed is not None and parsed.until_end and error is None:
                self._kept = [parsed.body]
                self.client.lost(self)
                self._end(call, parsed.head())
                return
        self.client.lost(self)
        if call is not None:
            self.client.done(call, CONNECTION, "", str(error or "closed").encode())


class _Parsed:
    """An answer that says no length, through httptools."""

    def __init__(self) -> None:
        self.complete = False
        self.body = b""
        self.version = ""
        self.length: int | None = None
        self.chunked = False
        self._heads = 0
        self._parser: Any = httptools.HttpResponseParser(self)

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    @property
    def until_end(self) -> bool:
        """Whether the body ends where the connection does."""
        return self._heads > 0 and not self.chunked and self.length is None and self.status >= 200

    def feed(self, data: bytes) -> None:
        """Raises `httptools.HttpParserError`."""
        self._parser.feed_data(data)

    def head(self) -> _Head:
        status = self.status
        outcome = "" if 200 <= status < 300 else str(status)
        keep = bool(self._parser.should_keep_alive()) and not self.until_end
        return _Head(outcome, self.length, self.version, keep)

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-length":
            self.length = int(value)
        elif lower == b"transfer-encoding":
            self.chunked = True
        elif lower == b"x-sluice-version":
            self.version = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._heads += 1

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = self.status >= 200


def _read_head(raw: bytes) -> _Head:
    """Raises `httptools.HttpParserError`."""
    parsed = _Parsed()
    parsed.feed(raw)
    head = parsed.head()
    if parsed.status in (204, 304):
        return head._replace(length=0)
    if parsed.chunked or parsed.status < 200:
        return head._replace(length=None)
    return head
