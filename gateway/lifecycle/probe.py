"""Finds out at load time whether rows may be batched, and what batches cost.

Two made-up rows run apart and together; only if the answers agree is the first dimension
taken for a batch. (A state ``[2, N, 128]`` has a symbolic dimension too, and a model may mix
rows, with a softmax over the wrong axis, say.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

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
from runtimes.interface import Model

OPEN_SIZES: Final = (8, 1, 32, 224)
"""Sizes tried for inner dimensions of any size."""
MAX_ELEMENTS: Final = 16_000_000
WARMUP_SECONDS: Final = 1.0
"""Most seconds for the largest batch of the warm-up."""


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
    declared = settings.max_batch_size
    findings = Findings(0)
    if declared is None:
        findings.max_batch_size = default_max if model.batch_dimension else 0
        if not model.batch_dimension:
            findings.notes.append("not batched: inputs and outputs share no symbolic first dimension")
    else:
        findings.max_batch_size = declared
        if declared:
            check_batch_dimension(model, declared)
    if findings.max_batch_size:
        verdict = rows_are_independent(model)
        if verdict is False:
            findings.max_batch_size = 0
            findings.notes.append("not batched: rows together give other answers than rows apart")
        elif verdict is None and declared is None:
            findings.max_batch_size = 0
            findings.notes.append(
                "not batched: made-up rows do not run; set max_batch_size in model.yaml"
            )
    if settings.warmup:
        for each in settings.warmup:
            run_warmup(model, each, folder)
    elif findings.max_batch_size:
        learn(model, findings)
    return findings


def check_batch_dimension(model: Model, declared: int) -> None:
    """Raises `ModelLoadError` when a tensor's first dimension cannot be a batch."""
    for what, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs:
            if not spec.shape or (spec.shape[0] not in (-1, declared) and declared != 1):
                raise ModelLoadError(
                    f"max_batch_size is {declared}, but {what} '{spec.name}' has shape "
                    f"{list(spec.shape)}, whose first dimension is no batch; set max_batch_size: 0"
                )


def rows_are_independent(model: Model) -> bool | None:
    """Whether two rows together give what they give apart; `None` if they do not run at all."""
    rng = np.random.default_rng(20240229)
    for size in open_sizes(model):
        pair = made_up(model.inputs, 2, size, rng)
        if pair is None:
            continue
        try:
            apart = [
                model.infer({name: array[row : row + 1] for name, array in pair.items()}, (), {})
                for row in range(2)
            ]
        except Exception:
            continue
        try:
            together = model.infer(pair, (), {})
        except Exception:
            return False
        return all(
            same(
                np.concatenate([np.atleast_1d(a[name]) for a in apart]), np.atleast_1d(array)
            )
            for name, array in together.items()
            if all(np.ndim(a[name]) == np.ndim(array) for a in apart)
        ) and all(np.ndim(array) > 0 and len(array) == 2 for array in together.values())
    return None


def same(apart: Array, together: Array) -> bool:
    """Equal, but for the rounding that differs between batch sizes."""
    if apart.shape != together.shape:
        return False
    if apart.dtype.kind not in "fcV":
        return bool(np.array_equal(apart, together))
    left, right = apart.astype(np.float64), together.astype(np.float64)
    finite = np.abs(right[np.isfinite(right)])
    scale = float(finite.max()) if finite.size else 1.0
    return bool(np.allclose(left, right, rtol=1e-3, atol=1e-4 * scale + 1e-7, equal_nan=True))


def open_sizes(model: Model) -> tuple[int, ...]:
    if any(-1 in spec.shape[1:] for spec in model.inputs):
        return OPEN_SIZES
    return (1,)


def made_up(
    specs: tuple[TensorSpec, ...], rows: int, size: int, rng: np.random.Generator
) -> dict[str, Array] | None:
    """Inputs of `rows` random rows, `size` for inner dimensions of any size; `None` if huge."""
    inputs: dict[str, Array] = {}
    for spec in specs:
        shape = (rows, *(size if dim == -1 else dim for dim in spec.shape[1:]))
        if element_count(shape) > MAX_ELEMENTS:
            return None
        inputs[spec.name] = random_array(spec.datatype.name, shape, rng)
    return inputs


def random_array(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Small values that most models take: indices 0 and 1, floats around 0, one-letter strings."""
    dtype: Any = datatype(kind).dtype
    count = element_count(shape)
    if kind == "BYTES":
        return objects([bytes([97 + n]) for n in rng.integers(0, 26, count)], shape)
    if datatype(kind).kind == "float":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def learn(model: Model, findings: Findings) -> None:
    """Runs small and full batches, so that the first callers meet a warm model of known cost."""
    rng = np.random.default_rng(7)
    largest = findings.max_batch_size
    for rows in sorted({1, min(8, largest), largest}):
        expected = findings.curve.predict(rows)
        if expected is not None and expected > WARMUP_SECONDS:
            return
        for size in open_sizes(model):
            inputs = made_up(model.inputs, rows, size, rng)
            if inputs is None:
                continue
            try:
                # The first run at a size allocates; the second is what it costs.
                for _ in range(2):
                    started = perf_counter()
                    model.infer(inputs, (), {})
                    seconds = perf_counter() - started
            except Exception:
                continue
            findings.curve.observe(rows, seconds)
            break


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
            model.infer(inputs, (), {})
        except Exception as error:
            raise ModelLoadError(f"warm-up '{name}' failed: {error}") from error


def warmup_array(
    name: str, settings: WarmupInput, rows: int, folder: Path, rng: np.random.Generator
) -> Array:
    kind = datatype(settings.datatype)
    shape = (*((rows,) if rows else ()), *settings.dims)
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
    return random_array(settings.datatype, shape, rng)
