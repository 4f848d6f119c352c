"""The input example that MLflow saves with a model, as tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from gateway.errors import ModelLoadError
from gateway.tensors import BYTES, Array, TensorSpec, objects
from runtimes.mlflow_document import Document, read_bounded

MOST_BYTES: Final = 16 << 20


def read_example(document: Document, specs: Sequence[TensorSpec]) -> dict[str, Array] | None:
    """The example for a model with the inputs `specs`; `None` where there is none that fits.

    Raises `ModelLoadError` for a file that cannot be read, is no JSON or lies elsewhere.
    """
    info = document.example
    name, kind = info.get("artifact_path"), info.get("type")
    if not name or kind not in ("dataframe", "ndarray"):
        return None
    path = document.inside(name, "saved_input_example_info.artifact_path")
    try:
        content = json.loads(read_bounded(path, MOST_BYTES))
    except (ValueError, RecursionError):
        raise ModelLoadError(f"the input example '{path.name}' is not JSON") from None
    values = _columns(content) if kind == "dataframe" else _arrays(content, specs)
    return None if values is None else _tensors(values, specs)


def _columns(content: Any) -> dict[str, Any] | None:
    """From pandas' orient ``split``."""
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        return None
    rows = content["data"]
    names = content.get("columns")
    if not rows or not all(isinstance(row, list) for row in rows):
        return None
    if names is None:
        names = [f"input-{n}" for n in range(len(rows[0]))]
    if not isinstance(names, list) or any(len(row) != len(names) for row in rows):
        return None
    return {str(name): [[row[n]] for row in rows] for n, name in enumerate(names)}


def _arrays(content: Any, specs: Sequence[TensorSpec]) -> Mapping[str, Any] | None:
    if isinstance(content, dict):
        return content
    # One array without a name.
    return {specs[0].name: content} if len(specs) == 1 else None


def _tensors(values: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, Array] | None:
    tensors: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in values:
            if spec.optional:
                continue
            return None
        array = _tensor(values[spec.name], spec)
        fits = (
            array is not None
            and array.ndim == len(spec.shape)
            and all(want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True))
        )
        if array is None or not fits:
            return None
        tensors[spec.name] = array
    return tensors or None


def _tensor(value: Any, spec: TensorSpec) -> Array | None:
    try:
        if spec.datatype is BYTES:
            return _texts(np.asarray(value, dtype=object), spec)
        array = np.asarray(value)
        if array.dtype.kind == "O" and spec.datatype.kind == "float":
            return np.asarray(value, dtype=np.float64).astype(spec.datatype.dtype)  # None is NaN
        return array.astype(spec.datatype.dtype, casting="unsafe" if array.size else "safe")
    except (TypeError, ValueError):
        return None


def _texts(array: Array, spec: TensorSpec) -> Array | None:
    rank = len(spec.shape)
    if array.ndim > rank:  # what is a list itself goes as JSON
        array = objects(
            [_nested(array[i]) for i in np.ndindex(*array.shape[:rank])],
            array.shape[:rank],
        )
    texts = [each if isinstance(each, str) else json.dumps(each) for each in array.ravel().tolist()]
    return objects([text.encode() for text in texts], array.shape)


def _nested(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
