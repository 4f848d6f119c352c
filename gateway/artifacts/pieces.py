"""Parts of files: which header asks for one, and what of the answer is wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from gateway.errors import FetchError

RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def range_header(start: int) -> dict[str, str]:
    """Asks for everything from byte `start` on."""
    return {"range": f"bytes={start}-"} if start else {}


def rest_of(
    pieces: Iterable[bytes], status: int, headers: Mapping[str, str], start: int, where: str
) -> Iterator[bytes]:
    """What is wanted of an answer's body, from byte `start` of the file on, whether the server
    gave that range (`status` 206), a longer one, or everything.

    Raises `FetchError` for another range; `where` names the file in it.
    """
    skip = start
    if status == 206:
        found = RANGE.fullmatch(headers.get("content-range", ""))
        if found is None or int(found[1]) > start:
            raise FetchError(f"{where} was answered with another range than asked for")
        skip = start - int(found[1])
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        yield piece[skip:] if skip else piece
        skip = 0
