"""Values between tensors and what python_function models take and give."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from gateway.errors import InferenceFailed, InvalidInput, printable
from gateway.tensors import BYTES, Array, Parameter, objects
from runtimes.mlflow_signature import AS_JSON, TENSOR, Field, Param

_FLOATS: Final = ("float", "double")


# --- on the way in


def column(field: Field, array: Array) -> Any:
    """A column of a DataFrame, from a tensor of one element a row. Raises `InvalidInput`."""
    values = array.reshape(-1)
    if field.kind == "binary":
        return [_bytes(each) for each in values.tolist()]
    if field.datatype is not BYTES:
        return np.array(values)  # of its own: models may write into it
    texts = [_text(field, n, each) for n, each in enumerate(values.tolist())]
    if field.kind in AS_JSON:
        return [_from_json(f"input '{field.name}': element {n}", t) for n, t in enumerate(texts)]
    if field.kind == "datetime":
        return _times(field, texts)
    return texts


def tensor(field: Field, array: Array) -> Array:
    """An array of the model's own dtype. Raises `InvalidInput`."""
    if field.datatype is not BYTES:
        return np.array(array, dtype=field.dtype, order="C")
    if field.dtype is not None and field.dtype.kind == "S":
        return np.array([_bytes(e) for e in array.ravel().tolist()], "S").reshape(array.shape)
    texts = [_text(field, n, each) for n, each in enumerate(array.ravel().tolist())]
    if field.dtype is not None and field.dtype.kind == "U":
        return np.array(texts, "U").reshape(array.shape)
    return objects(texts, array.shape)  # type: ignore[arg-type]


def params(known: Sequence[Param], given: Mapping[str, Parameter]) -> dict[str, Any]:
    """The parameters of a request that the model knows. Raises `InvalidInput`."""
    found: dict[str, Any] = {}
    for param in known:
        value: Any = given.get(param.name)
        if value is None:
            continue
        if param.listed and isinstance(value, str):
            value = _from_json(f"parameter '{param.name}'", value)
        elif param.kind in _FLOATS and type(value) is int:
            value = float(value)
        found[param.name] = value
    return found


def _bytes(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


def _text(field: Field, index: int, element: object) -> str:
    try:
        return element.decode() if isinstance(element, bytes) else str(element)
    except UnicodeDecodeError:
        raise InvalidInput(
            f"input '{field.name}': element {index} is not UTF-8, and this model takes text"
        ) from None


def _from_json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{what} is not JSON: '{printable(text)}'") from None


def _times(field: Field, texts: list[str]) -> Array:
    times = np.empty(len(texts), "datetime64[ns]")
    for index, text in enumerate(texts):
        try:
            times[index] = _time(text)
        except (ValueError, OverflowError):
            raise InvalidInput(
                f"input '{field.name}': element {index} is not a time such as "
                f"2024-02-29T12:30:00Z, from the years 1678 to 2261: '{printable(text)}'"
            ) from None
    return times


def _time(text: str) -> np.datetime64:
    """Of ISO 8601, in UTC. Raises `ValueError`."""
    moment = datetime.fromisoformat(text)
    if not 1678 <= moment.year <= 2261:
        raise ValueError(text)  # nanoseconds reach no further
    if moment.tzinfo is None and "." in text:
        return np.datetime64(text, "ns")  # all the digits, of which Python's has six
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(moment, "ns")


# --- on the way out


def values_of(fields: Sequence[Field], result: Any) -> dict[str, Array]:
    """What a model gave, as the outputs of its signature. Raises `InferenceFailed`."""
    values = _parts(fields, result)
    return {field.name: _output(field, values[field.name]) for field in fields}


def _parts(fields: Sequence[Field], result: Any) -> dict[str, Any]:
    """The result's value for each field, by the field's name."""
    if _is(result, "DataFrame"):
        names = [str(name) for name in result.columns]
        if all(f.own in names for f in fields) and len(set(names)) == len(names):
            return {f.name: result.iloc[:, names.index(str(f.own))].to_numpy() for f in fields}
        if len(fields) == 1:
            return {fields[0].name: result.to_numpy()}
        return _by_position(fields, [result.iloc[:, n].to_numpy() for n in range(len(names))])
    if _is(result, "Series"):
        result = result.to_numpy()
    elif callable(getattr(result, "toarray", None)):  # scipy's sparse matrices
        result = result.toarray()
    if isinstance(result, Mapping):
        return _by_name(fields, {str(name): value for name, value in result.items()})
    records = isinstance(result, list) and all(isinstance(each, Mapping) for each in result)
    if records and len(result) and fields[0].kind not in AS_JSON:
        return _from_records(fields, result)
    if len(fields) == 1:
        return {fields[0].name: result}
    if isinstance(result, np.ndarray) and result.ndim == 2:
        return _by_position(fields, list(result.T))
    if isinstance(result, (list, tuple)):
        return _by_position(fields, result)
    raise InferenceFailed(
        f"the model gave a {type(result).__name__}, but its signature has {len(fields)} outputs"
    )


def _by_name(fields: Sequence[Field], values: Mapping[str, Any]) -> dict[str, Any]:
    if len(fields) == 1 and fields[0].own is None:
        if fields[0].kind in AS_JSON:
            return {fields[0].name: [values]}
        if len(values) == 1:
            return {fields[0].name: next(iter(values.values()))}
    # `name`, too: what has no name in the signature may be called output-0 by the model.
    missing = next((field.name for field in fields if field.name not in values), None)
    if missing is not None:
        has = printable(", ".join(values) or "nothing", 200)
        raise InferenceFailed(f"the model gave no output '{missing}'; it gave: {has}")
    return {field.name: values[field.name] for field in fields}


def _from_records(fields: Sequence[Field], records: list[Mapping[Any, Any]]) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {str(name): [] for name in records[0]}
    for name, values in columns.items():
        values.extend(record.get(name) for record in records)
    return _by_name(fields, columns)


def _by_position(fields: Sequence[Field], values: Sequence[Any]) -> dict[str, Any]:
    if len(values) != len(fields):
        raise InferenceFailed(
            f"the model gave {len(values)} outputs, but its signature has {len(fields)}"
        )
    return {field.name: value for field, value in zip(fields, values, strict=True)}


def _is(value: Any, name: str) -> bool:
    """Whether it is pandas' class; without importing pandas."""
    return type(value).__name__ == name and type(value).__module__.startswith("pandas.")


def _output(field: Field, value: Any) -> Array:
    if field.datatype is BYTES:
        array = _bytes_output(field, value)
    else:
        array = _number_output(field, value)
    if field.kind != TENSOR:
        if array.ndim == 0 or array.size == len(array):
            return array.reshape(-1, 1)
    elif array.ndim == 0 and len(field.shape) == 1:
        array = array.reshape(1)
    elif array.ndim + 1 == len(field.shape) and field.shape[-1] == 1:
        array = array[..., None]
    elif array.ndim == len(field.shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    fits = array.ndim == len(field.shape) and all(
        want in (-1, got) for want, got in zip(field.shape, array.shape, strict=True)
    )
    if not fits:
        raise InferenceFailed(
            f"output '{field.name}' came with shape {list(array.shape)}, but the signature says "
            f"{list(field.shape)}"
        )
    return array


def _number_output(field: Field, value: Any) -> Array:
    wanted = field.datatype.dtype
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            array = np.asarray(array.tolist())
        if array.dtype == wanted:
            return array
        if array.size and not np.can_cast(array.dtype, wanted, "same_kind"):
            raise TypeError
        return array.astype(wanted)
    except (TypeError, ValueError):
        kind = getattr(value, "dtype", type(value).__name__)
        raise InferenceFailed(
            f"output '{field.name}' came as {kind}, but the signature says {field.datatype}"
        ) from None


def _bytes_output(field: Field, value: Any) -> Array:
    convert = _to_json if field.kind in AS_JSON else _to_bytes
    if field.kind in AS_JSON:
        rows = value.tolist() if isinstance(value, np.ndarray) else value
        rows = list(rows) if isinstance(rows, (list, tuple)) else [rows]
        return objects([convert(row) for row in rows], (len(rows),))
    if isinstance(value, (str, bytes)):
        return objects([convert(value)], (1,))
    try:
        array = np.asarray(value)
    except ValueError:
        raise InferenceFailed(
            f"output '{field.name}' came as lists of different lengths, but the signature says "
            f"{field.datatype} {list(field.shape)}"
        ) from None
    if array.dtype.kind == "M":
        array = np.datetime_as_string(array)
    return objects(_each(array, convert), array.shape)


def _each(array: Array, convert: Callable[[Any], bytes]) -> list[bytes]:
    return [convert(element) for element in array.ravel().tolist()]


def _to_bytes(element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    return b"" if element is None else str(element).encode("utf-8", "surrogateescape")


def _to_json(element: Any) -> bytes:
    try:
        return json.dumps(element, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise InferenceFailed(f"an output cannot be written as JSON: {error}") from None


def _plain(value: Any) -> Any:
    for method in ("tolist", "model_dump", "to_dict", "isoformat"):
        found = getattr(value, method, None)
        if callable(found):
            return found()
    raise TypeError(f"a {type(value).__name__}")
