"""Rows of arrays and tables, dealt into requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from gateway.codecs.client_grpc import ModelMetadata
from gateway.codecs.invocations import Payload, decode_invocations
from gateway.codecs.invocations_frame import Frame
from gateway.contract import Contract
from gateway.errors import InvalidRequest, printable
from gateway.tensors import (
    BYTES,
    Array,
    Shape,
    Tensor,
    TensorSpec,
    as_bytes,
    element_count,
    objects,
)
from loadtests.errors import BenchError
from loadtests.payloads.base import Sample

MOST: Final = 10_000
"""Requests that are kept in memory; what a source has beyond them is left out, and said to be."""


def deal(total: int, rows: int, source: str, make: Callable[[int, int], Sample]) -> list[Sample]:
    """Requests of ``rows`` consecutive rows each; a rest that does not fill one is left out.

    ``make`` takes the first row and the one behind the last. Raises `BenchError`.
    """
    if total < rows:
        raise BenchError(f"{source} has {total} rows, fewer than the {rows} of one request")
    starts = range(0, total - rows + 1, rows)[:MOST]
    return [make(start, start + rows) for start in starts]


def of_columns(
    columns: Mapping[str, Array], metadata: ModelMetadata, rows: int, source: str
) -> list[Sample]:
    """Arrays by input name, all of the same length, as an .npz has them. Raises `BenchError`."""
    names = [spec.name for spec in metadata.inputs]
    for name in columns:
        if name not in names:
            raise BenchError(
                f"{source} has an array '{printable(name)}', but {takes(metadata)}; name the "
                "arrays like the inputs"
            )
    for spec in metadata.inputs:
        if spec.name not in columns and not spec.optional:
            raise BenchError(f"{source} has no array '{spec.name}', but {takes(metadata)}")
    whole = [spec for spec in metadata.inputs if spec.name in columns]
    if any(spec.shape[:1] != (-1,) for spec in whole):
        # Without an open first dimension there are no rows to deal: all of it is one request.
        return [Sample(tuple(fit(spec, columns[spec.name], source) for spec in whole))]
    fitted = [fit(spec, columns[spec.name], source) for spec in whole]
    totals = {tensor.shape[0] for tensor in fitted}
    if len(totals) != 1:
        listed = ", ".join(f"{tensor.name}: {tensor.shape[0]}" for tensor in fitted)
        raise BenchError(f"the arrays of {source} differ in their number of rows ({listed})")
    return deal(
        totals.pop(),
        rows,
        source,
        lambda start, stop: Sample(tuple(tensor.rows(start, stop) for tensor in fitted)),
    )


def of_matrix(array: Array, metadata: ModelMetadata, rows: int, source: str) -> list[Sample]:
    """One array of rows: the only input, or its columns dealt to all inputs in their order."""
    specs = [spec for spec in metadata.inputs if not spec.optional]
    if len(specs) == 1:
        return of_columns({specs[0].name: array}, metadata, rows, source)
    widths = [element_count(spec.shape[1:]) for spec in specs]
    dealt = specs and all(s.shape[:1] == (-1,) and -1 not in s.shape[1:] for s in specs)
    if array.ndim != 2 or not dealt or sum(widths) != array.shape[1]:
        raise BenchError(
            f"{source} is one array of shape {list(array.shape)}, but {takes(metadata)}; use an "
            ".npz with one array for each input"
        )
    ends = np.cumsum(widths).tolist()
    columns = {
        spec.name: array[:, end - width : end]
        for spec, width, end in zip(specs, widths, ends, strict=True)
    }
    return of_columns(columns, metadata, rows, source)


def of_frame(
    names: Sequence[str],
    lines: Sequence[list[Any]],
    metadata: ModelMetadata,
    rows: int,
    source: str,
    *,
    text: bool = False,
) -> list[Sample]:
    """The rows of a table, read as ``/invocations`` reads them; ``text``: they are cells of a CSV.

    Raises `BenchError`.
    """
    contract = Contract(metadata.inputs, metadata.outputs, batched=True)

    def make(start: int, stop: int) -> Sample:
        frame = Frame(tuple(names), list(lines[start:stop]), text=text)
        try:
            request = decode_invocations(metadata.name, "", Payload(frame=frame), contract)
            contract.check(request)
        except InvalidRequest as error:
            raise BenchError(f"{source}, rows {start} to {stop - 1}: {error}") from None
        return Sample(request.inputs)

    return deal(len(lines), rows, source, make)


def fit(spec: TensorSpec, array: Array, source: str) -> Tensor:
    """The array as the input takes it, if its values can be that. Raises `BenchError`.

    Rows given flat take the inner shape; numbers take the datatype where they keep their value, or
    lose no more than a float's precision.
    """
    where = f"{source}, input '{spec.name}'"
    shape = _shape(spec, array.shape)
    if shape is None:
        raise BenchError(f"{where}: shape {list(array.shape)} does not fit {spec!r}")
    kind = spec.datatype
    if kind is BYTES:
        if array.dtype.kind not in "OSU":
            raise BenchError(f"{where}: {array.dtype} is no text, which {spec!r} takes")
        values = objects([as_bytes(each) for each in array.ravel().tolist()], shape)
        return Tensor(spec.name, kind, shape, array=values)
    found = array.dtype.kind
    if found == "O":
        raise BenchError(f"{where}: it holds objects, but {spec!r} takes numbers")
    ours = kind.kind == "bool"
    numbers = found in "iuf" or array.dtype == kind.dtype
    if (found == "b") != ours or not (ours or numbers):
        raise BenchError(f"{where}: {array.dtype} does not fit {spec!r}; convert the values")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(kind.dtype)
        kept = (
            np.array_equal(np.isfinite(converted), np.isfinite(array))
            if kind.kind == "float"
            else np.array_equal(converted.astype(array.dtype), array)
        )
    if not kept:
        raise BenchError(f"{where}: it holds values that {kind} cannot hold")
    return Tensor(spec.name, kind, shape, array=np.ascontiguousarray(converted).reshape(shape))


def _shape(spec: TensorSpec, shape: Shape) -> Shape | None:
    """``shape`` as the input declares it; ``None``: it does not fit."""
    declared = spec.shape
    if len(shape) == len(declared) and all(
        want in (-1, size) for size, want in zip(shape, declared, strict=True)
    ):
        return shape
    inner = declared[1:]
    if not (declared and shape) or -1 in inner or declared[0] not in (-1, shape[0]):
        return None
    return (shape[0], *inner) if element_count(inner) == element_count(shape[1:]) else None


def takes(metadata: ModelMetadata) -> str:
    """What the model takes, for errors."""
    return f"model '{printable(metadata.name)}' takes: {', '.join(map(repr, metadata.inputs))}"
