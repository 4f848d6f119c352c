"""Does one version take and give what another does? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.tensors import Shape, TensorSpec


class Signature(Protocol):
    """A `Contract`, a `Description`, a `Model`: whatever declares tensors."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...


def signature_differences(stable: Signature, other: Signature) -> tuple[str, ...]:
    """Why callers of `stable` would not get along with `other`, one line for each tensor; empty
    where they would.

    An input may take more than before (a dimension of any size for a fixed one, a further
    optional input). Of an output, "any size" beside a fixed one contradicts nothing: one export
    knows what the other does not. A version that declares no tensors at all says nothing, and
    differs in nothing.
    """
    found: list[str] = []
    if stable.inputs and other.inputs:
        found += input_differences(stable.inputs, other.inputs)
    if stable.outputs and other.outputs:
        found += output_differences(stable.outputs, other.outputs)
    return tuple(found)


def input_differences(stable: Sequence[TensorSpec], other: Sequence[TensorSpec]) -> list[str]:
    """As `signature_differences`, for the inputs."""
    found: list[str] = []
    theirs = {spec.name: spec for spec in other}
    for spec in stable:
        mine = theirs.pop(spec.name, None)
        if mine is None:
            found.append(f"it has no input '{spec.name}'")
        elif mine.datatype is not spec.datatype or not covers(mine.shape, spec.shape):
            found.append(f"input '{spec.name}' is {form(mine)} instead of {form(spec)}")
        elif spec.optional and not mine.optional:
            found.append(f"input '{spec.name}' is not optional any more")
    found += [
        f"it needs an input '{spec.name}' ({form(spec)}) besides"
        for spec in theirs.values()
        if not spec.optional
    ]
    return found


def output_differences(stable: Sequence[TensorSpec], other: Sequence[TensorSpec]) -> list[str]:
    """As `signature_differences`, for the outputs."""
    found: list[str] = []
    theirs = {spec.name: spec for spec in other}
    for spec in stable:
        mine = theirs.pop(spec.name, None)
        if mine is None:
            found.append(f"it has no output '{spec.name}'")
        elif mine.datatype is not spec.datatype or not agree(spec.shape, mine.shape):
            found.append(f"output '{spec.name}' is {form(mine)} instead of {form(spec)}")
    found += [
        f"it gives an output '{spec.name}' ({form(spec)}) besides" for spec in theirs.values()
    ]
    return found


def covers(wide: Shape, narrow: Shape) -> bool:
    """Whether every tensor of shape `narrow` is one of shape `wide` (-1: any size)."""
    return len(wide) == len(narrow) and all(
        mine in (-1, theirs) for mine, theirs in zip(wide, narrow, strict=True)
    )


def agree(one: Shape, other: Shape) -> bool:
    """Whether some tensor is of both shapes."""
    return len(one) == len(other) and all(
        mine == theirs or -1 in (mine, theirs) for mine, theirs in zip(one, other, strict=True)
    )


def form(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"
