"""Does a request fit a model? The inputs it must, may and may not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.errors import InvalidRequest, printable
from gateway.tensors import InferenceRequest, Parameter, Signature, Tensor, TensorSpec

FOR_THE_GATEWAY: Final = frozenset(
    (
        "timeout", "priority", "binary_data_output", "headers",
        "sequence_id", "sequence_start", "sequence_end",
    )
)  # fmt: skip
"""Reserved parameters: they never say anything to a model."""


def for_the_model(parameters: Mapping[str, Parameter] | None) -> dict[str, Parameter]:
    """The parameters that a model may see: those that are not reserved."""
    return {
        name: value
        for name, value in (parameters or {}).items()
        if name not in FOR_THE_GATEWAY and not name.startswith("triton_")
    }


class Contract:
    """What a model takes and gives. Shapes have every dimension, -1 for any size.

    `parameters_matter`: the model looks at them, so only equal ones may share a batch.
    """

    __slots__ = ("_inputs", "_outputs", "batched", "inputs", "outputs", "parameters_matter")

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        batched: bool,
        parameters_matter: bool = False,
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.batched = batched
        self.parameters_matter = parameters_matter
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = frozenset(spec.name for spec in outputs)

    def check(self, request: InferenceRequest) -> None:
        """Raises `InvalidRequest` unless names, datatypes, ranks and inner dimensions fit."""
        seen: set[str] = set()
        for tensor in request.inputs:
            if tensor.name in seen:
                raise InvalidRequest(
                    f"input '{printable(tensor.name)}' is given twice; send each input once"
                )
            seen.add(tensor.name)
            spec = self._inputs.get(tensor.name)
            if spec is None:
                raise InvalidRequest(
                    f"model '{request.model}' has no input '{printable(tensor.name)}'; "
                    f"it takes: {', '.join(map(repr, self.inputs))}"
                )
            self._check_tensor(tensor, spec)
        for spec in self.inputs:
            if spec.name not in seen and not spec.optional:
                raise InvalidRequest(
                    f"input '{spec.name}' is missing; model '{request.model}' takes: "
                    f"{', '.join(map(repr, self.inputs))}"
                )
        self.check_outputs(request)

    def signature(self, request: InferenceRequest) -> Signature:
        """The request's signature with the parameters that matter to the model."""
        # The type as well: 1, 1.0 and True are equal, but not the same to a model.
        matter = sorted(
            (name, type(value).__name__, value)
            for name, value in for_the_model(request.parameters).items()
        )
        return (*request.signature, *matter)

    def check_outputs(self, request: InferenceRequest) -> None:
        """Raises `InvalidRequest` when an output is requested that the model does not have."""
        for name in request.outputs:
            if name not in self._outputs:
                raise InvalidRequest(
                    f"model '{request.model}' has no output '{printable(name)}'; it gives: "
                    f"{', '.join(spec.name for spec in self.outputs)}"
                )

    def check_rows(self, request: InferenceRequest) -> None:
        """Raises `InvalidRequest` unless all inputs have the same number of rows, at least one."""
        rows = request.rows
        if rows < 1:
            raise InvalidRequest(
                f"input '{printable(request.inputs[0].name)}' has 0 rows; send at least one"
            )
        for tensor in request.inputs[1:]:
            if tensor.shape[0] != rows:
                raise InvalidRequest(
                    f"input '{printable(tensor.name)}' has {tensor.shape[0]} rows, but "
                    f"'{printable(request.inputs[0].name)}' has {rows}; all inputs of a batch "
                    f"need the same first dimension"
                )

    def _check_tensor(self, tensor: Tensor, spec: TensorSpec) -> None:
        if tensor.datatype is not spec.datatype:
            raise InvalidRequest(
                f"input '{spec.name}' is {spec.datatype}, but {tensor.datatype} was sent"
            )
        shape = tensor.shape
        fits = len(shape) == len(spec.shape) and all(
            want in (-1, got) for got, want in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            hint = ""
            if self.batched and shape == spec.shape[1:]:
                hint = "; put the batch dimension in front"
            raise InvalidRequest(
                f"input '{spec.name}' takes shape {list(spec.shape)} (-1 is any size), "
                f"but {printable(list(shape))} was sent{hint}"
            )
