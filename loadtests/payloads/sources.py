"""Where samples come from."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gateway.codecs.client_grpc import ModelMetadata
from gateway.codecs.invocations_csv import read_csv
from gateway.errors import InvalidRequest, printable
from loadtests.errors import BenchError
from loadtests.payloads.arrays import MOST, of_columns, of_frame, of_matrix
from loadtests.payloads.base import Sample
from loadtests.payloads.bodies import samples_of_json
from loadtests.payloads.generated import Range, generate
from loadtests.payloads.recordings import of_har, of_jsonl

SKLEARN: Final = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
"""Data sets inside scikit-learn; nothing is downloaded."""
KINDS: Final = ".json, .jsonl, .har, .npz, .npy, .csv, .parquet, or sklearn:NAME"


def open_payloads(
    source: str,
    metadata: ModelMetadata | None,
    *,
    rows: int = 1,
    shapes: dict[str, tuple[int, ...]] | None = None,
    count: int = 64,
    seed: int = 1,
    ranges: Mapping[str, Range] | None = None,
) -> tuple[Sequence[Sample], str]:
    """Samples, and where they came from in words.

    ``source``: empty (random values for the model's own metadata; ``rows`` for the first symbolic
    dimension, ``shapes`` for the others, ``ranges`` of numbers, ``count`` requests), a file
    (``.json`` request body, ``.npz``, ``.npy``), a recording (``.jsonl``, ``.har``), a table
    (``.csv``, ``.parquet``) or a data set (``sklearn:digits``). The rows of arrays, tables and data
    sets are dealt into requests of ``rows``; bodies and recordings are as they are.
    Raises `BenchError` for a source that does not fit the model, naming tensor and shape.
    """
    if rows < 1 or count < 1:
        raise BenchError(f"rows and count must be at least 1, not {rows} and {count}")
    if not source:
        if metadata is None:
            raise BenchError(
                "the server says nothing of the model, so nothing can be made up for it; give a "
                "request with --data FILE.json"
            )
        samples = generate(
            metadata, rows=rows, shapes=shapes or {}, ranges=ranges or {}, count=count, seed=seed
        )
        shown = ", ".join(
            f"{printable(each.name)} {each.datatype} {list(each.shape)}"
            for each in samples[0].inputs
        )
        return samples, f"{count} requests of random values ({shown}), seed {seed}"
    if shapes or ranges:
        option, name = (
            ("shape", next(iter(shapes))) if shapes else ("range", next(iter(ranges or {})))
        )
        raise BenchError(
            f"{option} {printable(name)}=... is for random values; leave it out, as "
            f"{printable(source)} has values of its own"
        )
    if source.startswith("sklearn:"):
        samples = _sklearn(source, metadata, rows)
        return samples, _told(source, samples, rows)
    path = Path(source)
    opened = _OPEN.get(path.suffix.lower())
    if opened is None:
        raise BenchError(f"'{printable(source)}' is no source of requests; known: {KINDS}")
    try:
        samples, note = opened(path, metadata, rows)
    except OSError as error:
        raise BenchError(
            f"'{printable(source)}' cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    return samples, _told(path.name, samples, rows if path.suffix in _DEALT else None) + note


def _told(source: str, samples: Sequence[Sample], rows: int | None) -> str:
    count = f"{len(samples)} request{'s' if len(samples) != 1 else ''}"
    each = f" of {rows} row{'s' if rows != 1 else ''}" if rows is not None else ""
    more = f" (no more than {MOST} are kept)" if len(samples) == MOST else ""
    return f"{printable(source)}: {count}{each}{more}"


# --- files

Opened = tuple[list[Sample], str]


def _json(path: Path, metadata: ModelMetadata | None, rows: int) -> Opened:
    return samples_of_json(path.read_bytes(), metadata, path.name), ""


def _jsonl(path: Path, metadata: ModelMetadata | None, rows: int) -> Opened:
    samples, others = of_jsonl(path.read_bytes(), metadata, path.name)
    return samples, _without(others)


def _har(path: Path, metadata: ModelMetadata | None, rows: int) -> Opened:
    samples, others = of_har(path.read_bytes(), metadata, path.name)
    return samples, _without(others)


def _without(others: int) -> str:
    return f", {others} others left out" if others else ""


def _npz(path: Path, metadata: ModelMetadata | None, rows: int) -> Opened:
    with path.open("rb") as file:
        found = _loaded(file, path)
        if isinstance(found, np.ndarray):
            raise BenchError(f"{path.name} is one array; call it .npy")
        try:
            columns = {name: found[name] for name in found.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from None
    return of_columns(columns, _known(metadata, path.name), rows, path.name), ""


def _npy(path: Path, metadata: ModelMetadata | None, rows: int) -> Opened:
    with path.open("rb") as file:
        found = _loaded(file, path)
    if not isinstance(found, np.ndarray):
        raise BenchError(f"{path.name} holds several arrays; call it .npz")
    return of_matrix(found, _known(metadata, path.name), rows, path.name), ""


def _loaded(file: Any, path: Path) -> Any:
    try:
        # Pickles run code; arrays of text as numpy has them need none.
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> BenchError:
    if "pickle" in str(error).lower():
        return BenchError(
            f"{path.name} is no array file, or holds Python objects, which are not read; save text "
            "with dtype 'U' or 'S'"
        )
    return BenchError(f"{path.name} cannot be read: {printable(error)}")


def _csv(path: Path, metadata: ModelMetadata | None, rows: int) -> Opened:
    known = _known(metadata, path.name)
    try:
        frame = read_csv(path.read_bytes())
    except InvalidRequest as error:
        raise BenchError(f"{path.name}: {error}") from None
    names = frame.names or ()
    return of_frame(names, frame.rows, known, rows, path.name, text=frame.text), ""


def _parquet(path: Path, metadata: ModelMetadata | None, rows: int) -> Opened:
    known = _known(metadata, path.name)
    try:
        import pandas
        import pyarrow  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise BenchError(
            f"{path.name} needs {error.name or 'pandas'}: type pip install pandas pyarrow"
        ) from None
    try:
        table = pandas.read_parquet(path)
    except ValueError as error:  # Arrow's errors are
        raise BenchError(f"{path.name} cannot be read: {printable(error)}") from None
    columns = [_plain(table.iloc[:, place]) for place in range(table.shape[1])]
    lines = [list(row) for row in zip(*columns, strict=True)]
    return of_frame([str(name) for name in table.columns], lines, known, rows, path.name), ""


def _plain(column: Any) -> list[Any]:
    """A column's values as JSON has them: what is not there is null."""
    missing = column.isna().tolist()
    return [
        None if gone else _cell(value) for value, gone in zip(column.tolist(), missing, strict=True)
    ]


def _cell(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_cell(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    return value.isoformat() if hasattr(value, "isoformat") else value


# --- data sets


def _sklearn(source: str, metadata: ModelMetadata | None, rows: int) -> list[Sample]:
    name = source.partition(":")[2]
    known = _known(metadata, source)
    if name not in SKLEARN:
        raise BenchError(
            f"'{printable(source)}' is no data set inside scikit-learn; known: "
            f"{', '.join(f'sklearn:{each}' for each in SKLEARN)}"
        )
    try:
        from sklearn import datasets
    except ImportError:
        raise BenchError(f"{source} needs scikit-learn: type pip install scikit-learn") from None
    return of_matrix(getattr(datasets, f"load_{name}")().data, known, rows, source)


def _known(metadata: ModelMetadata | None, source: str) -> ModelMetadata:
    if metadata is None or not metadata.inputs:
        raise BenchError(
            f"{printable(source)} holds values without names of inputs, and the server does not "
            "say what the model takes; give a request body with --data FILE.json"
        )
    return metadata


_OPEN: Final[dict[str, Callable[[Path, ModelMetadata | None, int], Opened]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".har": _har,
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _csv,
    ".parquet": _parquet,
}
_DEALT: Final = (".npz", ".npy", ".csv", ".parquet")
