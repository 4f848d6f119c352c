"""Connections that come at the same time: how long they may wait, and who goes first."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.applications import Starlette

from gateway.servers import http
from gateway.servers.backlog import AT_LEAST, BACKLOG, Acceptor, lengthen

PATIENCE_S = 30.0
MANY = 150


def run(main: Coroutine[Any, Any, None]) -> None:
    """On the loop of the gateway; asyncio's own takes connections in one go by itself."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, PATIENCE_S))


class Echo(asyncio.Protocol):
    """As uvicorn makes and ends its protocols."""

    def __init__(self, server_state: Any, **settings: Any) -> None:
        self.connections = server_state.connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    def shutdown(self) -> None:
        self.transport.close()


class Callers:
    """Each asks again as soon as it was answered, until all were answered once."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.answers = 0
        self.done = asyncio.get_running_loop().create_future()

    def answered(self, *, first: bool) -> bool:
        """Whether to go on."""
        self.answers += 1
        self.left -= first
        if not self.left and not self.done.done():
            self.done.set_result(None)
        return self.left > 0


class Caller(asyncio.Protocol):
    def __init__(self, callers: Callers) -> None:
        self.callers = callers
        self.first = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(b"?")

    def data_received(self, data: bytes) -> None:
        first, self.first = self.first, False
        if self.callers.answered(first=first):
            self.transport.write(b"?")


def connected(monkeypatch: pytest.MonkeyPatch, count: int) -> list[socket.socket]:
    """Connections that wait when a server of ours begins to take them."""
    waiting: list[socket.socket] = []
    listen = http.listen

    def early(host: str, port: int) -> socket.socket:
        sock = listen(host, port)
        waiting.extend(socket.create_connection(sock.getsockname()) for _ in range(count))
        return sock

    monkeypatch.setattr(http, "listen", early)
    return waiting


def test_those_that_come_together_are_served_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """libuv takes one a turn: the first asked as many times as there were others behind them."""

    async def main() -> None:
        waiting = connected(monkeypatch, MANY)
        server, task, _ = await http.start_server(Starlette(), "127.0.0.1:0", "x", http=Echo)
        callers = Callers(MANY)
        loop = asyncio.get_running_loop()
        made = [loop.create_connection(lambda: Caller(callers), sock=each) for each in waiting]
        transports = [transport for transport, _ in await asyncio.gather(*made)]
        await callers.done
        for transport in transports:
            transport.close()
        await http.stop_server(server, task)
        assert MANY <= callers.answers < 5 * MANY

    run(main())


def test_a_server_that_stops_while_it_takes_connections_ends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        waiting = connected(monkeypatch, AT_LEAST)
        server, task, _ = await http.start_server(Starlette(), "127.0.0.1:0", "x", http=Echo)
        await http.stop_server(server, task)
        assert not server.server_state.connections
        for each in waiting:
            each.settimeout(PATIENCE_S)
            with suppress(ConnectionResetError):  # it was not taken any more
                assert each.recv(1) == b""
            each.close()

    run(main())


def test_no_more_are_taken_in_a_turn_than_are_open() -> None:
    async def main() -> None:
        sock = http.listen("127.0.0.1", 0)
        address = sock.getsockname()
        waiting = [socket.create_connection(address) for _ in range(AT_LEAST + 9)]
        made: list[asyncio.Protocol] = []

        def protocol() -> asyncio.Protocol:
            made.append(asyncio.Protocol())
            return made[-1]

        acceptor = Acceptor(sock, protocol, ())
        acceptor.protocol()  # as when the loop has taken one
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(made) == 1 + AT_LEAST
        while len(made) < 1 + AT_LEAST + 9:  # one of those has asked for the rest
            await asyncio.sleep(0)
        await acceptor.close()
        late = socket.create_connection(address)
        acceptor.protocol()
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(made) == 1 + AT_LEAST + 9 + 1
        for each in (sock, late, *waiting):
            each.close()

    run(main())


def test_a_connection_that_cannot_be_served_is_closed_and_keeps_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        sock = http.listen("127.0.0.1", 0)
        waiting = [socket.create_connection(sock.getsockname()) for _ in range(3)]
        made: list[asyncio.Protocol] = []

        def protocol() -> asyncio.Protocol:
            made.append(asyncio.Protocol())
            if len(made) > 1:
                raise RuntimeError("no protocol")
            return made[-1]

        acceptor = Acceptor(sock, protocol, ())
        acceptor.protocol()
        await asyncio.sleep(0)
        await acceptor.close()
        assert len(made) == 4
        for each in waiting:
            each.settimeout(PATIENCE_S)
            assert each.recv(1) == b""
            each.close()
        sock.close()

    run(main())
    assert caplog.text.count("RuntimeError: no protocol") == 3


def room(sock: socket.socket) -> int:
    """Connections that may wait, as the kernel has it."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int(struct.unpack_from("I", info, 28)[0])


@pytest.mark.skipif(not Path("/proc/sys/net/core/somaxconn").exists(), reason="Linux tells it")
def test_a_short_line_of_another_library_is_lengthened() -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    with (
        socket.create_server(("127.0.0.1", 0), backlog=8) as sock,
        socket.create_server(("127.0.0.1", 0), backlog=8) as other,
    ):
        lengthen(sock.getsockname()[1])
        assert room(sock) == min(BACKLOG, most)
        assert room(other) == 8
        client = socket.create_connection(sock.getsockname())
        sock.accept()[0].close()
        client.close()


def test_lines_stay_as_they_are_where_the_system_does_not_tell_what_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(path: str) -> list[str]:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr("gateway.servers.backlog.os.listdir", unknown)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        lengthen(sock.getsockname()[1])
