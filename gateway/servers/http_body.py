"""Large bodies of a known length go from the socket straight into the place where they stay.

The parser would have each byte copied twice more, and the tensors lie wherever its pieces put
them: a runtime that needs them aligned would copy them again.
"""

from __future__ import annotations

import asyncio
import mmap
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gateway.errors import SluiceError

if TYPE_CHECKING:
    from gateway.servers.http_call import Exchange
    from gateway.servers.http_protocol import SluiceHttpProtocol

LARGE: Final = 262_144
"""Bytes from which a body gets a room of its own."""
ALIGNED: Final = 64
"""The first tensor's address is a multiple of this, as in memory that numpy or a runtime took."""
MOST_AT_ONCE: Final = 1 << 20
"""Bytes of one read. uvloop reads on in the same turn, up to 32 times, for as long as each read is
full: others wait for so many at most, while a sender is as fast as we are."""
MAPPED: Final = 1 << 23
"""Bytes from which a room is mapped by itself."""
_PAGE: Final = 1 << 21
"""Bytes of a huge page: as many may be in memory with the first byte of them."""


def _block(size: int) -> npt.NDArray[np.uint8]:
    """Memory whose pages are taken as they are written to. Raises `MemoryError`."""
    if size < MAPPED or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, np.uint8)
    # Not on the heap, where a small block in the hole that it leaves would make the next one of
    # its size grow the heap. Huge pages, or touching fresh ones would take longer than reading.
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        raise MemoryError from None
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


class Room:
    """Memory for one body: `length` bytes, the first `head` of them before the tensors."""

    __slots__ = ("_view", "filled")

    def __init__(self, length: int, head: int) -> None:
        block = _block(length + ALIGNED)
        start = -(block.ctypes.data + head) % ALIGNED
        self._view = block.data[start : start + length]
        self.filled = 0

    def add(self, chunk: bytes) -> None:
        """The next bytes, from elsewhere."""
        start = self.filled
        self.filled = start + len(chunk)
        self._view[start : self.filled] = chunk

    def rest(self) -> memoryview:
        """Where the next bytes belong."""
        return self._view[self.filled :]

    @property
    def held(self) -> int:
        """Bytes of memory that the filled part may take."""
        return min(-(-self.filled // _PAGE) * _PAGE, len(self._view))

    @property
    def full(self) -> bool:
        return self.filled == len(self._view)

    def whole(self) -> memoryview:
        """The body. Nothing writes to it any more: it is there for as long as somebody reads."""
        return self._view.toreadonly()


class BodyReader(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol until the body that has begun is in its room."""

    def __init__(self, protocol: SluiceHttpProtocol, exchange: Exchange, room: Room) -> None:
        self._protocol = protocol
        self._exchange = exchange
        self._room = room

    def begin(self) -> None:
        """From here on the transport gives what it reads to this reader."""
        self._give_to(self)

    def _give_to(self, protocol: asyncio.BaseProtocol) -> None:
        transport = self._protocol.transport
        # A transport looks at the kind of its protocol when it begins to read.
        reads = not (transport.is_closing() or self._protocol.flow.read_paused)
        if reads:
            transport.pause_reading()
        transport.set_protocol(protocol)
        if reads:
            transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room.rest()[:MOST_AT_ONCE]

    def buffer_updated(self, nbytes: int) -> None:
        protocol = self._protocol
        if protocol.exchange is not self._exchange:
            self._give_to(protocol)  # refused meanwhile: nobody looks at the rest
            return
        self._room.filled += nbytes
        try:
            self._exchange.count()
        except SluiceError as error:
            self._give_to(protocol)
            protocol.refuse(error)
            return
        if self._room.full:
            self._give_to(protocol)
            protocol.body_read()

    def eof_received(self) -> None:
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
