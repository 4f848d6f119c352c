"""The head of an HTTP/1.1 answer."""

from __future__ import annotations

import http
from functools import lru_cache
from typing import Final

import orjson

from gateway.codecs.statuses import retry_after
from gateway.errors import SluiceError, text_of

JSON_TYPE: Final = b"application/json"
BINARY_TYPE: Final = b"application/octet-stream"
ERROR_TYPE: Final = JSON_TYPE


def _status_line(code: int) -> bytes:
    try:
        phrase = http.HTTPStatus(code).phrase
    except ValueError:
        phrase = "Client Closed Request" if code == 499 else ""
    return f"HTTP/1.1 {code} {phrase}\r\n".encode()


@lru_cache(64)
def _start(status: int, content_type: bytes) -> bytes:
    return _status_line(status) + b"content-type: " + content_type + b"\r\ncontent-length: "


@lru_cache(2048)
def route_headers(version: str, route: str) -> bytes:
    """Which version answered, and why."""
    return f"x-sluice-version: {version}\r\nx-sluice-route: {route}\r\n".encode()


def error_headers(error: SluiceError) -> bytes:
    """``Retry-After`` where trying again makes sense."""
    seconds = retry_after(error)
    return b"" if seconds is None else b"retry-after: %d\r\n" % seconds


def error_body(error: SluiceError) -> bytes:
    """The JSON of an error, in the one shape that all our routes have; never raises."""
    return orjson.dumps({"error": text_of(error)})


def head_of(status: int, length: int, content_type: bytes, extra: bytes = b"") -> bytes:
    """Status line and headers, up to and with the empty line."""
    return b"%s%d\r\n%s\r\n" % (_start(status, content_type), length, extra)
