"""Random requests that fit a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from gateway.codecs.client_grpc import ModelMetadata
from gateway.errors import printable
from gateway.tensors import BYTES, Array, Shape, Tensor, TensorSpec, element_count, objects
from loadtests.errors import BenchError
from loadtests.payloads.base import Sample

Range = tuple[float, float]
SMALL: Final = 10
"""Integers are 0 to 9 unless a range is given: indexes into any table worth testing exist."""
WORDS: Final = (
    "water", "stone", "river", "light", "the", "of", "and", "quiet", "engine", "seven", "north",
    "paper", "green", "house", "under", "morning", "slowly", "letter", "garden", "bridge",
)  # fmt: skip


def generate(
    metadata: ModelMetadata,
    *,
    rows: int,
    shapes: Mapping[str, Shape],
    ranges: Mapping[str, Range],
    count: int,
    seed: int,
) -> list[Sample]:
    """``count`` requests: floats from 0 to 1, integers from 0 to 9, truth values, words.

    ``ranges`` (name → low, high, both included for integers) replaces those bounds. Inputs that the
    model can do without are left out unless they have a shape or a range. Raises `BenchError`.
    """
    if not metadata.inputs:
        raise BenchError(
            f"model '{printable(metadata.name)}' declares no inputs, so nothing can be made up for "
            "it; give a request with --data FILE.json"
        )
    for option, given in (("shape", shapes), ("range", ranges)):
        for name in given:
            if all(name != spec.name for spec in metadata.inputs):
                raise BenchError(
                    f"{option} {printable(name)}=...: model '{printable(metadata.name)}' has no "
                    f"such input; it takes: {', '.join(map(repr, metadata.inputs))}"
                )
    specs = [
        spec
        for spec in metadata.inputs
        if not spec.optional or spec.name in shapes or spec.name in ranges
    ]
    found = [(s, shape_of(s, rows, shapes.get(s.name)), ranges.get(s.name)) for s in specs]
    random = np.random.default_rng(seed)
    return [
        Sample(
            tuple(
                Tensor(spec.name, spec.datatype, shape, array=_values(random, spec, shape, bounds))
                for spec, shape, bounds in found
            )
        )
        for _ in range(count)
    ]


def shape_of(spec: TensorSpec, rows: int, given: Shape | None) -> Shape:
    """The shape that is sent: declared sizes, ``rows`` for an open first dimension, and ``given``
    (all dimensions, or all but an open first one) for the rest. Raises `BenchError`."""
    declared = spec.shape
    name = printable(spec.name)
    if given is not None and len(given) == len(declared) - 1 and declared[:1] == (-1,):
        given = (rows, *given)
    if given is not None and (
        len(given) != len(declared)
        or any(size < 0 or want not in (-1, size) for size, want in zip(given, declared))  # noqa: B905
    ):
        raise BenchError(
            f"shape {name}={','.join(map(str, given))} does not fit input {spec!r}; give every "
            "dimension, or all behind the open first one"
        )
    if given is not None:
        return given
    shape = []
    for axis, size in enumerate(declared):
        if size >= 0:
            shape.append(size)
        elif axis == 0:
            shape.append(rows)
        else:
            inner = ",".join("N" if each < 0 else str(each) for each in declared)
            raise BenchError(
                f"input {spec!r} has an open size at axis {axis}; say how large it is, with the "
                f"shape {name}={inner}"
            )
    return tuple(shape)


def _values(
    random: np.random.Generator, spec: TensorSpec, shape: Shape, bounds: Range | None
) -> Array:
    kind = spec.datatype
    size = element_count(shape)
    if kind.kind in ("bytes", "bool") and bounds is not None:
        raise BenchError(f"range {printable(spec.name)}=...: {kind} has no range; leave it out")
    if kind is BYTES:
        return objects([_text(random, spec) for _ in range(size)], shape)
    if kind.kind == "bool":
        return random.integers(0, 2, shape).astype(kind.dtype)
    low, high = bounds or (0, SMALL - 1 if kind.kind == "int" else 1)
    if kind.kind == "float":
        return random.uniform(low, high, shape).astype(kind.dtype)
    limits = np.iinfo(kind.dtype)
    if low != int(low) or high != int(high) or low < limits.min or high > limits.max:
        raise BenchError(
            f"range {printable(spec.name)}={low:g}:{high:g} does not fit {kind}; give whole "
            f"numbers from {limits.min} to {limits.max}"
        )
    return random.integers(int(low), int(high), shape, dtype=kind.dtype, endpoint=True)


def _text(random: np.random.Generator, spec: TensorSpec) -> bytes:
    if spec.content == "datetime":
        day = int(random.integers(0, 20_000))
        return str(np.datetime64("1970-01-01") + day).encode()
    words = " ".join(random.choice(WORDS, int(random.integers(1, 4))))
    return f'"{words}"'.encode() if spec.content == "json" else words.encode()
