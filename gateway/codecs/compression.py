"""gzip and deflate, both ways, never growing beyond what is allowed."""

from __future__ import annotations

import zlib
from typing import Final

from gateway.errors import InvalidRequest, RequestTooLarge, Unsupported, printable
from gateway.tensors import Buffer

ENCODINGS: Final = ("gzip", "deflate")
_AUTO: Final = 32 + zlib.MAX_WBITS
"""zlib's own word for: gzip or zlib, find out."""
_LEVEL: Final = 1


def decompress(body: Buffer, encoding: str, limit: int) -> bytes:
    """The body without its content encoding.

    Raises `Unsupported` for an unknown or a stacked encoding, `RequestTooLarge` as soon as
    more than `limit` bytes come out, `InvalidRequest` for broken data.
    """
    name = encoding.strip().lower()
    if name not in ENCODINGS:
        raise Unsupported(
            f"Content-Encoding '{printable(encoding)}' is not supported; use gzip or deflate, once"
        )
    engine = zlib.decompressobj(_AUTO)
    try:
        try:
            data = engine.decompress(body, limit + 1)
        except zlib.error:
            if name != "deflate":
                raise
            # Some senders mean raw deflate, without zlib's head.
            engine = zlib.decompressobj(-zlib.MAX_WBITS)
            data = engine.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not {name}: {error}") from None
    if len(data) > limit:
        raise RequestTooLarge(
            f"the body grows beyond limits.max_message_bytes = {limit} when it is decompressed"
        )
    if not engine.eof:
        raise InvalidRequest(f"the {name} body is truncated")
    if engine.unused_data:
        raise InvalidRequest(f"the {name} body has bytes behind its end")
    return data


def accepted(header: str) -> str | None:
    """The encoding to answer with, from an ``Accept-Encoding`` header."""
    best: str | None = None
    best_quality = 0.0
    for part in header.lower().split(","):
        name, _, parameters = part.strip().partition(";")
        name = name.strip()
        if name not in ENCODINGS:
            continue
        quality = 1.0
        if parameters.strip().startswith("q="):
            try:
                quality = float(parameters.strip()[2:])
            except ValueError:
                quality = 0.0
        if quality > best_quality:
            best, best_quality = name, quality
    return best


def compress(body: bytes, encoding: str) -> bytes:
    """`body` as gzip or deflate (zlib's format), at the quickest level."""
    wbits = 16 + zlib.MAX_WBITS if encoding == "gzip" else zlib.MAX_WBITS
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, wbits)
    return engine.compress(body) + engine.flush()
