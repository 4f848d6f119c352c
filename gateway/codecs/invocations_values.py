"""From plain values to the tensor that a model declares: strictly, or with an error that says
which value of which row does not fit.

| declared | takes |
|---|---|
| BOOL | true, false |
| integers | whole numbers in range; 3.0 is one |
| FP16, BF16, FP32, FP64 | numbers in range, NaN, infinities; null is NaN |
| BYTES | text; for MLflow's binary columns base64; for its JSON columns anything |

Cells of CSV are text, read as the datatype has it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import orjson

from gateway.codecs.invocations_csv import NOT_THERE, Text
from gateway.codecs.invocations_plain import fitted, plain_tensor
from gateway.errors import InvalidRequest, printable
from gateway.tensors import (
    BYTES,
    MAX_RANK,
    Array,
    Datatype,
    Shape,
    Tensor,
    TensorSpec,
    objects,
)

MADE_UP: Final = re.compile(r"(?:in|out)put-[0-9]+")
"""Names of what has none in a model's signature."""

_INTEGER: Final = re.compile(r"\s*[+-]?[0-9]{1,40}\s*")
_NUMBER: Final = re.compile(
    r"\s*[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf|infinity)\s*", re.IGNORECASE
)
_BOOLEANS: Final = {"true": True, "false": False}


def tensor_of(spec: TensorSpec, value: object, what: str, *, text: bool = False) -> Tensor:
    """The input `spec` from a list of rows; each a value, or nested lists of values.

    `what` (``column`` or ``input``) is what errors call it; with `text` the values are cells of a
    CSV. Raises `InvalidRequest`.
    """
    if type(value) is list:
        tensor = plain_tensor(spec, value, text=text)
        if tensor is not None:
            return tensor
    where = f"{what} '{printable(spec.name)}'"
    if type(value) is not list:
        raise InvalidRequest(f"{where} must be a list with a value for each row")
    if not value:
        raise InvalidRequest(f"{where} has 0 rows; send at least one")
    deepest = 1 if spec.content == "json" else MAX_RANK
    flat, shape = flatten(where, value, deepest)
    if text:
        flat = [Text(cell) for cell in flat]
    array = array_of(spec, flat, where, len(flat) // len(value))
    shape = fitted(spec, shape)
    return Tensor(spec.name, spec.datatype, shape, array=array.reshape(shape))


def flatten(where: str, value: list[Any], deepest: int) -> tuple[list[Any], Shape]:
    """The values of nested lists in one list, and their shape. Raises `InvalidRequest` for lists
    that are not all of the same length and depth."""
    shape = [len(value)]
    flat: list[Any] = value
    while len(shape) < deepest and flat and type(flat[0]) is list:
        width = len(flat[0])
        for place, each in enumerate(flat):
            if type(each) is not list or len(each) != width:
                row = place * len(value) // len(flat)
                raise InvalidRequest(
                    f"{where}, row {row}: all rows must be lists of the same length and depth as "
                    "row 0"
                )
        shape.append(width)
        flat = [element for each in flat for element in each]
    return flat, tuple(shape)


def array_of(spec: TensorSpec, values: list[Any], where: str, row_size: int) -> Array:
    """One dimension, of the declared datatype. Raises `InvalidRequest`."""
    kind = spec.datatype
    if kind is BYTES:
        return objects(_each(spec, values, where, row_size, _as_bytes(spec)), (len(values),))
    convert = {"bool": _boolean, "int": _integer, "float": _number}[kind.kind](kind)
    return np.array(_each(spec, values, where, row_size, convert), kind.dtype)


def _each(
    spec: TensorSpec,
    values: list[Any],
    where: str,
    row_size: int,
    convert: Callable[[Any], Any],
) -> list[Any]:
    found: list[Any] = []
    for value in values:
        try:
            found.append(convert(value))
        except (ValueError, TypeError, OverflowError) as error:
            place = len(found)
            element = f", element {place % row_size}" if row_size > 1 else ""
            shown = printable(shown_value(value), 60)
            detail = str(error) if type(error) is ValueError else ""
            raise InvalidRequest(
                f"{where}, row {place // max(row_size, 1)}{element}: {shown} "
                f"({_kind_of(value)}) is no {spec.datatype}{f': {detail}' if detail else ''}"
            ) from None
    return found


def _boolean(kind: Datatype) -> Callable[[Any], bool]:
    def convert(value: Any) -> bool:
        if type(value) is bool:
            return value
        if type(value) is Text and value.strip().lower() in _BOOLEANS:
            return _BOOLEANS[value.strip().lower()]
        raise ValueError("send true or false")

    return convert


def _integer(kind: Datatype) -> Callable[[Any], int]:
    limits = np.iinfo(kind.dtype)
    low, high = int(limits.min), int(limits.max)

    def convert(value: Any) -> int:
        if type(value) is Text:
            value = int(value) if _INTEGER.fullmatch(value) else _text_number(value)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise ValueError("send a whole number")
        if not low <= value <= high:
            raise ValueError(f"it goes from {low} to {high}")
        return value

    return convert


def _number(kind: Datatype) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if value is None:
            return float("nan")
        if type(value) is Text:
            value = float("nan") if value.strip() in NOT_THERE else _text_number(value)
        if type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                raise ValueError("it is out of range") from None
        if type(value) is not float:
            raise ValueError("send a number")
        if kind.itemsize < 8 and np.isfinite(value):
            with np.errstate(over="ignore"):
                if not np.isfinite(np.float64(value).astype(kind.dtype)):
                    raise ValueError("it is out of range")
        return value

    return convert


def _text_number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError("send a number")
    return float(text)


def _as_bytes(spec: TensorSpec) -> Callable[[Any], bytes]:
    if spec.content == "json":
        return _json
    if spec.content == "binary":
        return _base64
    return _utf8


def _utf8(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("send text")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise ValueError("it has a broken surrogate") from None


def _json(value: Any) -> bytes:
    if type(value) is Text:
        try:
            orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ValueError("send JSON") from None
        return value.encode()
    return orjson.dumps(value)


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("send base64")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is no base64") from None


def _kind_of(value: Any) -> str:
    kinds = {
        bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list",
        dict: "an object", type(None): "null", Text: "text",
    }  # fmt: skip
    return kinds.get(type(value), type(value).__name__)


def shown_value(value: Any) -> str:
    """A value as JSON has it, for an error."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return repr(value)
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return repr(value)
