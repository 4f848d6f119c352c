"""JSON bodies: parsed strictly, and their `data` lists into tensors and back."""

from __future__ import annotations

import re
import struct
from itertools import chain
from typing import Any

import numpy as np
import orjson

from gateway.errors import InvalidRequest, Unsupported, printable
from gateway.tensors import (
    BYTES,
    MAX_RANK,
    Array,
    Buffer,
    Datatype,
    Shape,
    Tensor,
    as_bytes,
    element_count,
    objects,
)

_CONTAINERS = (dict, list)
# Possessive: the plain form keeps a place to return to for each character, 120 bytes of it.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"')
PACKED = 256
"""Longest list that is packed without numpy."""
PACKED_NESTED = 4096
"""Most elements of nested lists that are, for which numpy takes longer."""
_CODES = dict(
    INT8="b", INT16="h", INT32="i", INT64="q", UINT8="B", UINT16="H", UINT32="I", UINT64="Q",
    FP32="f", FP64="d",
)  # fmt: skip
_INT = {int}
_NUMBER = {int, float}
_LIST = {list}
_NUMPY_JSON = frozenset((*_CODES, "BOOL"))


class ListText:
    """Stands in a tree for a list that is still text; see `gateway.codecs.json_numbers`."""

    __slots__ = ("shape",)

    shape: Shape
    """As the brackets and commas say; `array` looks closer."""

    def array(self, kind: Datatype, shape: Shape) -> Array:
        """Its elements as an array of `shape`."""
        raise NotImplementedError


def parse_json(text: Buffer, max_depth: int) -> dict[str, Any]:
    """The JSON object in `text`. Raises `InvalidRequest` for anything else, for nesting deeper
    than `max_depth`, and for keys given twice."""
    try:
        tree = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        hint = "; remove the byte order mark" if bytes(text[:3]) == b"\xef\xbb\xbf" else ""
        raise InvalidRequest(f"the body is not JSON: {error}{hint}") from None
    if type(tree) is not dict:
        raise InvalidRequest(f"the body must be a JSON object, not {type(tree).__name__}")
    text = bytes(text)
    # As many brackets as the limit at most cannot nest deeper than it.
    if text.count(b"[") + text.count(b"{") > max_depth:
        check_depth(tree, max_depth)
    # Every key has one colon; other colons can only be in strings.
    if text.count(b":") != _keys(tree) and _STRING.sub(b"", text).count(b":") != _all_keys(tree):
        raise InvalidRequest("the JSON has an object with the same key twice")
    return tree


def check_depth(tree: object, max_depth: int) -> None:
    """Raises `InvalidRequest` for a JSON tree that is nested deeper than `max_depth`."""
    if _deeper(tree, max_depth):
        raise InvalidRequest(
            f"the JSON is nested deeper than limits.max_json_depth = {max_depth} levels"
        )


def _deeper(tree: object, limit: int) -> bool:
    """Whether lists and objects nest more than `limit` levels."""
    level: list[object] = [tree]
    for _ in range(limit):
        below: list[object] = []
        for each in level:
            children = each.values() if type(each) is dict else each
            below += [c for c in children if type(c) is list or type(c) is dict]  # type: ignore[attr-defined]
        if not below:
            return False
        level = below
    return True


def _keys(tree: Any) -> int:
    """Number of keys in all objects of a JSON tree, at most.

    A list is judged by its first member, as none that is of use mixes objects and others.
    """
    count = 0
    todo = [tree]
    while todo:
        each = todo.pop()
        if type(each) is dict:
            count += len(each)
            for value in each.values():
                kind = type(value)
                if kind is dict or (kind is list and value and type(value[0]) in _CONTAINERS):
                    todo.append(value)
        elif type(each[0]) is dict:
            todo += [member for member in each if type(member) is dict]
        elif each[0] and type(each[0]) is list:
            todo.append(each[0])
    return count


def _all_keys(tree: Any) -> int:
    """Number of keys in all objects of a JSON tree, without any guess."""
    count = 0
    todo = [tree]
    while todo:
        each = todo.pop()
        if type(each) is dict:
            count += len(each)
            each = each.values()
        todo += [member for member in each if type(member) in _CONTAINERS]
    return count


def has_booleans(text: Buffer) -> bool:
    """Whether ``true`` or ``false`` is anywhere in a JSON text; a look costs next to nothing."""
    if isinstance(text, memoryview):
        return True
    return b"true" in text or b"false" in text


def tensor_from_json(
    name: str, kind: Datatype, shape: Shape, data: object, *, booleans: bool = True
) -> Tensor:
    """A tensor from a `data` list, nested as `shape` or flat. Raises `InvalidRequest`.

    `booleans`: some may be among the numbers, where Python would take them for 0 and 1.
    """
    if type(data) is not list:
        if isinstance(data, ListText):
            return Tensor(name, kind, shape, array=data.array(kind, shape))
        raise InvalidRequest(
            f"input '{printable(name)}': data must be a list, not {type(data).__name__}"
        )
    packed = None
    if data and type(data[0]) is list:
        if element_count(shape) <= PACKED_NESTED and (flat := _flat(data, shape)):
            packed = _pack(kind, shape, flat)
    elif len(data) <= PACKED:
        packed = _pack(kind, shape, data)
    if packed is not None:
        return Tensor(name, kind, shape, packed)
    if kind is BYTES:
        array = _strings(name, data, shape)
    else:
        if booleans and kind.kind != "bool" and _any_boolean(data):
            raise InvalidRequest(
                f"input '{printable(name)}' is {kind}, but its data holds true or false"
            )
        array = _numbers(name, kind, data)
    expected = element_count(shape)
    # Nested lists end at the first dimension of size 0.
    nested = shape if array.size else shape[: array.ndim]
    if array.size != expected or (array.ndim > 1 and array.shape != nested):
        raise InvalidRequest(
            f"input '{printable(name)}': data of shape {list(array.shape)} does not fit shape "
            f"{printable(list(shape))}, which takes {expected} elements"
        )
    return Tensor(name, kind, shape, array=array.reshape(shape))


def _any_boolean(data: list[Any]) -> bool:
    kinds = set(map(type, data))
    if list in kinds:
        return any(_any_boolean(row) for row in data if type(row) is list)
    return bool in kinds


def _add_up(data: list[Any], depth: int = 0) -> None:
    """Raises `TypeError` for nested lists that hold anything but numbers and booleans."""
    if data and type(data[0]) is list and depth < MAX_RANK:
        for row in data:
            if type(row) is not list:
                raise TypeError
            _add_up(row, depth + 1)
    else:
        sum(data)


def _flat(data: list[Any], shape: Shape) -> list[Any] | None:
    """The elements of lists that are nested as `shape` says; `None` if they are not."""
    if not shape or len(data) != shape[0]:
        return None
    for width in shape[1:]:
        if len(data) == 1:
            data = data[0]
            if type(data) is not list or len(data) != width:
                return None
        elif set(map(type, data)) == _LIST and set(map(len, data)) == {width}:
            data = [*chain.from_iterable(data)]
        else:
            return None
    return data


def _pack(kind: Datatype, shape: Shape, data: list[Any]) -> bytes | None:
    """The bytes of a flat list; `None` if it is anything but plainly right.

    A tenth of the way through numpy, which then has the say about what is wrong.
    """
    code = _CODES.get(kind.name)
    if code is None or element_count(shape) != len(data):
        return None
    kinds = set(map(type, data))
    if not kinds <= (_INT if kind.kind == "int" else _NUMBER):
        return None
    try:
        return struct.pack(f"<{len(data)}{code}", *data)
    except (struct.error, OverflowError):
        return None


def _numbers(name: str, kind: Datatype, data: list[Any]) -> Array:
    try:
        _add_up(data)
    except TypeError:
        # numpy would make room for the longest string in every element.
        raise InvalidRequest(
            f"input '{printable(name)}' is {kind}, but its data holds strings, null, objects or "
            "rows of different depth"
        ) from None
    try:
        array: Array = np.array(data)
        if array.dtype.kind == "f" and kind.dtype == np.uint64:
            array = _large_integers(data, array)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"input '{printable(name)}': data is not a regular list of numbers; rows differ in "
            "length or depth"
        ) from None
    if not array.size:
        return np.empty(array.shape, kind.dtype)
    found = array.dtype.kind
    if kind.kind == "bool":
        fits = found == "b"
    elif kind.kind == "int":
        fits = found in "iu"
    else:
        fits = found in "fiu"
    if not fits:
        if kind.kind == "int" and found in "fO" and array.size:
            detail = "holds a number that is no integer or out of range"
        else:
            detail = f"holds {_kind_name(array)}"
        raise InvalidRequest(f"input '{printable(name)}' is {kind}, but its data {detail}")
    if array.dtype == kind.dtype:
        return array
    if kind.kind == "int":
        limits = np.iinfo(kind.dtype)
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise InvalidRequest(
                f"input '{printable(name)}' has a value that {kind} cannot hold "
                f"({limits.min} to {limits.max})"
            )
        return array.astype(kind.dtype)
    with np.errstate(over="ignore"):
        narrow = array.astype(kind.dtype)
    if kind.itemsize < 8 and not np.isfinite(narrow).all():
        raise InvalidRequest(f"input '{printable(name)}' has a value that {kind} cannot hold")
    return narrow


def _large_integers(data: list[Any], array: Array) -> Array:
    """Integers of which some are above 2**63 and some are not: numpy took them for floats."""
    exact = np.array(data, object)
    if set(map(type, exact.ravel().tolist())) == {int} and exact.min() >= 0:
        return exact.astype(np.uint64)
    return array


def _kind_name(array: Array) -> str:
    names = {"b": "true or false"}
    return names.get(array.dtype.kind, "numbers")


def _strings(name: str, data: list[Any], shape: Shape) -> Array:
    """numpy would pad and strip strings, so the lists are flattened by hand."""
    depth_shape: list[int] = []
    flat = data
    while flat and type(flat[0]) is list:
        width = len(flat[0])
        depth_shape.append(len(flat))
        if any(type(row) is not list or len(row) != width for row in flat):
            raise InvalidRequest(f"input '{printable(name)}': rows of data differ in length")
        if len(depth_shape) >= max(len(shape), 1):
            break
        flat = [each for row in flat for each in row]
    for element in flat:
        if type(element) is not str:
            raise InvalidRequest(
                f"input '{printable(name)}' is BYTES: its data must be strings, not "
                f"{type(element).__name__}"
            )
    try:
        array = objects([as_bytes(element) for element in flat], (len(flat),))
    except UnicodeEncodeError:
        raise InvalidRequest(f"input '{printable(name)}' holds a broken surrogate") from None
    if depth_shape and len(flat) == element_count(shape):
        nested = nested_shape(data)
        if nested != shape:
            return array.reshape(nested)
        return array.reshape(shape)
    return array


def nested_shape(data: object) -> Shape:
    """The shape of a regular nested list."""
    shape: list[int] = []
    while type(data) is list:
        shape.append(len(data))
        data = data[0] if data else None
    return tuple(shape)


def json_data(tensor: Tensor) -> object:
    """A tensor's elements as orjson takes them, flat and row-major.

    NaN and infinities become ``null``: JSON has no word for them. Raises `Unsupported` for
    BYTES that are not UTF-8.
    """
    short = tensor.short_list()
    if short is not None:
        return short
    array = tensor.array.ravel()
    if tensor.datatype is BYTES:
        try:
            return [
                element.decode() if isinstance(element, bytes) else str(element)
                for element in array.tolist()
            ]
        except UnicodeDecodeError:
            raise Unsupported(
                f"output '{tensor.name}' holds bytes that are not UTF-8; request it with "
                "parameters {'binary_data': true}"
            ) from None
    if array.size > 64 and tensor.datatype.name in _NUMPY_JSON:
        return np.ascontiguousarray(array)
    values: list[Any] = array.tolist()
    return values
