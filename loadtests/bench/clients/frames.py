"""HTTP/2 as far as a client of unary calls needs it: frames, and header blocks both ways (RFC 9113,
RFC 7541)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hpack.table import HeaderTable

DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20

TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_STREAMS: Final = 3
INITIAL_WINDOW: Final = 4
MAX_FRAME: Final = 5

CANCEL: Final = 8
REFUSED_STREAM: Final = 7

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW: Final = 65535
DEFAULT_FRAME: Final = 16384
LARGEST_WINDOW: Final = 2**31 - 1

DEFAULT_TABLE: Final = 4096

MAX_CACHED: Final = 4096

_HEAD: Final = struct.Struct(">HBBBI")
unpack_head: Final = _HEAD.unpack_from
"""Length's upper two bytes, its last, kind, flags, stream."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in values))


def window_update(stream: int, more: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", more))


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a HEADERS or DATA frame without padding and priority. Raises `ValueError`."""
    if flags & PADDED:
        if not payload or payload[0] >= len(payload):
            raise ValueError("more padding than payload")
        payload = payload[1 : len(payload) - payload[0]]
    return payload


class Head(NamedTuple):
    """What a block of an answer's headers or trailers says; empty: nothing."""

    http: str
    grpc: str
    """``grpc-status``, a number as text."""
    message: str
    version: str


class _Table(HeaderTable):
    """Knows whether it has changed."""

    def __init__(self) -> None:
        self.changed = False
        super().__init__()

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)

    def _shrink(self) -> None:
        self.changed = True
        super()._shrink()


class Heads:
    """Reads the header blocks of a connection; one that was read before is not read again, as
    long as the table of the connection stays as it was."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._table = _Table()
        self._decoder.header_table = self._table
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """Raises `hpack.HPACKError`."""
        head = self._known.get(block)
        if head is not None:
            return head
        self._table.changed = False
        found = {}
        for name, value in self._decoder.decode(block, raw=True):
            found[bytes(name)] = bytes(value).decode("utf-8", "replace")
        head = Head(
            found.get(b":status", ""),
            found.get(b"grpc-status", ""),
            found.get(b"grpc-message", ""),
            found.get(b"x-sluice-version", ""),
        )
        if self._table.changed or len(self._known) >= MAX_CACHED:
            # A block that changes the table means something else the next time.
            self._known.clear()
        if not self._table.changed:
            self._known[block] = head
        return head


Header = tuple[str, str]


class RequestBlocks:
    """Header blocks of the requests, for connections whose server holds a table of `table_size`.

    What all requests have is put into the server's table by the first block of a connection, and
    is a few bytes in those after it, as with other clients. What only some have, or has no room in
    the table, is written out each time.
    """

    def __init__(self, requests: list[list[Header]], table_size: int) -> None:
        self._requests = requests
        self._size = min(table_size, DEFAULT_TABLE)
        common = frozenset(requests[0]).intersection(*requests[1:])
        if sum(len(name) + len(value) + 32 for name, value in common) > self._size:
            common = frozenset()
        self._common = common
        self._order = [each for each in requests[0] if each in common]
        self._firsts: dict[int, bytes] = {}
        encoder = self._encoder()
        self._encode(encoder, 0)
        self._later = [self._encode(encoder, number) for number in range(len(requests))]

    def first(self, number: int) -> bytes:
        """The block of request `number`, where it is the first of its connection."""
        block = self._firsts.get(number)
        if block is None:
            block = self._firsts[number] = self._encode(self._encoder(), number)
        return block

    def later(self, number: int) -> bytes:
        """The block of request `number`, after another."""
        return self._later[number]

    def _encoder(self) -> Encoder:
        encoder = Encoder()
        encoder.header_table_size = self._size
        return encoder

    def _encode(self, encoder: Encoder, number: int) -> bytes:
        request = self._requests[number]
        # Pseudo-headers come first; then what is shared, in one order for all.
        ordered = [each for each in request if each[0].startswith(":")]
        ordered += [each for each in self._order if not each[0].startswith(":")]
        ordered += [e for e in request if e not in self._common and not e[0].startswith(":")]
        return encoder.encode(
            HeaderTuple(*each) if each in self._common else NeverIndexedHeaderTuple(*each)
            for each in ordered
        )
