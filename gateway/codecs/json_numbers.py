"""A long list of numbers in a JSON text, cut out and read a piece at a time.

Python objects of a whole tensor take ten times the memory of the tensor, and more time than
the caches of a processor are good for. So one long list is cut out of the text, a mark takes its
place, and what is left is parsed as ever. Whatever is not plainly right is `Odd`: then the whole
text is parsed as ever, and that has the say about what is wrong.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import orjson

from gateway.codecs.json_data import ListText, parse_json
from gateway.errors import InvalidRequest
from gateway.tensors import MAX_RANK, Array, Buffer, Datatype, Shape

MIN_TEXT: Final = 65536
"""Shortest list, in bytes of text, that is worth it."""
PIECE: Final = 32768
"""Bytes of text at a time."""
_SPACE: Final = b" \t\r\n"
_BEGINS: Final = re.compile(rb"\[[ \t\r\n\[]*+")
_BLANK: Final = bytes.maketrans(b"[]", b"  ")
_NUMBER: Final = b"0123456789.eE+-" + _SPACE
_RUN: Final = _NUMBER + b"[],"
_OPEN, _CLOSE, _COMMA = b"[],"
_EXACT: Final = {8: 2**53}
_EXACT_NARROW: Final = 2**24
"""Integers up to here are the same whatever float they pass through on the way."""
_STARTS: Final = 4096
"""Lists that are looked at, at most, to find a long one."""


class Odd(Exception):
    """Not for here: read the whole text."""


class Numbers(ListText):
    """The text of a regular list of numbers, nested or flat, which is valid JSON if `array` says
    so."""

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.shape = _shape(text)

    def array(self, kind: Datatype, shape: Shape) -> Array:
        """The numbers as an array of `shape`. Raises `Odd` unless all of them, and nothing else,
        are there."""
        if len(self.shape) == 1:
            if self.shape[0] != math.prod(shape):
                raise Odd
        elif self.shape != shape:
            raise Odd
        if kind.kind not in ("int", "float"):
            raise Odd
        array = np.empty(math.prod(shape), kind.dtype)
        nested = len(self.shape) > 1
        structure: list[bytes] = []
        at = 0
        for piece in self._pieces():
            numbers = _numbers(piece.translate(_BLANK) if nested else piece, kind)
            array[at : at + len(numbers)] = numbers
            at += len(numbers)
            if nested:
                structure += [_structure(piece), b","]
        if at != len(array):
            raise Odd
        if structure and b"".join(structure[:-1]) != _brackets(self.shape):
            raise Odd
        return array.reshape(shape)

    def _pieces(self) -> Iterator[bytes]:
        """The text, cut at commas."""
        text = self._text
        first, last = (1, len(text) - 1) if len(self.shape) == 1 else (0, len(text))
        while last - first > PIECE:
            comma = text.find(b",", first + PIECE, last)
            if comma < 0:
                break
            yield text[first:comma]
            first = comma + 1
        yield text[first:last]


def parse_around(text: Buffer, max_depth: int, *keys: str | int) -> dict[str, Any]:
    """As `parse_json`, with `Numbers` in place of the list that `keys` lead to.

    Raises `Odd` where that is not the first long list of numbers in the text, or anything is wrong.
    """
    text = bytes(text)
    start, stop = _long_run(text)
    numbers = Numbers(text[start:stop])
    if len(numbers.shape) + len(keys) > max_depth:
        raise Odd
    # Inside of a string, its quotes would end the string, and no JSON goes on like this.
    mark = secrets.token_hex(16)
    try:
        tree: Any = parse_json(b'%b"%b"%b' % (text[:start], mark.encode(), text[stop:]), max_depth)
    except InvalidRequest:
        raise Odd from None
    try:
        holder = tree
        for key in keys[:-1]:
            holder = holder[key]
        if holder[keys[-1]] != mark:
            raise Odd
    except (TypeError, LookupError):
        raise Odd from None
    holder[keys[-1]] = numbers
    return tree  # type: ignore[no-any-return]


def _long_run(text: bytes) -> tuple[int, int]:
    """Where the first long list of nothing but numbers begins and ends, by its characters."""
    at = 0
    for _ in range(_STARTS):
        start = text.find(b"[", at)
        if start < 0:
            break
        at = _run_end(text, start)
        if at - start >= MIN_TEXT:
            # A comma, and the ends of lists around it, may follow.
            stop = text.rfind(b"]", start, at) + 1
            depth = text.count(b"]", start, stop) - text.count(b"[", start, stop)
            if not stop or not 0 <= depth <= MAX_RANK:
                raise Odd
            for _ in range(depth):
                stop = text.rfind(b"]", start, stop - 1) + 1
            return start, stop
    raise Odd


def _run_end(text: bytes, start: int) -> int:
    """Where the characters of lists of numbers end, to within a few that are none."""
    end, step = start, 64
    while end < len(text):
        part = text[end : end + step]
        other = part.translate(None, _RUN)
        if other:
            return end + part.index(other[:1])
        end, step = end + step, PIECE
    return len(text)


def _shape(text: bytes) -> Shape:
    """The shape that the first row of each depth, and the number of commas, make likely."""
    begins = _BEGINS.match(text)
    assert begins is not None
    rank = begins[0].count(b"[")
    if rank > MAX_RANK or (rank == 1 and text.find(b"[", 1) >= 0):
        raise Odd
    total = text.count(b",") + 1
    sizes = [1]
    for depth in range(1, rank):
        # With spaces between the brackets, the next shape in line is the whole text's.
        end = text.find(b"]" * depth)
        if end < 0:
            raise Odd
        sizes.append(text.count(b",", 0, end) + 1)
    sizes.append(total)
    if any(large % small for small, large in pairwise(sizes)):
        raise Odd
    return tuple([large // small for small, large in pairwise(sizes)][::-1])


def _brackets(shape: Shape) -> bytes:
    """The text of a list of this shape, without the numbers."""
    text = b"," * (shape[-1] - 1)
    for size in (*shape[-2::-1], 1):
        text = b",".join([b"[%b]" % text] * size)
    return text


def _structure(piece: bytes) -> bytes:
    """Brackets and commas. Raises `Odd` where a number is in front of an opening bracket or behind
    a closing one."""
    text = np.frombuffer(b",%b," % piece.translate(None, _SPACE), np.uint8)
    before = text[np.flatnonzero(text == _OPEN) - 1]
    behind = text[np.flatnonzero(text == _CLOSE) + 1]
    if not (
        ((before == _OPEN) | (before == _COMMA)).all()
        and ((behind == _CLOSE) | (behind == _COMMA)).all()
    ):
        raise Odd
    return piece.translate(None, _NUMBER)


def _numbers(text: bytes, kind: Datatype) -> Array:
    """The numbers of one piece, as the whole list's would become. Raises `Odd`."""
    try:
        values = orjson.loads(b"[%b]" % text)
    except orjson.JSONDecodeError:
        raise Odd from None
    types = set(map(type, values))
    try:
        if types == {float}:
            array: Array = np.fromiter(values, np.float64, len(values))
        elif types == {int}:
            array = np.fromiter(values, np.int64, len(values))
        elif types == {int, float}:
            array = np.array(values)
        else:
            raise Odd
    except OverflowError:
        raise Odd from None
    found = array.dtype.kind
    if kind.kind == "int":
        if found != "i":
            raise Odd
        if kind.itemsize < 8 or kind.dtype.kind == "u":
            limits = np.iinfo(kind.dtype)
            if array.min() < limits.min or array.max() > limits.max:
                raise Odd
        return array
    # In a list with floats, larger integers would be rounded twice.
    exact = _EXACT.get(kind.itemsize, _EXACT_NARROW)
    if found != "f" and (found != "i" or array.min() < -exact or array.max() > exact):
        raise Odd
    if kind.itemsize == 8:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(kind.dtype)
    if not np.isfinite(narrow).all():
        raise Odd
    return narrow
