"""Finds out at load time whether rows may be batched, and what batches cost.

Made-up rows run apart and together; only if the answers agree is the first dimension taken
for a batch. (A state ``[2, N, 128]`` has a symbolic dimension too, and a model may mix rows,
with a softmax over the wrong axis, say.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from ml_dtypes import finfo

from gateway.batching.curve import CostCurve
from gateway.errors import InvalidModelSettings, ModelLoadError
from gateway.model_settings import ModelSettings, WarmupInput, WarmupSettings
from gateway.tensors import (
    BYTES,
    Array,
    TensorSpec,
    datatype,
    decode_bytes_elements,
    element_count,
    objects,
)
from runtimes.interface import MADE_UP, Model

ROWS: Final = 3
OPEN_SIZES: Final = (8, 1, 32, 224)
"""Sizes tried for inner dimensions of any size."""
MAX_ELEMENTS: Final = 16_000_000
PROBE_SECONDS: Final = 1.0
"""After this long no further values are tried; one set of values is always tried."""
WARMUP_SECONDS: Final = 1.0
"""Most seconds for the largest batch of the warm-up."""


class Values(Enum):
    """Kinds of made-up values. Models differ in what they take: all that run are compared."""

    PLAIN = "floats around 0, integers 1 and 2, letters"
    SMALL = "floats from 0 to 1, integers 0 and 1, digits"


class Verdict(Enum):
    """What running rows apart and together showed."""

    APART = "rows do not depend on each other"
    MIXED = "rows together give other answers than rows apart"
    ROWLESS = "answers do not have one row for each row of the input"
    SINGLE = "two rows do not run together"
    RANDOM = "the same input gives different answers"
    UNKNOWN = "made-up rows do not run"


@dataclass
class Findings:
    """`max_batch_size` is 0 for a model that must not be batched; `notes` say why."""

    max_batch_size: int
    curve: CostCurve = field(default_factory=CostCurve)
    notes: list[str] = field(default_factory=list)


def examine(model: Model, settings: ModelSettings, default_max: int, folder: Path) -> Findings:
    """Probes and warms up a model; blocking. `folder` is the model's, for warm-up files.

    Raises `ModelLoadError` when a declared warm-up fails or a declared batch is impossible.
    """
    token = MADE_UP.set(True)
    try:
        return _examine(model, settings, default_max, folder)
    finally:
        MADE_UP.reset(token)


def _examine(model: Model, settings: ModelSettings, default_max: int, folder: Path) -> Findings:
    findings = Findings(0)
    declared = settings.max_batch_size
    if declared is None or model.separate:
        declared = model.max_batch_size
    if model.decoupled or model.stateful:
        # Answers of several requests at once cannot be told apart.
        for each in settings.warmup:
            run_warmup(model, each, folder)
        return findings
    if not model.probed:
        findings.max_batch_size = declared or 0
        for each in settings.warmup:
            run_warmup(model, each, folder)
        return findings
    if declared is not None:
        findings.max_batch_size = declared_batch(model, declared, findings.notes)
    elif not model.batch_dimension:
        findings.notes.append("not batched: inputs and outputs share no symbolic first dimension")
    else:
        verdict = compare_rows(model)
        if verdict is Verdict.APART:
            findings.max_batch_size = default_max
        elif verdict in (Verdict.UNKNOWN, Verdict.RANDOM):
            findings.notes.append(
                f"not batched: {verdict.value}; set max_batch_size in model.yaml if rows are "
                "independent"
            )
        else:
            findings.notes.append(f"not batched: {verdict.value}")
    if settings.warmup:
        for each in settings.warmup:
            run_warmup(model, each, folder)
    elif not learn(model, findings):
        findings.notes.append("not warmed up: made-up input does not run")
    return findings


# --- may rows be batched?


def declared_batch(model: Model, declared: int, notes: list[str]) -> int:
    """The declared batch size. Raises `ModelLoadError` when the model shows that it is wrong."""
    if declared == 0:
        return 0
    for what, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] not in (-1, *((1,) if declared == 1 else ())):
                raise ModelLoadError(
                    f"max_batch_size is {declared}, but {what} '{spec.name}' has shape "
                    f"{list(spec.shape)}, whose first dimension is no batch; set max_batch_size: 0"
                )
    if declared == 1:
        return 1
    verdict = compare_rows(model)
    if verdict in (Verdict.MIXED, Verdict.ROWLESS, Verdict.SINGLE):
        raise ModelLoadError(
            f"max_batch_size is {declared}, but {verdict.value}; set max_batch_size: 0"
        )
    if verdict is not Verdict.APART:
        notes.append(f"batched unchecked, as max_batch_size says: {verdict.value}")
    return declared


def compare_rows(model: Model) -> Verdict:
    """Runs made-up rows apart and together, with every kind of values that the model takes."""
    verdict = Verdict.UNKNOWN
    started = perf_counter()
    for values in Values:
        for size in open_sizes(model.inputs):
            found = compare_some(model, size, values)
            if found is Verdict.UNKNOWN:
                continue
            if found is not Verdict.APART:
                return found
            verdict = found
            break
        if verdict is Verdict.APART and perf_counter() - started > PROBE_SECONDS:
            break
    return verdict


def compare_some(model: Model, size: int, values: Values) -> Verdict:
    """As `compare_rows`, for one size of open dimensions and one kind of values."""
    rng = np.random.default_rng(20240229)
    rows = made_up(model.inputs, ROWS, size, values, rng)
    if rows is None:
        return Verdict.UNKNOWN
    single = [{name: array[n : n + 1] for name, array in rows.items()} for n in range(ROWS)]
    try:
        apart = [dict(model.infer(row, (), {})) for row in single]
    except Exception:
        return Verdict.UNKNOWN
    try:
        together = dict(model.infer(rows, (), {}))
    except Exception:
        return Verdict.SINGLE
    for outputs, count in (*((each, 1) for each in apart), (together, ROWS)):
        if any(np.ndim(array) == 0 or len(array) != count for array in outputs.values()):
            return Verdict.ROWLESS
    if all(same(np.concatenate([a[name] for a in apart]), together[name]) for name in together):
        return Verdict.APART
    again = model.infer(single[0], (), {})
    if all(same(apart[0][name], array) for name, array in again.items()):
        return Verdict.MIXED
    return Verdict.RANDOM


def same(apart: Array, together: Array) -> bool:
    """Equal, but for the rounding that differs between batch sizes."""
    if apart.shape != together.shape:
        return False
    if apart.dtype.kind not in "fcV":
        return bool(np.array_equal(apart, together))
    step = float(finfo(apart.dtype).eps)  # type: ignore[no-untyped-call]
    left, right = apart.astype(np.float64), together.astype(np.float64)
    finite = np.abs(right[np.isfinite(right)])
    scale = float(finite.max()) if finite.size else 1.0
    rtol, atol = max(1e-3, 8 * step), max(1e-4, 4 * step) * scale + 1e-7
    return bool(np.allclose(left, right, rtol=rtol, atol=atol, equal_nan=True))


# --- made-up input


def open_sizes(specs: tuple[TensorSpec, ...], *, rows: bool = True) -> tuple[int, ...]:
    """The sizes worth trying; with `rows` the first dimension is not open."""
    inner = (spec.shape[1:] if rows else spec.shape for spec in specs)
    return OPEN_SIZES if any(-1 in shape for shape in inner) else (1,)


def made_up(
    specs: tuple[TensorSpec, ...],
    rows: int,
    size: int,
    values: Values,
    rng: np.random.Generator,
) -> dict[str, Array] | None:
    """Inputs of `rows` rows (0: the first dimension is one like the others), `size` for other
    dimensions of any size. `None` if that is too much."""
    inputs: dict[str, Array] = {}
    for spec in specs:
        if spec.optional:
            continue
        shape = tuple(size if dim == -1 else dim for dim in spec.shape)
        if rows:
            shape = (rows, *shape[1:])
        if element_count(shape) > MAX_ELEMENTS:
            return None
        inputs[spec.name] = made_up_array(spec.datatype.name, shape, values, rng)
    return inputs


def made_up_array(
    kind: str, shape: tuple[int, ...], values: Values, rng: np.random.Generator
) -> Array:
    """Values that many models take: integers may be indices, texts may be numbers."""
    plain = values is Values.PLAIN
    count = element_count(shape)
    if kind == "BYTES":
        first, numbers = (97, 26) if plain else (48, 10)
        return objects([bytes([first + n]) for n in rng.integers(0, numbers, count)], shape)
    dtype: Any = datatype(kind).dtype
    if datatype(kind).kind == "float":
        made = rng.standard_normal(shape) if plain else rng.random(shape)
        return np.asarray(made).astype(dtype)
    lowest = 1 if plain and kind != "BOOL" else 0
    return np.asarray(rng.integers(lowest, lowest + 2, shape)).astype(dtype)


# --- warming up


def learn(model: Model, findings: Findings) -> bool:
    """Runs small and full batches, so that the first callers meet a warm model of known cost.

    False if the model takes none of the made-up inputs.
    """
    largest = findings.max_batch_size
    sizes = sorted({1, min(8, largest), largest}) if largest else [0]
    ran = False
    for rows in sizes:
        expected = findings.curve.predict(rows or 1)
        if expected is not None and expected > WARMUP_SECONDS:
            break
        for inputs in attempts(model, rows):
            try:
                # The first run at a size allocates; the second is what it costs.
                for _ in range(2):
                    started = perf_counter()
                    model.infer(inputs, (), {})
                    seconds = perf_counter() - started
            except Exception:
                continue
            findings.curve.observe(rows or 1, seconds)
            ran = True
            break
    return ran


def attempts(model: Model, rows: int) -> Iterator[dict[str, Array]]:
    """Inputs to try one after the other."""
    for values in Values:
        for size in open_sizes(model.inputs, rows=bool(rows)):
            inputs = made_up(model.inputs, rows, size, values, np.random.default_rng(7))
            if inputs is not None:
                yield inputs


def run_warmup(model: Model, settings: WarmupSettings, folder: Path) -> None:
    """One declared warm-up request. Raises `ModelLoadError`."""
    rng = np.random.default_rng(7)
    name = settings.name or "warm-up"
    inputs: Mapping[str, Array] = {
        tensor: warmup_array(tensor, each, settings.batch_size, folder, rng)
        for tensor, each in settings.inputs.items()
    }
    for _ in range(settings.count):
        try:
            if model.decoupled:
                for _ in model.stream(inputs, (), {}):
                    pass
            else:
                model.infer(inputs, (), {})
        except Exception as error:
            raise ModelLoadError(f"warm-up '{name}' failed: {error}") from error


def warmup_array(
    name: str, settings: WarmupInput, rows: int, folder: Path, rng: np.random.Generator
) -> Array:
    kind = datatype(settings.datatype)
    shape = (*((rows,) if rows else ()), *settings.dims)
    if any(dim < 0 for dim in shape):
        raise InvalidModelSettings(f"warm-up: dims {list(shape)} of '{name}' must all be sizes")
    if settings.file is not None:
        path = (folder / "warmup" / settings.file).resolve()
        if not path.is_relative_to((folder / "warmup").resolve()):
            raise InvalidModelSettings(f"warm-up file '{settings.file}' leaves the model's folder")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelLoadError(f"warm-up file '{settings.file}': {error.strerror}") from None
        if kind is BYTES:
            return decode_bytes_elements(name, data, shape)
        if len(data) != element_count(shape) * kind.itemsize:
            raise ModelLoadError(
                f"warm-up file '{settings.file}' has {len(data)} bytes, but {kind} {list(shape)} "
                f"takes {element_count(shape) * kind.itemsize}"
            )
        return np.frombuffer(data, kind.dtype).reshape(shape)
    if settings.source == "zero":
        if kind is BYTES:
            return objects([b""] * element_count(shape), shape)
        return np.zeros(shape, kind.dtype)
    return made_up_array(settings.datatype, shape, Values.SMALL, rng)
