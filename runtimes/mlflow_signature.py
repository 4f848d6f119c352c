"""A model's signature, from ``MLmodel`` or from the settings, as tensors of the protocol.

| MLflow column | datatype | | MLflow column | datatype |
|---|---|---|---|---|
| boolean | BOOL | | string | BYTES, UTF-8 |
| integer | INT32 | | binary | BYTES |
| long | INT64 | | datetime | BYTES, ISO 8601 |
| float | FP32 | | array, object, map, any | BYTES, JSON |
| double | FP64 | | | |

A column is a tensor ``[-1, 1]``; a tensor keeps its shape. What has no name is called
``input-0``, ``input-1``, ... and ``output-0``, ...: as MLServer does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from gateway.errors import ModelLoadError, printable
from gateway.model_settings import ModelSettings, TensorSettings
from gateway.tensors import BYTES, DATATYPES, MAX_RANK, Datatype, Shape, TensorSpec, datatype_of

COLUMNS: Final = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
    "datetime": "BYTES",
    "array": "BYTES",
    "object": "BYTES",
    "map": "BYTES",
    "any": "BYTES",
}
AS_JSON: Final = frozenset(("array", "object", "map", "any"))
TENSOR: Final = "tensor"
HOW_TO_SIGN: Final = (
    "save the model with signature=mlflow.models.infer_signature(inputs, outputs), or declare "
    "inputs and outputs in model.yaml"
)


@dataclass(frozen=True)
class Field:
    """One column or tensor. `name` is what clients say, `own` what the model says, if anything."""

    name: str
    own: str | None
    kind: str
    """A key of `COLUMNS`, or ``tensor``."""
    datatype: Datatype
    shape: Shape
    dtype: np.dtype[Any] | None = None
    """Of a tensor, as the model wants it."""
    optional: bool = False

    @property
    def spec(self) -> TensorSpec:
        """As clients see it."""
        return TensorSpec(
            self.name,
            self.datatype,
            self.shape,
            optional=self.optional,
            content=_content(self.kind),
        )


def _content(kind: str) -> str:
    """`TensorSpec.content` of a field."""
    if kind in AS_JSON:
        return "json"
    return {TENSOR: "", "binary": kind, "datetime": kind}.get(kind, "column")


@dataclass(frozen=True)
class Param:
    """One parameter of a request that the model knows."""

    name: str
    kind: str
    listed: bool
    """Whether it is an array (or an object), which requests carry as JSON."""


@dataclass(frozen=True)
class Signature:
    """`columns`: the model takes a DataFrame; else arrays."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    params: tuple[Param, ...]
    columns: bool


def read_signature(raw: Mapping[str, Any], settings: ModelSettings) -> Signature:
    """The signature in ``MLmodel``, made to agree with what the settings declare, which alone
    count where ``MLmodel`` has none. Raises `ModelLoadError`."""
    batched = bool(settings.max_batch_size)
    inputs = _side("input", raw, settings.inputs, batched=batched)
    outputs = _side("output", raw, settings.outputs, batched=batched)
    columns = bool(inputs) and inputs[0].kind != TENSOR
    if any((field.kind != TENSOR) != columns for field in inputs):
        raise ModelLoadError("MLmodel: the signature mixes columns and tensors in its inputs")
    if "dataframe" in settings.options:
        if raw.get("inputs") is not None:
            raise ModelLoadError(
                "option 'dataframe' is for models without a signature; the one in MLmodel says "
                f"{'columns' if columns else 'tensors'}; remove the option"
            )
        columns = settings.options["dataframe"] is True
    return Signature(inputs, outputs, _params(raw.get("params")), columns)


def fields_of(text: object, side: str) -> tuple[Field, ...]:
    """The fields of ``signature.inputs`` or ``.outputs``. Raises `ModelLoadError`."""
    where = f"MLmodel: signature.{side}s"
    fields = tuple(_field(each, side, n, where) for n, each in enumerate(_listed(text, where)))
    names = [field.name for field in fields]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ModelLoadError(f"{where} has '{printable(twice)}' twice")
    return fields


def _side(
    side: str, raw: Mapping[str, Any], declared: Sequence[TensorSettings], *, batched: bool
) -> tuple[Field, ...]:
    for tensor in declared:
        if tensor.reshape is not None:
            raise ModelLoadError(
                f"{side} '{tensor.name}': 'reshape' is not done for python_function models; "
                "declare the shape that the model has"
            )
    text = raw.get(f"{side}s")
    if text is None:
        if not declared:
            raise ModelLoadError(f"MLmodel has no signature of its {side}s; {HOW_TO_SIGN}")
        return tuple(_declared(tensor, batched=batched) for tensor in declared)
    fields = fields_of(text, side)
    if not declared:
        if not fields and side == "output":
            raise ModelLoadError(f"MLmodel: signature.outputs is empty; {HOW_TO_SIGN}")
        return fields
    known = {field.name: field for field in fields}
    wanted = {tensor.name: tensor for tensor in declared}
    strange = next((name for name in wanted if name not in known), None)
    absent = next((n for n, f in known.items() if n not in wanted and not f.optional), None)
    if strange is not None or (absent is not None and side == "input"):
        raise ModelLoadError(
            f"{side} '{printable(strange or absent)}' is "
            f"{'declared' if strange else 'not declared'}, but the signature in MLmodel has: "
            f"{printable(', '.join(known), 300)}"
        )
    return tuple(_agreed(side, known[n], t, batched=batched) for n, t in wanted.items())


def _declared(tensor: TensorSettings, *, batched: bool) -> Field:
    """A field of a model without a signature."""
    kind = DATATYPES[tensor.datatype]
    shape = (*((-1,) if batched else ()), *tensor.dims)
    dtype = None if kind is BYTES else kind.dtype
    return Field(tensor.name, tensor.name, TENSOR, kind, shape, dtype, tensor.optional)


def _agreed(side: str, field: Field, tensor: TensorSettings, *, batched: bool) -> Field:
    dims = (*((-1,) if batched else ()), *tensor.dims)
    fits = len(dims) == len(field.shape) and all(
        -1 in (want, got) or want == got for want, got in zip(dims, field.shape, strict=True)
    )
    if tensor.datatype != field.datatype.name or not fits:
        note = "; dims come without the batch dimension" if batched else ""
        raise ModelLoadError(
            f"{side} '{tensor.name}' is declared as {tensor.datatype} {list(dims)}, but the "
            f"signature in MLmodel has {field.spec.datatype} {list(field.shape)}{note}"
        )
    if tensor.optional and not field.optional:
        raise ModelLoadError(
            f"{side} '{tensor.name}' is declared optional, but the signature in MLmodel needs it"
        )
    shape = tuple(d if d >= 0 else f for d, f in zip(dims, field.shape, strict=True))
    return replace(field, shape=shape)


def _listed(text: object, where: str) -> list[dict[str, Any]]:
    """MLflow writes lists as JSON in a string."""
    try:
        content = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise ModelLoadError(f"{where} must be a JSON list of objects")
    return content


def _field(raw: dict[str, Any], side: str, index: int, where: str) -> Field:
    own = raw.get("name")
    if own is not None and not isinstance(own, (str, int)):
        raise ModelLoadError(f"{where}[{index}]: the name must be text")
    own = None if own is None else str(own)
    name = f"{side}-{index}" if own is None else own
    kind = raw.get("type")
    optional = side == "input" and raw.get("required", True) is False
    if kind == TENSOR:
        return _tensor(name, own, raw.get("tensor-spec"), where, optional=optional)
    known = COLUMNS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise ModelLoadError(
            f"{where}: '{printable(name)}' is of the type '{printable(kind)}', which the inference "
            f"protocol has no datatype for; known: {', '.join(COLUMNS)}, {TENSOR}"
        )
    return Field(name, own, str(kind), DATATYPES[known], (-1, 1), optional=optional)


def _tensor(name: str, own: str | None, spec: object, where: str, *, optional: bool) -> Field:
    shown = f"{where}: tensor '{printable(name)}'"
    if not isinstance(spec, dict):
        raise ModelLoadError(f"{shown} has no tensor-spec")
    shape = spec.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(dim) is int and dim >= -1 for dim in shape)
    ):
        raise ModelLoadError(f"{shown} has no shape such as [-1, 3], with -1 for any size")
    try:
        dtype = np.dtype(spec["dtype"]) if isinstance(spec.get("dtype"), str) else None
        if dtype is None or (dtype.hasobject and dtype.kind != "O"):
            raise TypeError
        kind = datatype_of(np.empty(0, dtype))
    except (KeyError, TypeError, ValueError, SyntaxError):
        raise ModelLoadError(
            f"{shown} is of the type '{printable(spec.get('dtype'))}', which the inference "
            "protocol has no datatype for"
        ) from None
    return Field(name, own, TENSOR, kind, tuple(shape), dtype, optional)


def _params(text: object) -> tuple[Param, ...]:
    if text is None:
        return ()
    where = "MLmodel: signature.params"
    params = []
    for raw in _listed(text, where):
        name, kind = raw.get("name"), raw.get("type")
        if not isinstance(name, str) or not isinstance(kind, str):
            raise ModelLoadError(f"{where} must have a name and a type each")
        listed = raw.get("shape") is not None or kind == "object"
        params.append(Param(name, kind, listed))
    return tuple(params)
