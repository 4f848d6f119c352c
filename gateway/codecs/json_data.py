"""JSON bodies: parsed strictly, and their `data` lists into tensors and back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson

from gateway.errors import InvalidRequest, Unsupported, printable
from gateway.tensors import (
    BYTES,
    Array,
    Buffer,
    Datatype,
    Shape,
    Tensor,
    as_bytes,
    element_count,
    objects,
)

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NUMPY_JSON = frozenset("FP32 FP64 INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL".split())


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
    if text.count(b"[") + text.count(b"{") > max_depth and _deeper(tree, max_depth):
        raise InvalidRequest(
            f"the JSON is nested deeper than limits.max_json_depth = {max_depth} levels"
        )
    # Every key has one colon; other colons can only be in strings.
    if text.count(b":") != (keys := _keys(tree)) and _STRING.sub(b"", text).count(b":") != keys:
        raise InvalidRequest("the JSON has an object with the same key twice")
    return tree


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


def _keys(tree: object) -> int:
    """Number of keys in all objects of a JSON tree."""
    if type(tree) is dict:
        count = len(tree)
        for value in tree.values():
            if type(value) is dict or (type(value) is list and value):
                count += _keys(value)
        return count
    # Numbers and strings have no keys, and a list starts as it goes on, as a rule: look at all
    # members only where one of them can hold keys.
    if type(tree) is list:
        if len(tree) > 64 and type(tree[0]) in (int, float, str, bool):
            kinds = set(map(type, tree))
            if not kinds & {dict, list}:
                return 0
        return sum(_keys(each) for each in tree if type(each) is dict or type(each) is list)
    return 0


def tensor_from_json(name: str, kind: Datatype, shape: Shape, data: object) -> Tensor:
    """A tensor from a `data` list, nested as `shape` or flat. Raises `InvalidRequest`."""
    if type(data) is not list:
        raise InvalidRequest(
            f"input '{printable(name)}': data must be a list, not {type(data).__name__}"
        )
    array = _strings(name, data, shape) if kind is BYTES else _numbers(name, kind, data)
    expected = element_count(shape)
    if array.size != expected or (array.ndim > 1 and array.shape != shape):
        raise InvalidRequest(
            f"input '{printable(name)}': data of shape {list(array.shape)} does not fit shape "
            f"{printable(list(shape))}, which takes {expected} elements"
        )
    return Tensor(name, kind, shape, array=array.reshape(shape))


def _numbers(name: str, kind: Datatype, data: list[object]) -> Array:
    try:
        array: Array = np.array(data) if data else np.empty(0, kind.dtype)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"input '{printable(name)}': data is not a regular list of numbers; rows differ in "
            "length or depth"
        ) from None
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


def _kind_name(array: Array) -> str:
    names = {"b": "true or false", "U": "strings", "O": "null, objects or mixed values"}
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
