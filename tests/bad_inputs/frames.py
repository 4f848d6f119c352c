"""HTTP/2 by the frame, to say what no library would."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Final, Self

from tests.bad_inputs.attack import PATIENCE, Served

DATA: Final = 0
HEADERS: Final = 1
RST_STREAM: Final = 3
SETTINGS: Final = 4
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9
END_STREAM: Final = 1
END_HEADERS: Final = 4
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )


def header(name: bytes, value: bytes) -> bytes:
    """A header as HPACK's literal without indexing."""
    return b"\0" + number(len(name)) + name + number(len(value)) + value


def number(value: int) -> bytes:
    if value < 127:
        return bytes((value,))
    out = bytearray(b"\x7f")
    value -= 127
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    out.append(value)
    return bytes(out)


def head(method: str = "ModelInfer", *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call."""
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"gateway"),
        (b":path", b"/inference.GRPCInferenceService/" + method.encode()),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more,
    ]  # fmt: skip
    return b"".join(header(name, value) for name, value in fields)


def grpc_frame(message: bytes, flag: int = 0) -> bytes:
    """A message with gRPC's five bytes in front."""
    return bytes((flag,)) + struct.pack(">I", len(message)) + message


class Http2:
    """One connection. What cannot be sent because the other side closed is dropped."""

    def __init__(self, served: Served, *, greet: bool = True) -> None:
        self.sock = socket.create_connection(served.grpc, PATIENCE)
        if greet:
            self.send(PREFACE + frame(SETTINGS, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> bool:
        """Whether the connection is still open as far as we can see."""
        try:
            self.sock.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            return False

    def flood(self, data: bytes, times: int, seconds: float = 3.0) -> bool:
        """Sends over and over, reading nothing but what must be read to go on."""
        self.sock.settimeout(seconds)
        for _ in range(times):
            if not self.send(data):
                return False
            self.sock.setblocking(False)
            with suppress(BlockingIOError, ConnectionResetError):
                while self.sock.recv(1 << 16):
                    pass
            self.sock.settimeout(seconds)
        return True

    def read(self, seconds: float = 10.0) -> bytes:
        """What comes until a stream ends, the other side closes or the time is over."""
        self.sock.settimeout(seconds)
        got = b""
        with suppress(TimeoutError, ConnectionResetError):
            while data := self.sock.recv(1 << 16):
                got += data
                if ended(got):
                    break
        return got


def ended(data: bytes) -> bool:
    """Whether these frames end a stream or the connection."""
    at = 0
    while at + 9 <= len(data):
        length = int.from_bytes(data[at : at + 3], "big")
        kind, flags = data[at + 3], data[at + 4]
        if kind in (RST_STREAM, GOAWAY) or (kind in (DATA, HEADERS) and flags & END_STREAM):
            return True
        at += 9 + length
    return False
