"""What a Python model takes and gives: as its class says, or as its settings say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from gateway.errors import InferenceFailed, InvalidRequest, ModelLoadError, printable
from gateway.model_settings import ModelSettings, TensorSettings
from gateway.tensors import BYTES, Array, TensorSpec, datatype
from runtimes.onnx_metadata import Reshape

FORM: Final = 'signature = {"inputs": {"x": ("FP32", [-1, 4])}, "outputs": {"y": ("FP32", [-1])}}'
KEYS: Final = frozenset({"inputs", "outputs"})


@dataclass(frozen=True)
class Signature:
    """Shapes with every dimension, as clients see them; the model's own differ where there is a
    reshape."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    input_reshapes: Mapping[str, Reshape] = field(default_factory=dict)
    output_reshapes: Mapping[str, Reshape] = field(default_factory=dict)

    @property
    def batch_dimension(self) -> bool:
        """Whether every tensor's first dimension is of any size."""
        specs = (*self.inputs, *self.outputs)
        return bool(specs) and all(spec.shape[:1] == (-1,) for spec in specs)

    def to_model(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs as the model gets them."""
        return reshaped(inputs, self.input_reshapes)

    def to_client(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs as clients get them. Raises `InferenceFailed` for a shape that does not fit."""
        try:
            return reshaped(outputs, self.output_reshapes)
        except ValueError as error:
            raise InferenceFailed(f"an output cannot be reshaped as declared: {error}") from None


def reshaped(tensors: Mapping[str, Array], reshapes: Mapping[str, Reshape]) -> dict[str, Array]:
    """`tensors`, those in `reshapes` in their other shape."""
    if not reshapes:
        return dict(tensors)
    return {
        name: array.reshape(reshapes[name](array.shape)) if name in reshapes else array
        for name, array in tensors.items()
    }


def from_settings(settings: ModelSettings, *, batched: bool | None = None) -> Signature:
    """As model.yaml or config.pbtxt declare it; either side may be empty."""
    rows = bool(settings.max_batch_size) if batched is None else batched
    ins = [_declared(tensor, rows) for tensor in settings.inputs]
    outs = [_declared(tensor, rows) for tensor in settings.outputs]
    return Signature(
        tuple(spec for spec, _ in ins),
        tuple(spec for spec, _ in outs),
        {s.name: Reshape(s.shape, inner) for s, inner in ins if inner is not None},
        {s.name: Reshape(inner, s.shape) for s, inner in outs if inner is not None},
    )


def _declared(tensor: TensorSettings, rows: bool) -> tuple[TensorSpec, tuple[int, ...] | None]:
    batch = (-1,) if rows else ()
    spec = TensorSpec(
        tensor.name, datatype(tensor.datatype), (*batch, *tensor.dims), optional=tensor.optional
    )
    return spec, None if tensor.reshape is None else (*batch, *tensor.reshape)


def from_class(said: object, file: str) -> Signature:
    """The value of a class's ``signature``. Raises `ModelLoadError` for what is not one."""
    if not isinstance(said, Mapping) or not set(said) <= KEYS:
        raise ModelLoadError(
            f"{file}: signature is {printable(repr(said))}, but must be like {FORM}"
        )
    return Signature(
        _specs(said.get("inputs", {}), "input", file),
        _specs(said.get("outputs", {}), "output", file),
    )


def _specs(said: object, kind: str, file: str) -> tuple[TensorSpec, ...]:
    if not isinstance(said, Mapping):
        raise ModelLoadError(f"{file}: signature: {kind}s must be a mapping, such as {FORM}")
    return tuple(_spec(str(name), each, kind, file) for name, each in said.items())


def _spec(name: str, said: Any, kind: str, file: str) -> TensorSpec:
    where = f"{file}: signature: {kind} '{printable(name)}'"
    good = isinstance(said, Sequence) and not isinstance(said, str) and len(said) in (2, 3)
    if not good or (len(said) == 3 and (said[2] != "optional" or kind == "output")):
        raise ModelLoadError(
            f"{where} is {printable(repr(said))}, but must be (datatype, shape), such as "
            '("FP32", [-1, 4]); an input may have "optional" as a third'
        )
    shape = said[1]
    whole = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not whole or any(type(dim) is not int or dim < -1 for dim in shape):
        raise ModelLoadError(
            f"{where}: shape {printable(repr(shape))} must be a list of sizes, -1 for any"
        )
    try:
        kind_of_data = datatype(str(said[0]))
    except InvalidRequest as error:
        raise ModelLoadError(f"{where}: {error}") from None
    return TensorSpec(name, kind_of_data, tuple(shape), optional=len(said) == 3)


def agreed(said: Signature, declared: Signature, file: str) -> Signature:
    """What the class says, completed by the settings. Raises `ModelLoadError` where they differ."""
    for kind, ours, theirs in (
        ("input", said.inputs, declared.inputs),
        ("output", said.outputs, declared.outputs),
    ):
        if ours and theirs and not _same(ours, theirs):
            raise ModelLoadError(
                f"{file} says that the {kind}s are {_listed(ours)}, but the settings declare "
                f"{_listed(theirs)}; say it in one place"
            )
    return Signature(
        declared.inputs or said.inputs,
        declared.outputs or said.outputs,
        declared.input_reshapes,
        declared.output_reshapes,
    )


def complete(signature: Signature, file: str) -> Signature:
    """Raises `ModelLoadError` unless both sides are known."""
    for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        if not specs:
            raise ModelLoadError(
                f"{file} does not say what its {kind} are: give the class a signature, such as "
                f"{FORM}, or declare '{kind}' in model.yaml or config.pbtxt"
            )
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise ModelLoadError(f"{file}: {kind} share a name: {', '.join(names)}")
    return signature


def _same(ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> bool:
    mine = {spec.name: (spec.datatype, spec.shape) for spec in ours}
    return mine == {spec.name: (spec.datatype, spec.shape) for spec in theirs}


def _listed(specs: Sequence[TensorSpec]) -> str:
    return printable(", ".join(map(repr, specs)), 300)


def check_outputs(
    given: object, specs: Sequence[TensorSpec], wanted: Sequence[str], what: str
) -> dict[str, Array]:
    """What a model returned, as named arrays of the declared datatypes.

    Raises `InferenceFailed`, saying what is missing or wrong.
    """
    if not isinstance(given, Mapping):
        raise InferenceFailed(
            f"{what} returned {type(given).__name__}, but must return a dict of arrays"
        )
    arrays: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in given:
            if not wanted or spec.name in wanted:
                raise InferenceFailed(f"{what} returned no output '{spec.name}'")
            continue
        array = np.asarray(given[spec.name])
        if array.dtype != spec.datatype.dtype:
            array = _converted(array, spec, what)
        arrays[spec.name] = array
    for name in given:
        if name not in arrays:
            raise InferenceFailed(
                f"{what} returned '{printable(name)}', which its signature does not have"
            )
    return arrays


def _converted(array: Array, spec: TensorSpec, what: str) -> Array:
    if spec.datatype is BYTES and array.dtype.kind in "SU":
        return array
    raise InferenceFailed(
        f"{what} returned output '{spec.name}' as {array.dtype}, but it is declared "
        f"{spec.datatype}; convert it with .astype({spec.datatype.dtype.name!r})"
    )
