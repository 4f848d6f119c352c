"""The HTTP server: uvicorn's sockets and life, our protocol class."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext, suppress
from time import perf_counter
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from gateway.config import split_address
from gateway.errors import ConfigError
from gateway.servers.backlog import BACKLOG, Acceptor
from gateway.servers.http_protocol import SluiceHttpProtocol, make_protocol
from gateway.servers.http_state import HttpState
from gateway.servers.metrics_page import MetricsPage

SWEEP_SECONDS: Final = 0.5


class _Server(uvicorn.Server):
    """uvicorn with an `Acceptor`, without its hands on the process's signals, which are ours."""

    _acceptor: Acceptor

    def capture_signals(self) -> Any:
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        self._acceptor = Acceptor(
            sockets[0], self.config.http_protocol_class, self.server_state.connections
        )
        # uvicorn asks for it with every connection.
        self.config.http_protocol_class = self._acceptor.protocol  # type: ignore[assignment]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._acceptor.close()
        await super().shutdown(sockets)


async def start_server(
    app: Starlette, address: str, key: str, **settings: Any
) -> tuple[_Server, asyncio.Task[None], int]:
    """A running uvicorn server, its task and its port. Raises `ConfigError` if it cannot listen."""
    host, port = split_address(address, key)
    try:
        sock = listen(host, port)
    except OSError as error:
        raise ConfigError(f"cannot listen on {key} {address}: {error.strerror}") from None
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        ws="none",
        timeout_graceful_shutdown=2,
        **settings,
    )
    server = _Server(config)
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[sock]))
    while not server.started:
        if task.done():
            await task
            raise ConfigError(f"cannot listen on {key} {address}")
        await asyncio.sleep(0.001)
    return server, task, sock.getsockname()[1]


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


class HttpServer:
    """The main HTTP port."""

    def __init__(self, shared: HttpState, app: Starlette) -> None:
        self._shared = shared
        self._app = app
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        http = self._shared.config.http
        self._server, self._task, self.port = await start_server(
            self._app,
            http.address,
            "http.address",
            http=make_protocol(self._shared),
            timeout_keep_alive=int(http.keep_alive) + 1,
            backlog=BACKLOG,
        )
        self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        """Looks after idle and slow connections."""
        assert self._server is not None
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = perf_counter()
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, SluiceHttpProtocol):
                    connection.sweep(now)

    def stop_keeping_alive(self) -> None:
        """From now on connections are closed after the answer that is due on them."""
        self._shared.closing = True

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for stream in list(self._shared.streams):
            stream.cancel()
        if self._server is not None:
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, SluiceHttpProtocol):
                    connection.give_up()
        await stop_server(self._server, self._task)
        await self._shared.apart.close()


class MetricsServer:
    """A port for ``/metrics`` alone."""

    def __init__(self, address: str, page: MetricsPage) -> None:
        self._address = address
        self._page = page
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        self._server, self._task, self.port = await start_server(
            Starlette(routes=[self._page.route()]),
            self._address,
            "telemetry.metrics_address",
        )

    async def close(self) -> None:
        await stop_server(self._server, self._task)


async def stop_server(server: _Server | None, task: asyncio.Task[None] | None) -> None:
    if server is None or task is None:
        return
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await task
