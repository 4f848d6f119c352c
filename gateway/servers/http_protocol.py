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
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from gateway.codecs.statuses import http_status
from gateway.errors import InvalidRequest, QueueFull, RequestTooLarge, SluiceError
from gateway.servers.http_answer import ERROR_TYPE, error_body, error_headers, head_of
from gateway.servers.http_body import BodyReader
from gateway.servers.http_call import Exchange
from gateway.servers.http_state import HttpState, Target
from gateway.servers.invocations_call import InvocationsExchange
from gateway.servers.v1_call import V1Exchange

_TARGET: Final = re.compile(
    rb"(?:https?://[^/?]+)?/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer/?(?:\?.*)?"
)
_INVOCATIONS: Final = re.compile(
    rb"(?:https?://[^/?]+)?(?:/models/([^/?]+)(?:/versions/([^/?]+))?)?/invocations/?(?:\?.*)?"
)
# The verb is part of a name in which anything may be percent-encoded.
_V1: Final = re.compile(rb"(?:https?://[^/?]+)?/v1/models/([^/?]+)(?:\?.*)?")
_PREDICT: Final = ":predict"
_UPGRADE: Final = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)
_MAX_TARGETS: Final = 4096
MOST_WAITING: Final = 32
"""Pipelined requests from which a connection is not read on; who does not read does not see that
the other side is gone."""
# Headers that mean something else when they are there twice.
_SINGLE: Final = (
    b"content-length",
    b"content-encoding",
    b"inference-header-content-length",
    b"x-request-timeout-ms",
)


class Refusal:
    """The last answer on a connection, behind those that are due before it."""

    __slots__ = ("_answer", "_protocol", "disconnected", "response_complete")

    def __init__(self, protocol: SluiceHttpProtocol, answer: bytes) -> None:
        self._protocol = protocol
        self._answer = answer
        self.disconnected = False
        self.response_complete = False

    def start(self) -> None:
        self.response_complete = True
        self._protocol.say_last(self._answer)


class SluiceHttpProtocol(HttpToolsProtocol):
    """One connection."""

    shared: HttpState
    """Set on a subclass made for each server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exchange: Exchange | None = None
        """The inference request that is being received."""
        self.running: Any = None
        """The request that is being answered; others wait in `pipeline`."""
        self.header_bytes = 0
        self.heads = 0
        """Heads and chunks begun: tells whether data went on with one that had begun before."""
        self.in_head = False
        """Header fields may come; the parser keeps one, of whatever length, until it is whole."""
        self.since = perf_counter()
        """When the connection began to wait for what it waits for now."""
        self.receiving = False
        self.refusing = False
        """The last answer is decided: whatever else comes in is not looked at."""
        self.advancing = False
        self.write_paused_at: float | None = None

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # As the base class does it, but for the addresses: only ASGI asks for them.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.scheme = "http"
        if len(self.connections) > self.shared.limits.max_connections:
            self.refuse(QueueFull("too many connections are open (limits.max_connections)"))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        running = self.running
        if running is not None and not isinstance(running, Exchange):
            running.disconnected = True
            running.message_event.set()
        self._drop(running)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_paused_at = perf_counter()
        # Whoever does not read answers gets no more requests in.
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_paused_at = None
        self._next()

    def sweep(self, now: float) -> None:
        """Closes the connection if the other side lets us wait too long. Called now and then."""
        patience = self.shared.config.http.request_timeout
        if self.write_paused_at is not None:
            if now - self.write_paused_at > patience:
                self.transport.abort()
        elif self.transport.is_closing():
            # The rest of an answer waits for somebody to read it.
            if now - self.since > patience:
                self.transport.abort()
        elif self.refusing or self.flow.read_paused:
            pass
        elif self.receiving:
            if now - self.since > patience:
                self.refuse(
                    InvalidRequest(f"the request did not arrive within {patience:g} s"), 408
                )
        elif self.running is None and now - self.since > self.shared.config.http.keep_alive:
            self.transport.close()

    # --- parser callbacks

    def data_received(self, data: bytes) -> None:
        if self.refusing:
            return
        head = self.heads if self.in_head else -1
        if not self.receiving and b"pgrade" in data:
            data = without_upgrade(data)
        try:
            self.parser.feed_data(data)
            if self.in_head and self.heads == head:
                self._head_goes_on(len(data))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, SluiceError):
                cause = InvalidRequest("not a valid HTTP request")
            self.refuse(cause)
        except httptools.HttpParserError as error:
            self.refuse(InvalidRequest(f"not a valid HTTP request: {error}"))
        except RequestTooLarge as error:
            self.refuse(error)
        exchange = self.exchange
        if exchange is not None and exchange.room is not None and self.scheme == "http":
            BodyReader(self, exchange, exchange.room).begin()

    def body_read(self) -> None:
        """The rest of a large body has come, past the parser: another one begins afresh."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()

    def _head_goes_on(self, size: int) -> None:
        """Counts what the parser keeps of a head, or of a chunked body's trailers."""
        self.header_bytes += size
        if self.header_bytes > self.shared.limits.max_header_bytes:
            raise self._head_too_large()

    def _head_too_large(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"the headers are larger than limits.max_header_bytes = "
            f"{self.shared.limits.max_header_bytes}"
        )

    def on_message_begin(self) -> None:
        self.receiving = True
        self.in_head = True
        self.heads += 1
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
        # Each costs more than its bytes, as HTTP/2 counts it too (RFC 9113, 6.5.2).
        self.header_bytes += len(name) + len(value) + 32
        if self.header_bytes > self.shared.limits.max_header_bytes:
            raise self._head_too_large()
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.in_head = False
        if self.refusing or self.parser.should_upgrade():
            # The parser would take the body for another protocol's.
            raise InvalidRequest("upgrading the connection is not supported; send plain HTTP/1.1")
        try:
            target = self.shared.targets[self.url]
        except KeyError:
            target = self._target()
        if target is None or self.parser.get_method() != b"POST":
            self._prepare_scope()
            super().on_headers_complete()
            if len(self.pipeline) < MOST_WAITING and self.write_paused_at is None:
                # uvicorn reads no further behind one that waits.
                self.flow.resume_reading()
            return
        headers = dict(self.headers)
        keep_alive = self.parser.should_keep_alive()
        if b"connection" in headers and self.parser.get_http_version() == "1.0":
            # As uvicorn does it: a client of that age would wait for a header of its own.
            keep_alive = False
        kind, names = target
        exchange = self.exchange = kind(self, names, headers, keep_alive=keep_alive)
        if len(headers) != len(self.headers):
            self._refuse_doubles()
        length = headers.get(b"content-length")
        if length is not None and int(length) > self.shared.limits.max_message_bytes:
            raise RequestTooLarge(
                f"the body has {int(length)} bytes, more than limits.max_message_bytes = "
                f"{self.shared.limits.max_message_bytes}"
            )
        if length is not None and kind is Exchange:
            exchange.expect(int(length))
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _target(self) -> Target:
        target = _target_of(self.url)
        targets = self.shared.targets
        if len(targets) >= _MAX_TARGETS:
            targets.clear()
        if len(self.url) < 512:
            targets[self.url] = target
        return target

    def _prepare_scope(self) -> None:
        """What the base class does when a connection and a message begin; only ASGI needs it."""
        if self.server is None:
            self.server = get_local_addr(self.transport)
            self.client = get_remote_addr(self.transport)
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

    def on_chunk_header(self) -> None:
        """Behind the last chunk's come trailers, which are header fields."""
        self.in_head = True
        self.heads += 1

    def on_body(self, body: bytes) -> None:
        self.in_head = False
        exchange = self.exchange
        if exchange is None:
            super().on_body(body)
            return
        exchange.received(body)

    def on_message_complete(self) -> None:
        self.receiving = self.in_head = False
        exchange = self.exchange
        if exchange is None:
            super().on_message_complete()
            return
        self.exchange = None
        if self.refusing:
            exchange.disconnect()
            return
        self.cycle = exchange  # type: ignore[assignment]
        if self.running is None and self.write_paused_at is None:
            self.running = exchange
            exchange.start()
        else:
            # Pipelined: answers go out in the order of the requests.
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]
            if len(self.pipeline) >= MOST_WAITING:
                self.flow.pause_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.running = cycle
        if isinstance(cycle, Exchange | Refusal):
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)

    def _next(self) -> None:
        """Starts the pipelined requests whose turn it is: none while answers are not read."""
        if self.advancing:
            return
        self.advancing = True
        while self.pipeline and self.running is None and self.write_paused_at is None:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        self.advancing = False
        if not self.pipeline and self.write_paused_at is None and not self.refusing:
            self.flow.resume_reading()

    def _drop(self, running: Any = None) -> None:
        """What was asked for and will not be answered need not run."""
        waiting = [running, self.exchange, *[each for each, _ in self.pipeline]]
        self.running = self.exchange = None
        self.pipeline.clear()
        for each in waiting:
            if isinstance(each, Exchange):
                each.disconnect()

    def on_response_complete(self) -> None:
        """uvicorn's own; our sweep looks after idle connections, without a timer a request."""
        self.server_state.total_requests += 1
        self.since = perf_counter()
        self.running = None
        if self.transport.is_closing():
            self.refusing = True
            self._drop()
        else:
            self._next()

    # --- answers

    def answered(self, exchange: Exchange) -> None:
        """An inference answer has been written: on with the next request."""
        exchange.response_complete = True
        self.server_state.total_requests += 1
        self.since = perf_counter()
        self.running = None
        if not exchange.keep_alive or self.shared.closing:
            self.refusing = True
            self._drop()
            self.transport.close()
        elif self.pipeline:
            self._next()

    def give_up(self) -> None:
        """The port closes: who waits for inference is told so, instead of nothing at all."""
        if isinstance(self.running, Exchange):
            self.running.give_up()

    def refuse(self, error: SluiceError, status: int | None = None) -> None:
        """Answers what is no request, with our JSON shape, once the requests before it are
        answered; then the connection is closed."""
        if self.transport.is_closing() or self.refusing:
            return
        self.refusing = True
        status = status or http_status(error)
        broken = self.exchange
        body = error_body(error) if broken is None else broken.error_body(error, status)
        extra = error_headers(error) + b"connection: close\r\n"
        answer = head_of(status, len(body), ERROR_TYPE, extra) + body
        self._forget_broken()
        if self.running is None:
            self.say_last(answer)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((Refusal(self, answer), self.app))  # type: ignore[arg-type]

    def _forget_broken(self) -> None:
        """Whatever is being received will never be whole."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.disconnect()
            return
        cycle: Any = self.cycle
        if isinstance(cycle, RequestResponseCycle) and cycle.more_body:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle is self.running:
                self.running = None
            elif self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()

    def say_last(self, answer: bytes) -> None:
        """Writes an answer and closes the connection."""
        self.since = perf_counter()
        self.running = None
        self.transport.write(answer)
        self.transport.close()


def _target_of(url: bytes) -> Target:
    """What is asked for by POST to a request target; `None` for what is no inference."""
    if match := _TARGET.fullmatch(url):
        return Exchange, _names(match)
    if match := _INVOCATIONS.fullmatch(url):
        return InvocationsExchange, _names(match)
    if match := _V1.fullmatch(url):
        model, verb, rest = _names(match)[0].rpartition(_PREDICT)
        if model and verb and not rest:
            return V1Exchange, (model, "")
    return None


def _names(match: re.Match[bytes]) -> tuple[str, str]:
    """Model and version, empty where there are none."""
    model, version = (*match.groups(), None)[:2]
    return unquote((model or b"").decode("latin-1")), unquote((version or b"").decode("latin-1"))


def without_upgrade(data: bytes) -> bytes:
    """The data with an Upgrade header in its head made into one that means nothing.

    A server may ignore the wish (RFC 9110, 7.8), and Java's client sends one with its first
    request; but the parser would stop at it and take the body for another protocol's.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-ignored:", head, count=1) + end + rest


def make_protocol(shared: HttpState) -> type[SluiceHttpProtocol]:
    """The protocol class for one server, as uvicorn's ``http=`` setting takes it."""
    return type("SluiceHttpProtocol", (SluiceHttpProtocol,), {"shared": shared})
