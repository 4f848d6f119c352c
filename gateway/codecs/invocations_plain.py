"""Values that are plainly right, on the shortest way to a tensor.

Most requests hold nothing else. Whatever is not plain gets `None` here, and is looked at value by
value in `gateway.codecs.invocations_values`, which has the say about what fits and what is wrong.
Both ways give the same tensor.
"""

from __future__ import annotations

import re
import struct
from itertools import chain
from typing import Any, Final

import numpy as np

from gateway.tensors import (
    BYTES,
    MAX_RANK,
    Datatype,
    Shape,
    Tensor,
    TensorSpec,
    element_count,
    objects,
)

PACKED: Final = 256
"""Longest list that is packed without numpy."""
_CODES: Final = dict(
    BOOL="?", INT8="b", INT16="h", INT32="i", INT64="q", UINT8="B", UINT16="H", UINT32="I",
    UINT64="Q", FP32="f", FP64="d",
)  # fmt: skip
_TYPES: Final[dict[str, tuple[set[type], ...]]] = {
    "int": ({int},),
    "float": ({float}, {int, float}, {int}),
    "bool": ({bool},),
    "bytes": ({str},),
}
# No more than what `float` and `int` take as the tables of `invocations_values` do.
_NUMBERS: Final = re.compile(r"[-+0-9.eE ]*")
_INTEGERS: Final = re.compile(r"[-+0-9 ]*")


def plain_tensor(spec: TensorSpec, value: list[Any], *, text: bool) -> Tensor | None:
    """The input `spec` from a list of rows; each a value, or nested lists of values. With `text`
    the values are cells of a CSV."""
    if spec.content in ("binary", "json"):
        return None
    flat = value
    shape: Shape = (len(value),)
    while flat and type(flat[0]) is list and len(shape) < MAX_RANK:
        width = len(flat[0])
        if len(flat) == 1:
            flat = flat[0]
        elif all_lists(flat, width):
            flat = [*chain.from_iterable(flat)]
        else:
            return None
        shape = (*shape, width)
    kind = spec.datatype
    if text and kind is not BYTES:
        numbers = _numbers(kind, flat)
        if numbers is None:
            return None
        flat = numbers
    if len(shape) != len(spec.shape):
        shape = fitted(spec, shape)
    if set(map(type, flat)) not in _TYPES[kind.kind]:
        return None
    try:
        if kind is BYTES:
            return Tensor(spec.name, kind, shape, array=objects([*map(str.encode, flat)], shape))
        code = _CODES.get(kind.name)
        if code is not None and len(flat) <= PACKED:
            return Tensor(spec.name, kind, shape, struct.pack(f"<{len(flat)}{code}", *flat))
        return _through_numpy(spec, flat, shape)
    except (struct.error, OverflowError, ValueError):
        return None


def _through_numpy(spec: TensorSpec, flat: list[Any], shape: Shape) -> Tensor | None:
    """Raises `OverflowError` or `ValueError`."""
    kind = spec.datatype
    if kind.kind != "float":
        return Tensor(spec.name, kind, shape, array=np.array(flat, kind.dtype).reshape(shape))
    wide = np.array(flat, np.float64)
    if kind.itemsize == 8:
        return Tensor(spec.name, kind, shape, array=wide.reshape(shape))
    with np.errstate(over="ignore"):
        narrow = wide.astype(kind.dtype)
    if not np.array_equal(np.isfinite(narrow), np.isfinite(wide)):
        return None
    return Tensor(spec.name, kind, shape, array=narrow.reshape(shape))


def _numbers(kind: Datatype, cells: list[str]) -> list[Any] | None:
    """Cells of a CSV as numbers."""
    text = "".join(cells)
    try:
        if kind.kind == "float" and _NUMBERS.fullmatch(text):
            return [*map(float, cells)]
        if kind.kind == "int" and _INTEGERS.fullmatch(text):
            return [*map(int, cells)]
    except ValueError:
        pass
    return None


def all_lists(rows: list[Any], width: int) -> bool:
    """Whether all rows are lists of that length."""
    return set(map(type, rows)) <= {list} and set(map(len, rows)) <= {width}


def fitted(spec: TensorSpec, shape: Shape) -> Shape:
    """The shape that the model declares, where its rows were given flat; else as it came."""
    inner = spec.shape[1:]
    if len(shape) == len(spec.shape) or -1 in inner or not spec.shape:
        return shape
    if len(shape) <= 2 and element_count(shape[1:]) == element_count(inner):
        return (shape[0], *inner)
    return shape
