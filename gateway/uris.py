"""URIs that people give: what of them may be shown, and whether they mean what they seem to."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

CONTAINERS: Final = ("az", "abfs", "abfss", "wasb", "wasbs")
"""Schemes with ``container@account`` where others have a user."""

_PARTS: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


def has_dots(uri: str) -> bool:
    """Whether a part of its path is ``.`` or ``..``, however it is written: servers take those
    away, so it names something else than it says."""
    path = uri.partition("://")[2] or uri
    for _ in range(3):  # encoded, and encoded once more
        if {".", ".."} & set(re.split(r"[/\\?#]", path)):
            return True
        path = unquote(path)
    return False


def public(uri: str) -> str:
    """Without what may be secret: no user, no query (``?…`` stands for one)."""
    match = _PARTS.fullmatch(uri)
    if match is None:
        return uri
    scheme, place, rest = match.groups()
    user, at, host = place.rpartition("@")
    if at and scheme.lower() in CONTAINERS and ":" not in user:
        host = place
    path, mark, _ = rest.partition("?")
    return f"{scheme}://{host}{path}{'?…' if mark else ''}"
