"""The HTTP hot path: inference is answered right here, all else goes to the ASGI application.

uvicorn keeps the sockets and httptools the parser; this subclass only spares inference
requests the way through ASGI. It also bounds what a connection may cost: bytes, headers,
time to send, time to read.
"""

from __future__ import annotations

import asyncio
import re
from time import perf_counter
from typing import Any, Final
from urllib.parse import unquote

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.codecs.statuses import http_status
from gateway.errors import InvalidRequest, QueueFull, RequestTooLarge, SluiceError
from gateway.servers.http_answer import ERROR_TYPE, error_headers, head_of
from gateway.servers.http_call import Exchange
from gateway.servers.http_state import HttpState

_TARGET: Final = re.compile(rb"/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer/?(?:\?.*)?")
_MAX_TARGETS: Final = 4096
# Headers that mean something else when they are there twice.
_SINGLE: Final = (
    b"content-length",
    b"content-encoding",
    b"inference-header-content-length",
    b"x-request-timeout-ms",
)


class SluiceHttpProtocol(HttpToolsProtocol):
    """One connection."""

    shared: HttpState
    """Set on a subclass made for each server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exchange: Exchange | None = None
        """The inference request that is being received, or whose body was last received."""
        self.header_bytes = 0
        self.since = perf_counter()
        """When the connection began to wait for what it waits for now."""
        self.receiving = False
        self.write_paused_at: float | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.shared.limits.max_connections:
            self.refuse(
                QueueFull("too many connections are open (limits.max_connections)"), close=True
            )

    def connection_lost(self, exc: Exception | None) -> None:
        exchanges = [each for each, _ in self.pipeline if isinstance(each, Exchange)]
        if isinstance(self.cycle, Exchange):
            exchanges.append(self.cycle)
        super().connection_lost(exc)
        for exchange in exchanges:
            exchange.disconnect()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_paused_at = perf_counter()
        # Whoever does not read answers gets no more requests in.
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_paused_at = None
        self.flow.resume_reading()

    def sweep(self, now: float) -> None:
        """Closes the connection if the other side lets us wait too long. Called now and then."""
        if self.transport.is_closing():
            return
        patience = self.shared.config.http.request_timeout
        if self.write_paused_at is not None:
            if now - self.write_paused_at > patience:
                self.transport.abort()
        elif self.receiving:
            if now - self.since > patience:
                self.refuse(
                    InvalidRequest(f"the request did not arrive within {patience:g} s"),
                    close=True,
                    status=408,
                )
        elif self.cycle is None or self.cycle.response_complete:
            if now - self.since > self.shared.config.http.keep_alive:
                self.transport.close()

    # --- parser callbacks

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, SluiceError):
                cause = InvalidRequest("not a valid HTTP request")
            self.refuse(cause, close=True)
        except httptools.HttpParserUpgrade:
            self.refuse(InvalidRequest("upgrading the connection is not supported"), close=True)
        except httptools.HttpParserError as error:
            self.refuse(InvalidRequest(f"not a valid HTTP request: {error}"), close=True)

    def on_message_begin(self) -> None:
        self.receiving = True
        self.since = perf_counter()
        self.header_bytes = 0
        self.exchange = None
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.shared.limits.max_header_bytes:
            raise RequestTooLarge("the request target is longer than limits.max_header_bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.header_bytes += len(name) + len(value)
        if self.header_bytes > self.shared.limits.max_header_bytes:
            raise RequestTooLarge(
                f"the headers are larger than limits.max_header_bytes = "
                f"{self.shared.limits.max_header_bytes}"
            )
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        target = self.shared.targets.get(self.url, False)
        if target is False:
            target = self._target()
        if target is None or self.parser.get_method() != b"POST":
            self._prepare_scope()
            super().on_headers_complete()
            return
        headers = dict(self.headers)
        keep_alive = self.parser.should_keep_alive()
        exchange = Exchange(self, target, headers, keep_alive=keep_alive)
        if len(headers) != len(self.headers):
            self._refuse_doubles()
        length = headers.get(b"content-length")
        if length is not None and int(length) > self.shared.limits.max_message_bytes:
            raise RequestTooLarge(
                f"the body has {int(length)} bytes, more than limits.max_message_bytes = "
                f"{self.shared.limits.max_message_bytes}"
            )
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.exchange = exchange

    def _target(self) -> tuple[str, str] | None:
        match = _TARGET.fullmatch(self.url)
        target = None
        if match is not None:
            model, version = match.groups()
            target = (
                unquote(model.decode("latin-1")),
                unquote(version.decode("latin-1")) if version else "",
            )
        targets = self.shared.targets
        if len(targets) >= _MAX_TARGETS:
            targets.clear()
        if len(self.url) < 512:
            targets[self.url] = target
        return target

    def _prepare_scope(self) -> None:
        """What the base class does when a message begins; only ASGI needs it."""
        self.scope = {  # type: ignore[typeddict-item]
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,  # type: ignore[typeddict-item]
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
        }

    def _refuse_doubles(self) -> None:
        names = [name for name, _ in self.headers]
        for name in _SINGLE:
            if names.count(name) > 1:
                raise InvalidRequest(f"header {name.decode()} is given more than once")

    def on_body(self, body: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            super().on_body(body)
            return
        exchange.received(body)

    def on_message_complete(self) -> None:
        self.receiving = False
        exchange = self.exchange
        if exchange is None:
            super().on_message_complete()
            return
        self.exchange = None
        before = self.cycle
        self.cycle = exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            exchange.start()
        else:
            # Pipelined: answers go out in the order of the requests.
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.since = perf_counter()
        super().on_response_complete()
        # Our own sweep looks after idle connections, without a timer a request.
        self._unset_keepalive_if_required()

    # --- answers

    def answered(self, exchange: Exchange) -> None:
        """An inference answer has been written: on with the next request."""
        exchange.response_complete = True
        self.server_state.total_requests += 1
        self.since = perf_counter()
        if not exchange.keep_alive or self.shared.closing:
            self.transport.close()
            return
        if self.pipeline:
            self.flow.resume_reading()
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def refuse(self, error: SluiceError, *, close: bool, status: int | None = None) -> None:
        """Answers outside of any exchange, with our JSON shape."""
        if self.transport.is_closing():
            return
        body = orjson.dumps({"error": str(error)})
        head = head_of(status or http_status(error), len(body), ERROR_TYPE, error_headers(error))
        if close:
            head = head[:-2] + b"connection: close\r\n\r\n"
        self.transport.write(head + body)
        if close:
            self.exchange = None
            self.transport.close()


def make_protocol(shared: HttpState) -> type[SluiceHttpProtocol]:
    """The protocol class for one server, as uvicorn's ``http=`` setting takes it."""
    return type("SluiceHttpProtocol", (SluiceHttpProtocol,), {"shared": shared})
