"""What an ONNX file says of its inputs and outputs, made to agree with what was declared."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.errors import ModelLoadError, printable
from gateway.model_settings import ModelSettings, TensorSettings
from gateway.tensors import DATATYPES, Datatype, Shape, TensorSpec

TYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_ZIPMAP: Final = "; export it with options={'zipmap': False} (scikit-learn's converter)"
HINTS: Final = {
    "seq(map": _ZIPMAP,
    "map(": _ZIPMAP,
    "optional": "; export the model without optional tensors",
}

Dim = int | str | None
"""As ONNX Runtime gives it: a number, a symbol, or None where the file says nothing."""


@dataclass(frozen=True)
class Node:
    """One input or output of the file."""

    name: str
    datatype: Datatype
    dims: tuple[Dim, ...]
    optional: bool = False

    @property
    def shape(self) -> Shape:
        """With -1 for dimensions of any size."""
        return tuple(d if type(d) is int and d >= 0 else -1 for d in self.dims)

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


@dataclass(frozen=True)
class Reshape:
    """How one tensor changes between clients and model; shapes with every dimension.

    The sizes of the dimensions that are -1 carry over in order.
    """

    source: Shape
    target: Shape

    def __call__(self, shape: Sequence[int]) -> Shape:
        """The target shape for a tensor of `shape`."""
        free = iter([got for got, want in zip(shape, self.source, strict=True) if want < 0])
        return tuple(next(free) if dim < 0 else dim for dim in self.target)


@dataclass(frozen=True)
class Metadata:
    """What clients see, and what has to be done to tensors on the way."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_dimension: bool
    input_reshapes: Mapping[str, Reshape]
    output_reshapes: Mapping[str, Reshape]


def node_of(arg: Any, kind: str, *, optional: bool = False) -> Node:
    """From ONNX Runtime's `NodeArg`. Raises `ModelLoadError` for a type clients cannot have."""
    name = TYPES.get(arg.type)
    if name is None:
        hint = next((text for start, text in HINTS.items() if arg.type.startswith(start)), "")
        raise ModelLoadError(
            f"{kind} '{printable(arg.name)}' is of the ONNX type {arg.type}, which the inference "
            f"protocol has no datatype for{hint}"
        )
    return Node(arg.name, DATATYPES[name], tuple(arg.shape), optional)


def read_metadata(
    session: Any, settings: ModelSettings, unranked: Collection[str] = ()
) -> Metadata:
    """`unranked` names the tensors whose rank only the settings can know.

    Raises `ModelLoadError` where the file and the declared signature do not agree."""
    inputs = [node_of(arg, "input") for arg in session.get_inputs()]
    declared = {tensor.name for tensor in settings.inputs}
    # Overridable initializers are weights with a default: inputs only where somebody says so.
    inputs += [
        node_of(arg, "input", optional=True)
        for arg in session.get_overridable_initializers()
        if arg.name in declared
    ]
    outputs = [node_of(arg, "output") for arg in session.get_outputs()]
    if settings.outputs:
        wanted = {tensor.name for tensor in settings.outputs}
        check_names("output", settings.outputs, outputs)
        outputs = [node for node in outputs if node.name in wanted]
    if settings.inputs:
        check_names("input", settings.inputs, inputs)
        missing = [node.name for node in inputs if node.name not in declared]
        if missing:
            raise ModelLoadError(
                f"input '{printable(missing[0])}' of the file is not declared; "
                f"the file has: {_listed(inputs)}"
            )
    batched = bool(settings.max_batch_size)
    inputs = [_ranked("input", n, settings.inputs, unranked, batched=batched) for n in inputs]
    outputs = [_ranked("output", n, settings.outputs, unranked, batched=batched) for n in outputs]
    ins = [merge("input", node, settings.inputs, batched=batched) for node in inputs]
    outs = [merge("output", node, settings.outputs, batched=batched) for node in outputs]
    return Metadata(
        inputs=tuple(spec for spec, _ in ins),
        outputs=tuple(spec for spec, _ in outs),
        batch_dimension=shares_batch_dimension([*inputs, *outputs], declared=batched),
        input_reshapes={s.name: Reshape(r.source, r.target) for s, r in ins if r is not None},
        output_reshapes={s.name: Reshape(r.target, r.source) for s, r in outs if r is not None},
    )


def shares_batch_dimension(nodes: Sequence[Node], *, declared: bool) -> bool:
    """Whether all `nodes` have the same symbol as first dimension.

    A nameless dimension might be anything: it counts only if a batch size is `declared`.
    """
    symbols: set[str] = set()
    for node in nodes:
        if not node.dims:
            return False
        first = node.dims[0]
        if isinstance(first, int) and first >= 0:
            return False
        if isinstance(first, str) and first and not first.startswith("unk__"):
            symbols.add(first)
        elif not declared:
            return False
    return len(symbols) <= 1 and bool(nodes)


def _ranked(
    kind: str,
    node: Node,
    declared: Sequence[TensorSettings],
    unranked: Collection[str],
    *,
    batched: bool,
) -> Node:
    if node.name not in unranked or node.dims:
        return node
    tensor = next((t for t in declared if t.name == node.name), None)
    if tensor is None:
        raise ModelLoadError(
            f"the file does not say how many dimensions {kind} '{printable(node.name)}' has; "
            f"declare its dims under '{kind}s' in model.yaml (with all other {kind}s)"
        )
    inner = tensor.dims if tensor.reshape is None else tensor.reshape
    return replace(node, dims=(None,) * (len(inner) + batched))


def check_names(kind: str, declared: Sequence[TensorSettings], nodes: Sequence[Node]) -> None:
    """Raises `ModelLoadError` for a tensor that is declared and not there."""
    names = {node.name for node in nodes}
    for tensor in declared:
        if tensor.name not in names:
            raise ModelLoadError(
                f"{kind} '{printable(tensor.name)}' is declared, but the file has: {_listed(nodes)}"
            )


def _listed(nodes: Sequence[Node]) -> str:
    return printable(", ".join(map(str, nodes)) or "none", 400)


def merge(
    kind: str, node: Node, declared: Sequence[TensorSettings], *, batched: bool
) -> tuple[TensorSpec, Reshape | None]:
    """The tensor as clients see it, and how it is reshaped: source clients', target model's.

    Raises `ModelLoadError` where the file and the declaration do not agree.
    """
    tensor = next((t for t in declared if t.name == node.name), None)
    if tensor is None:
        return TensorSpec(node.name, node.datatype, node.shape, optional=node.optional), None
    batch = (-1,) if batched else ()
    dims = (*batch, *tensor.dims)
    inner = dims if tensor.reshape is None else (*batch, *tensor.reshape)
    agree = tensor.datatype == node.datatype.name and _fits(inner, node.shape)
    if not agree or (batched and node.shape[:1] != (-1,)):
        reshaped = f" (reshaped to {list(inner)})" if inner != dims else ""
        note = "; dims come without the batch dimension" if batched else ""
        raise ModelLoadError(
            f"{kind} '{node.name}' is declared as {tensor.datatype} {list(dims)}{reshaped}, but "
            f"the file has {node.datatype} {list(node.shape)}{note}"
        )
    if kind == "input" and tensor.optional and not node.optional:
        raise ModelLoadError(
            f"input '{node.name}' is declared optional, but the file has no default value for it"
        )
    if tensor.reshape is None:
        shape = tuple(d if d >= 0 else f for d, f in zip(dims, node.shape, strict=True))
        return TensorSpec(node.name, node.datatype, shape, optional=node.optional), None
    if dims.count(-1) != inner.count(-1) or _size(dims) != _size(inner):
        raise ModelLoadError(
            f"{kind} '{node.name}': dims {list(tensor.dims)} and reshape {list(tensor.reshape)} "
            "must hold the same number of elements and of -1"
        )
    spec = TensorSpec(node.name, node.datatype, dims, optional=node.optional)
    return spec, Reshape(dims, inner)


def _fits(declared: Shape, actual: Shape) -> bool:
    return len(declared) == len(actual) and all(
        -1 in (want, got) or want == got for want, got in zip(declared, actual, strict=True)
    )


def _size(shape: Shape) -> int:
    return math.prod(dim for dim in shape if dim >= 0)
