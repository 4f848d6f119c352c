"""MLflow's answers over HTTP, within bounds of time and size."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec

from gateway.errors import RegistryError, printable

MOST_OF_ERROR: Final = 64 << 10
"""Bytes of an error's body that are read."""


class Deadline:
    """Hangs up when its block takes longer than so many seconds: bounds of single reads are no
    bound for a server that sends a byte now and then.

    `trace` goes into the request's extensions. The connection must be a new one.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._socket = None

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Hears from httpx what is going on."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        with self._lock:
            self._socket = info["return_value"].get_extra_info("socket")
            if self.over:
                self._hang_up()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own, which takes from the reader what it is reading with.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def whole(answer: httpx.Response, name: str, most: int) -> bytes:
    """The body. Raises `RegistryError` before there is too much of it."""
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > most:
            raise RegistryError(f"{name} answered with more than {most >> 20} MiB")
    return bytes(body)


def head(answer: httpx.Response) -> bytes:
    """The body of an error, or its beginning."""
    body = bytearray()
    try:
        for piece in answer.iter_bytes():
            body += piece
            if len(body) >= MOST_OF_ERROR:
                break
    except (httpx.HTTPError, httpx.StreamError):
        pass  # the status says enough
    return bytes(body[:MOST_OF_ERROR])


def reason(content: bytes) -> str:
    """What an error's body says, if it is MLflow's."""
    try:
        said = msgspec.json.decode(content)["message"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return ""
    return f": {printable(said, 300)}"


def text_at(document: Any, *path: str) -> str:
    """A text in a document. Raises `RegistryError` where there is none."""
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    if not isinstance(document, str) or not document:
        raise RegistryError(
            f"MLflow's answer has no '{'.'.join(path)}'; is it MLflow 2.3 or newer?"
        )
    return document
