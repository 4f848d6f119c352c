"""One HTTP/2 connection of a client: its streams, and flow control both ways."""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from hpack import HPACKError

from loadtests.bench.clients import frames as h2
from loadtests.bench.clients.base import BEGINNING, CONNECTION, PROTOCOL, Call, proto_version
from loadtests.errors import BenchError

if TYPE_CHECKING:
    from loadtests.bench.clients.http2 import Http2Client

CODES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
RESETS: Final = {
    7: "UNAVAILABLE",
    8: "CANCELLED",
    11: "RESOURCE_EXHAUSTED",
    12: "PERMISSION_DENIED",
}
"""What gRPC takes HTTP/2's error codes for; the others are INTERNAL."""
WINDOW: Final = 16 * 2**20
"""Bytes that the server may send on a stream before it is given leave for more."""
CONNECTION_WINDOW: Final = 2**30
MAX_BLOCK: Final = 2**20
"""Bytes of a header block."""
_LAST_STREAM: Final = 2**31 - 3

_now = time.monotonic_ns


class _Stream:
    __slots__ = ("beginning", "body", "call", "head", "message", "rest", "size", "window", "wire")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.head: h2.Head | None = None
        self.beginning = b""
        self.body: list[bytes] | None = [] if call.keep else None
        self.size = 0
        self.window = 0
        """Bytes received that the server has not been given leave for again."""
        self.wire: memoryview | None = None
        """What of the request had no room in the server's windows."""
        self.rest = 0
        """Bytes that this stream's window has left; counted only while `wire` is set."""


class Connection(asyncio.Protocol):
    """Streams with one call each. Calls wait here while the server allows no more streams."""

    def __init__(self, client: Http2Client, index: int) -> None:
        self.client = client
        self.index = index
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the server has sent its settings."""
        self.usable = False
        self.transport: Any = None
        self._streams: dict[int, _Stream] = {}
        self._queue: deque[Call] = deque()
        self._blocked: deque[int] = deque()
        """Streams whose requests are not wholly sent."""
        self._next = 1
        self._buffer = b""
        self._heads = h2.Heads()
        self._block: tuple[int, int, bytes] | None = None
        """A header block whose end is still to come: stream, flags, beginning."""
        self._table = h2.DEFAULT_TABLE
        self._blocks = client.blocks(self._table)
        self._most = 2**31
        self._initial = h2.DEFAULT_WINDOW
        self._frame = h2.DEFAULT_FRAME
        self._window = h2.DEFAULT_WINDOW
        self._received = 0

    # --- calls

    def send(self, call: Call) -> None:
        """Writes the request, as much as the server's windows have room for."""
        if len(self._streams) >= self._most:
            self._queue.append(call)
            call.via = self
            return
        stream_id = self._next
        self._next += 2
        if stream_id >= _LAST_STREAM:
            self._retire()
        stream = self._streams[stream_id] = _Stream(call)
        call.via, call.stream = self, stream_id
        client = self.client
        number = call.number % len(client.messages)
        message = client.messages[number]
        blocks = self._blocks
        block = blocks.first(number) if stream_id == 1 else blocks.later(number)
        size = len(message)
        call.left = _now()
        if size <= self._window and size <= self._initial and size <= self._frame >= len(block):
            self._window -= size
            head = h2.frame(h2.HEADERS, h2.END_HEADERS, stream_id, block)
            self.transport.write(head + h2.frame(h2.DATA, h2.END_STREAM, stream_id, message))
            return
        self._write_block(stream_id, block)
        stream.wire, stream.rest = memoryview(message), self._initial
        self._blocked.append(stream_id)
        self._push(stream_id, stream)

    def cancel(self, call: Call) -> None:
        """Resets the call's stream."""
        stream = self._streams.get(call.stream)
        if stream is not None and stream.call is call:
            del self._streams[call.stream]
            self._reset(call.stream)
            self._take_next()

    def drop(self) -> None:
        """Ends the connection; calls on it are lost."""
        self.usable = False
        if self.transport is not None:
            self.transport.abort()

    def _write_block(self, stream_id: int, block: bytes) -> None:
        kind, size = h2.HEADERS, self._frame
        for at in range(0, len(block), size):
            flags = h2.END_HEADERS if at + size >= len(block) else 0
            self.transport.write(h2.frame(kind, flags, stream_id, block[at : at + size]))
            kind = h2.CONTINUATION

    def _push(self, stream_id: int, stream: _Stream) -> bool:
        """Writes what there is room for. Returns whether the connection has room for more."""
        wire = stream.wire
        while wire is not None:
            room = min(self._window, stream.rest, self._frame, len(wire))
            if room <= 0 and len(wire):
                return self._window > 0
            part, wire = bytes(wire[:room]), wire[room:]
            if not len(wire):
                wire = None
            flags = 0 if wire is not None else h2.END_STREAM
            self._window -= room
            stream.rest -= room
            stream.wire = wire
            self.transport.write(h2.frame(h2.DATA, flags, stream_id, part))
        return True

    def _unblock(self) -> None:
        for _ in range(len(self._blocked)):
            stream_id = self._blocked.popleft()
            stream = self._streams.get(stream_id)
            if stream is None or stream.wire is None:
                continue
            more = self._push(stream_id, stream)
            if stream.wire is not None:
                self._blocked.append(stream_id)
            if not more:
                return

    def _take_next(self) -> None:
        while self._queue and len(self._streams) < self._most:
            call = self._queue.popleft()
            if call.ended:
                continue
            if self.usable:
                self.send(call)
            else:
                self.client.send(call)

    # --- what comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._settled(BenchError("it speaks no HTTP/2 over TLS (ALPN)"))
            return
        values = ((h2.ENABLE_PUSH, 0), (h2.INITIAL_WINDOW, WINDOW))
        more = h2.window_update(0, CONNECTION_WINDOW - h2.DEFAULT_WINDOW)
        self.transport.write(h2.PREFACE + h2.settings(values) + more)

    def _settled(self, error: Exception | None = None) -> None:
        if self.ready.done():
            return
        if error is None:
            self.usable = True
            self.ready.set_result(None)
        else:
            self.ready.set_exception(error)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        at, end = 0, len(data)
        try:
            while end - at >= 9:
                high, low, kind, flags, stream_id = h2.unpack_head(data, at)
                size = high << 8 | low
                stop = at + 9 + size
                if size > h2.DEFAULT_FRAME:
                    raise ValueError(f"a frame of {size} bytes")
                if kind != h2.SETTINGS and not self.ready.done():
                    raise ValueError("the first frame is not SETTINGS")
                if stop > end:
                    break
                self._frame_received(kind, flags, stream_id & 0x7FFFFFFF, data[at + 9 : stop])
                at = stop
        except (ValueError, IndexError, struct.error, HPACKError) as error:
            self._settled(BenchError(f"it does not answer in HTTP/2: {error}"))
            self._end_all(PROTOCOL, str(error))
            self.drop()
            return
        self._buffer = data[at:] if at < end else b""

    def _frame_received(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != h2.CONTINUATION:
            raise ValueError("a frame amid a header block")
        if kind == h2.DATA:
            self._data(flags, stream_id, payload)
        elif kind == h2.HEADERS:
            payload = h2.unpadded(flags, payload)
            if flags & h2.PRIORITY:
                payload = payload[5:]
            self._headers(flags, stream_id, payload)
        elif kind == h2.CONTINUATION:
            if self._block is None:
                raise ValueError("CONTINUATION without HEADERS")
            before, first, beginning = self._block
            if before != stream_id or len(beginning) > MAX_BLOCK:
                raise ValueError("CONTINUATION that continues nothing")
            self._block = None
            flags = flags & h2.END_HEADERS | first & h2.END_STREAM
            self._headers(flags, stream_id, beginning + payload)
        elif kind == h2.WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            self._more_room(stream_id, more & 0x7FFFFFFF)
        elif kind == h2.RST_STREAM:
            (code,) = struct.unpack(">I", payload)
            self._reset_by_server(stream_id, code)
        elif kind == h2.SETTINGS:
            if not flags & h2.ACK:
                self._settings(payload)
        elif kind == h2.PING:
            if not flags & h2.ACK:
                self.transport.write(h2.frame(h2.PING, h2.ACK, 0, payload))
        elif kind == h2.GOAWAY:
            (last,) = struct.unpack_from(">I", payload)
            self._going_away(last & 0x7FFFFFFF)
        elif kind == h2.PUSH_PROMISE:
            raise ValueError("PUSH_PROMISE was forbidden")

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        stream = self._streams.get(stream_id)
        if stream is None:  # cancelled
            self._refill(size)
            return
        self._refill(size)
        data = h2.unpadded(flags, payload)
        stream.size += len(data)
        if len(stream.beginning) < BEGINNING:
            stream.beginning += data[: BEGINNING - len(stream.beginning)]
        if stream.body is not None:
            stream.body.append(data)
        if flags & h2.END_STREAM:
            self._finish(stream_id, stream, h2.Head("", "", "", ""))
            return
        stream.window += size
        if stream.window > WINDOW // 2:
            self.transport.write(h2.window_update(stream_id, stream.window))
            stream.window = 0

    def _refill(self, size: int) -> None:
        """Gives the connection's window back what was received."""
        self._received += size
        if self._received > CONNECTION_WINDOW // 4:
            self.transport.write(h2.window_update(0, self._received))
            self._received = 0

    def _headers(self, flags: int, stream_id: int, block: bytes) -> None:
        if not flags & h2.END_HEADERS:
            self._block = stream_id, flags, block
            return
        head = self._heads.read(block)  # also of a stream that is over: the table goes on
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if flags & h2.END_STREAM:
            self._finish(stream_id, stream, head)
        elif stream.head is None and not head.http.startswith("1"):
            stream.head = head

    def _finish(self, stream_id: int, stream: _Stream, last: h2.Head) -> None:
        """The answer is whole: `last` are its trailers, or its headers if there is nothing else."""
        del self._streams[stream_id]
        if stream.wire is not None:  # answered before it was asked
            stream.wire = None
            self._reset(stream_id)
        first = stream.head or last
        outcome = _outcome(first, last, stream)
        version = last.version or first.version
        if not version and not outcome:
            version = proto_version(stream.beginning[5:])
        text = b""
        if stream.body is not None:
            text = (last.message or first.message).encode() if outcome else b"".join(stream.body)
            text = text if outcome else text[5:]
        call = stream.call
        if self._queue:
            self._take_next()
        if not self.usable and not self._streams:
            self.drop()
        self.client.done(call, outcome, version, text)

    def _more_room(self, stream_id: int, more: int) -> None:
        if stream_id == 0:
            self._window += more
        else:
            stream = self._streams.get(stream_id)
            if stream is None or stream.wire is None:
                return
            stream.rest += more
        if self._blocked:
            self._unblock()

    def _settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == h2.MAX_STREAMS:
                self._most = value
            elif name == h2.MAX_FRAME:
                self._frame = value
            elif name == h2.INITIAL_WINDOW:
                for stream in self._streams.values():
                    stream.rest += value - self._initial
                self._initial = value
            elif name == h2.TABLE_SIZE and self._next == 1:
                self._blocks = self.client.blocks(value)
                self._table = value
            elif name == h2.TABLE_SIZE and value < min(self._table, h2.DEFAULT_TABLE):
                self._retire()  # a new connection has the new table
        self.transport.write(h2.frame(h2.SETTINGS, h2.ACK, 0))
        self._settled()
        self._unblock()
        self._take_next()

    # --- ends

    def _reset(self, stream_id: int) -> None:
        code = h2.CANCEL.to_bytes(4, "big")
        self.transport.write(h2.frame(h2.RST_STREAM, 0, stream_id, code))

    def _reset_by_server(self, stream_id: int, code: int) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        self._take_next()
        if code == h2.REFUSED_STREAM and self.client.again(stream.call):
            return
        self.client.done(stream.call, RESETS.get(code, "INTERNAL"), "", b"stream reset")

    def _retire(self) -> None:
        """No further call; those under way go on."""
        self.usable = False
        self.client.lost(self)

    def _going_away(self, last: int) -> None:
        self._retire()
        for stream_id in [each for each in self._streams if each > last]:
            stream = self._streams.pop(stream_id)
            if not self.client.again(stream.call):
                self.client.done(stream.call, "UNAVAILABLE", "", b"the server goes away")
        queue, self._queue = self._queue, deque()
        for call in queue:
            if not call.ended:
                self.client.send(call)
        if not self._streams:
            self.drop()

    def _end_all(self, outcome: str, text: str) -> None:
        self._retire()
        streams, self._streams = self._streams, {}
        calls = [stream.call for stream in streams.values()]
        calls += [call for call in self._queue if not call.ended]
        self._queue.clear()
        for call in calls:
            self.client.done(call, outcome, "", text.encode())

    def connection_lost(self, error: Exception | None) -> None:
        self._settled(BenchError(str(error or "the connection was closed")))
        self._end_all(CONNECTION, str(error or "closed"))


def _outcome(first: h2.Head, last: h2.Head, stream: _Stream) -> str:
    """Empty: answered well."""
    status = last.grpc or first.grpc
    if not status:
        return first.http if first.http not in ("", "200") else "UNKNOWN"
    if status != "0":
        known = status.isdecimal() and int(status) < len(CODES)
        return CODES[int(status)] if known else "UNKNOWN"
    size = int.from_bytes(stream.beginning[1:5], "big")
    return "" if len(stream.beginning) >= 5 and size == stream.size - 5 else PROTOCOL
