"""Functions for `gateway.apart` to run: they must be importable over there, and quickly."""

from __future__ import annotations

import os
from typing import Any

from gateway import tensors
from gateway.errors import InvalidRequest
from gateway.tensors import BYTES, Tensor

PACKAGE = "tests.support."


class OwnRefusal(InvalidRequest):
    """One that the other side does not know."""


def same(thing: Any) -> Any:
    return thing


def size(data: Any) -> int:
    return len(data)


def upper(text: bytes) -> bytes:
    return text.upper()


def pid() -> int:
    return os.getpid()


def make(folder: str) -> None:
    os.mkdir(folder)


def leave() -> None:
    os._exit(3)


def number(text: str) -> int:
    return int(text)


def datatype(name: str) -> tensors.Datatype:
    return tensors.datatype(name)


def strings(data: bytes) -> Tensor:
    return Tensor("x", BYTES, (1,), data)


def refuse(text: str) -> None:
    raise OwnRefusal(text)


def something() -> object:
    return OwnRefusal
