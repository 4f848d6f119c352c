"""Frames between the gateway and its processes: a small pickle, and large buffers beside it.

One end parses what strangers send. So neither takes more than data of the types that are listed
here, and a frame that does not bear the number that is next ends the connection.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from functools import partial
from types import FunctionType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from gateway.tensors import BYTES, Array, Buffer, Shape, datatype, datatype_of, objects

BESIDE: Final = 65536
"""Bytes from which a buffer is not part of the pickle."""
TYPES: Final = frozenset(
    (
        ("gateway.apart.wire", "_array"),
        ("gateway.apart.wire", "_strings"),
        ("gateway.apart.wire", "_settings"),
        ("gateway.codecs.oip_rest", "BINARY_ANSWER"),
        ("gateway.codecs.oip_rest", "JSON_ANSWER"),
        ("gateway.codecs.oip_rest", "_answer_form"),
        ("gateway.config", "LimitsConfig"),
        ("gateway.contract", "Contract"),
        ("gateway.tensors", "InferenceRequest"),
        ("gateway.tensors", "InferenceResponse"),
        ("gateway.tensors", "Tensor"),
        ("gateway.tensors", "TensorSpec"),
        ("gateway.tensors", "datatype"),
    )
)
"""What may be sent, beside numbers, strings, bytes, tuples, lists and dicts."""
_HEAD: Final = struct.Struct("<QQQI")
"""The frame's number, its bytes behind the head, those of the pickle, the number of buffers."""
_SIZE: Final = struct.Struct("<Q?")
_BUFFERS: Final = (bytes, bytearray, memoryview)


class OutOfStep(Exception):
    """What came is no frame, or not the next one."""


class Frame(NamedTuple):
    """What was received, as yet unread."""

    text: bytes
    beside: list[tuple[Any, bool]]


# --- out


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        self.beside: list[tuple[Buffer, bool]] = []
        """Buffers, and whether the other side may write into its copy."""
        # A method of ours would make a circle, which keeps the buffers until somebody collects.
        super().__init__(file, protocol=5, buffer_callback=partial(_buffer_beside, self.beside))

    def persistent_id(self, thing: Any) -> int | None:
        """Bytes beside the pickle; they arrive as `bytes`."""
        if type(thing) not in _BUFFERS or (type(thing) is not memoryview and len(thing) < BESIDE):
            return None
        self.beside.append((thing, False))
        return len(self.beside) - 1

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is np.ndarray:
            return _reduced(thing)
        if isinstance(thing, msgspec.Struct):
            return _settings, (type(thing), msgspec.structs.asdict(thing))
        return NotImplemented


def _buffer_beside(beside: list[tuple[Buffer, bool]], buffer: pickle.PickleBuffer) -> bool:
    """Whether the array's bytes stay in the pickle."""
    raw = buffer.raw()
    if len(raw) < BESIDE:
        return True
    beside.append((raw, True))
    return False


def _reduced(array: Array) -> tuple[Any, ...]:
    """An array as its datatype, shape and bytes; numpy's own way takes any type there is."""
    kind = datatype_of(array)
    if kind is BYTES:  # whatever a model put there: it is written as its text
        elements = [
            bytes(each) if isinstance(each, bytes) else str(each) for each in array.ravel().tolist()
        ]
        return _strings, (elements, array.shape)
    plain = np.ascontiguousarray(array, kind.dtype).reshape(-1).view(np.uint8)
    return _array, (kind.name, array.shape, pickle.PickleBuffer(plain.data))


def packed(number: int, thing: object) -> list[Buffer]:
    """A frame in pieces. Raises whatever pickling raises."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(thing)
    text = file.getbuffer()
    sizes = [(memoryview(each).nbytes, writes) for each, writes in pickler.beside]
    rest = len(sizes) * _SIZE.size + len(text) + sum(size for size, _ in sizes)
    head = _HEAD.pack(number, rest, len(text), len(sizes))
    table = [_SIZE.pack(*each) for each in sizes]
    return [b"".join([head, *table]), text, *(each for each, _ in pickler.beside)]


def send(sock: socket.socket, pieces: list[Buffer]) -> None:
    """Raises `OSError`."""
    for each in pieces:
        sock.sendall(each)


# --- in


class _Unpickler(pickle.Unpickler):
    def __init__(self, frame: Frame, package: str | None) -> None:
        writable = [buffer for buffer, may_write in frame.beside if may_write]
        super().__init__(io.BytesIO(frame.text), buffers=writable)
        self._beside = frame.beside
        self._package = package

    def persistent_load(self, place: int) -> Any:
        return self._beside[place][0]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in TYPES:
            return super().find_class(module, name)
        if self._package is not None and module.startswith(self._package) and name.isidentifier():
            found = super().find_class(module, name)
            if type(found) is FunctionType and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} cannot be sent")


def receive(sock: socket.socket, number: int) -> Frame:
    """The frame `number`; waits for it, and reads all of it.

    Raises `EOFError` if the other side has ended, `OSError` and `OutOfStep`; whatever it raises,
    nothing may be read from the socket any more.
    """
    got, rest, length, count = _HEAD.unpack(_bytes(sock, _HEAD.size))
    if got != number or length + count * _SIZE.size > rest:
        raise OutOfStep
    sizes = list(_SIZE.iter_unpack(_bytes(sock, count * _SIZE.size)))
    if length + count * _SIZE.size + sum(size for size, _ in sizes) != rest:
        raise OutOfStep
    text = _bytes(sock, length)
    return Frame(
        text, [(_room(sock, n) if writes else _bytes(sock, n), writes) for n, writes in sizes]
    )


def load(frame: Frame, package: str | None = None) -> Any:
    """What is in a frame. Functions are taken from the modules that begin with `package` alone.

    Raises `pickle.UnpicklingError` for all that is not listed, and anything for nonsense.
    """
    return _Unpickler(frame, package).load()


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


def _room(sock: socket.socket, size: int) -> Any:
    """The same where it may be written to."""
    data = np.empty(size, np.uint8)  # a bytearray would be filled with zeros first
    left = data.data
    while left:
        count = sock.recv_into(left)
        if not count:
            raise EOFError
        left = left[count:]
    return data


def _array(kind: str, shape: Shape, buffer: Any) -> Array:
    return np.frombuffer(buffer, datatype(kind).dtype).reshape(shape)


def _strings(elements: list[bytes], shape: Shape) -> Array:
    return objects(elements, shape)


def _settings(section: type, values: dict[str, Any]) -> Any:
    return section(**values)
