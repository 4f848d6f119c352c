"""Python objects over a socket, large buffers beside them so that nobody copies those.

Both ends are the same program, of which one has started the other.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from functools import partial
from typing import Any, Final

import numpy as np

from gateway.tensors import Buffer

BESIDE: Final = 65536
"""Bytes from which a buffer is not part of the pickle."""
_HEAD: Final = struct.Struct("<QI")
_SIZE: Final = struct.Struct("<Q?")
_BUFFERS: Final = (bytes, bytearray, memoryview)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        self.beside: list[tuple[Buffer, bool]] = []
        """Buffers, and whether the other side may write into its copy."""
        # A method of ours would make a circle, which keeps the buffers until somebody collects.
        super().__init__(file, protocol=5, buffer_callback=partial(_array_beside, self.beside))

    def persistent_id(self, thing: Any) -> int | None:
        """Bytes beside the pickle; they arrive as `bytes`."""
        if type(thing) not in _BUFFERS or (type(thing) is not memoryview and len(thing) < BESIDE):
            return None
        self.beside.append((thing, False))
        return len(self.beside) - 1


def _array_beside(beside: list[tuple[Buffer, bool]], buffer: pickle.PickleBuffer) -> bool:
    """Whether the array's bytes stay in the pickle."""
    raw = buffer.raw()
    if len(raw) < BESIDE:
        return True
    beside.append((raw, True))
    return False


class _Unpickler(pickle.Unpickler):
    def __init__(self, text: bytes, beside: list[tuple[Any, bool]]) -> None:
        writable = [buffer for buffer, may_write in beside if may_write]
        super().__init__(io.BytesIO(text), buffers=writable)
        self._beside = beside

    def persistent_load(self, place: int) -> Any:
        return self._beside[place][0]


def send(sock: socket.socket, thing: object) -> None:
    """Raises `OSError`, and whatever pickling raises before anything is sent."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(thing)
    text = file.getbuffer()
    sizes = [_SIZE.pack(memoryview(each).nbytes, writes) for each, writes in pickler.beside]
    sock.sendall(b"".join([_HEAD.pack(len(text), len(sizes)), *sizes]))
    sock.sendall(text)
    for each, _ in pickler.beside:
        sock.sendall(each)


def receive(sock: socket.socket) -> Any:
    """What the other side sent; waits for it. Raises `EOFError` if it has ended, or `OSError`."""
    length, count = _HEAD.unpack(_bytes(sock, _HEAD.size))
    sizes = list(_SIZE.iter_unpack(_bytes(sock, count * _SIZE.size)))
    text = _bytes(sock, length)
    return _Unpickler(
        text, [(_array(sock, n) if writes else _bytes(sock, n), writes) for n, writes in sizes]
    ).load()


def _bytes(sock: socket.socket, size: int) -> bytes:
    """So many bytes, in most cases without a copy."""
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) == size:
        return data
    parts = [data]
    while size := size - len(parts[-1]):
        parts.append(sock.recv(size, socket.MSG_WAITALL))
        if not parts[-1]:
            raise EOFError
    return b"".join(parts)


def _array(sock: socket.socket, size: int) -> Any:
    data = np.empty(size, np.uint8)  # a bytearray would be filled with zeros first
    left = data.data
    while left:
        count = sock.recv_into(left)
        if not count:
            raise EOFError
        left = left[count:]
    return data
