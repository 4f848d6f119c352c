"""Small messages between gateway and child over a Unix socket, and file descriptors with them.

What is sent during one turn of the event loop goes out as one frame: `<u32 length>` and a
MessagePack list of the blocks that are no longer looked at, and of messages.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.isolation.memory import Incoming

Message = tuple[Any, ...]
_LENGTH: Final = struct.Struct("<I")
_READ: Final = 1 << 16
_READS_A_TURN: Final = 16
_MOST_FDS: Final = 16
_MOST_BYTES: Final = 1 << 28
_CLOEXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
RELEASE_SECONDS: Final = 0.02
"""After this long without a message, the other side is told of released blocks all the same."""


class BadFrame(Exception):
    """The other side wrote something that is no frame."""


class Channel:
    """One end. Owned by the event loop, but for `incoming.released`.

    `on_messages` gets the blocks that the other side has released, and its messages;
    `on_closed` is called once, when it is gone, with what was wrong if something was.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: socket.socket,
        on_messages: Callable[[list[int], list[list[Any]]], object],
        on_closed: Callable[[str], object],
    ) -> None:
        end.setblocking(False)
        self.incoming = Incoming()
        self.fds: deque[int] = deque()
        """Descriptors that came, in the order of the messages that they belong to."""
        self.sent = self.received = 0
        """Bytes."""
        self.on_drained: Callable[[], object] | None = None
        self._loop = loop
        self._end = end
        self._fd = end.fileno()
        self._on_messages = on_messages
        self._on_closed = on_closed
        self._messages: list[msgspec.Raw] = []
        self._sending_fds: list[int] = []
        self._flush_due = False
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._pieces = bytearray()
        self._buffer = bytearray(_READ)
        self._view = memoryview(self._buffer)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder()
        self._closed = False
        self._release_timer: asyncio.TimerHandle | None = None
        loop.add_reader(self._fd, self._readable)

    @property
    def blocked(self) -> bool:
        """Whether the other side does not read what was sent."""
        return bool(self._unsent)

    # --- out

    def send(self, message: Message, fd: int | None = None) -> None:
        """Sends a message at the end of this turn of the loop; the descriptor is copied now.

        Raises `TypeError`, `ValueError` or `OverflowError` for what cannot be written down.
        """
        if self._closed:
            return  # nobody is left to hear it, or to close a copied descriptor
        # Written down here, so that whatever is wrong with it harms no other message.
        self._messages.append(msgspec.Raw(self._encoder.encode(message)))
        if fd is not None:
            self._sending_fds.append(os.dup(fd))
            if len(self._sending_fds) == _MOST_FDS:
                self.flush()
                return
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Sends what there is now."""
        released = self.incoming.take_released()
        messages = self._messages
        if self._closed or not (messages or released):
            return
        self._messages = []
        fds, self._sending_fds = self._sending_fds, []
        payload = self._encoder.encode((released, messages))
        frame = memoryview(_LENGTH.pack(len(payload)) + payload)
        self.sent += len(frame)
        if self._unsent:
            self._unsent.append((frame, fds))
            return
        rest = self._write(frame, fds)
        if rest is not None:
            self._unsent.append(rest)
            self._loop.add_writer(self._fd, self._writable)

    def _write(self, frame: memoryview, fds: list[int]) -> tuple[memoryview, list[int]] | None:
        """What of it was not sent; `None` if all was."""
        try:
            if fds:
                rights = array.array("i", fds)
                count = self._end.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                for fd in fds:
                    os.close(fd)
                fds = []
            else:
                count = self._end.send(frame)
        except (BlockingIOError, InterruptedError):
            return frame, fds
        except OSError:
            # The other side is gone; the reader hears of it too.
            for fd in fds:
                os.close(fd)
            return None
        return (frame[count:], fds) if count < len(frame) else None

    def _writable(self) -> None:
        while self._unsent:
            rest = self._write(*self._unsent[0])
            if rest is not None:
                self._unsent[0] = rest
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._fd)
        if self.on_drained is not None:
            self.on_drained()

    def release_later(self) -> None:
        """Sees to it that released blocks are told of, although nothing else may be sent."""
        if self._release_timer is None and not self._closed:
            self._release_timer = self._loop.call_later(RELEASE_SECONDS, self._release)

    def _release(self) -> None:
        self._release_timer = None
        self.flush()
        if len(self.incoming):
            self.release_later()

    # --- in

    def _readable(self) -> None:
        for _ in range(_READS_A_TURN):
            if self._closed or self._read() < _READ:
                return

    def _read(self) -> int:
        """How many bytes came; 0 when there is nothing, or nothing any more."""
        try:
            count, extra, _, _ = self._end.recvmsg_into(
                [self._buffer], socket.CMSG_SPACE(4 * _MOST_FDS), _CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # The other side ended without having read everything.
            self._lost("")
            return 0
        for level, kind, data in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self.fds.extend(fds)
        if not count:
            self._lost("")
            return 0
        self.received += count
        try:
            self._take(self._view[:count])
        except Exception as error:
            self._lost(f"{type(error).__name__}: {error}")
            return 0
        return count

    def _take(self, data: memoryview) -> None:
        pieces = self._pieces
        if pieces:
            pieces += data
            data = memoryview(bytes(pieces))
        at = 0
        end = len(data)
        while end - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > _MOST_BYTES:
                raise BadFrame(f"a frame of {length} bytes")
            stop = at + 4 + length
            if stop > end:
                break
            released, messages = self._decoder.decode(data[at + 4 : stop])
            at = stop
            self._on_messages(released, messages)
            if self._closed:
                return
        self._pieces = bytearray(data[at:])

    def read_rest(self) -> None:
        """Takes what came before the other side ended."""
        while not self._closed and self._read():
            pass

    def _lost(self, why: str) -> None:
        if not self._closed:
            self.close()
            self._on_closed(why)

    def close(self) -> None:
        """Lets go of the socket and of all memory of the other side's."""
        if self._closed:
            return
        self._closed = True
        if self._release_timer is not None:
            self._release_timer.cancel()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        self._end.close()
        for fd in (*self.fds, *self._sending_fds, *[fd for _, fds in self._unsent for fd in fds]):
            os.close(fd)
        self.fds.clear()
        self._sending_fds.clear()
        self._unsent.clear()
        self.incoming.close()
