"""KServe V1: ``{"instances": [...]}`` or ``{"inputs": ...}`` → ``{"predictions": [...]}``.

V1 knows no datatypes and no names for a single tensor, so the model's own signature says how
to read the values.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.codecs.json_data import (
    ListText,
    json_data,
    nested_shape,
    parse_json,
    tensor_from_json,
)
from gateway.codecs.oip_rest import refuse_unknown
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import InvalidRequest, printable
from gateway.tensors import (
    Buffer,
    InferenceRequest,
    InferenceResponse,
    Shape,
    Tensor,
    TensorSpec,
    element_count,
)

_KEYS: Final = frozenset({"instances", "inputs", "signature_name", "parameters"})


def decode_v1(
    model: str, version: str, body: Buffer, contract: Contract, limits: LimitsConfig
) -> InferenceRequest:
    """The request in a ``:predict`` body. Raises `InvalidRequest`."""
    return decode_v1_tree(model, version, parse_json(body, limits.max_json_depth), contract)


def decode_v1_tree(
    model: str, version: str, tree: dict[str, Any], contract: Contract
) -> InferenceRequest:
    """The request in a body that was parsed. Raises `InvalidRequest`."""
    refuse_unknown(tree, _KEYS, "the request")
    if ("instances" in tree) == ("inputs" in tree):
        raise InvalidRequest("the body must have one of 'instances' and 'inputs'")
    values = _columns(tree["inputs"], contract) if "inputs" in tree else _rows(tree, contract)
    specs = {spec.name: spec for spec in contract.inputs}
    inputs = []
    for name, value in values.items():
        if name not in specs:
            raise InvalidRequest(
                f"model '{model}' has no input '{printable(name)}'; it takes: {', '.join(specs)}"
            )
        inputs.append(_tensor(specs[name], value))
    return InferenceRequest(model, version, tuple(inputs))


def _columns(inputs: object, contract: Contract) -> dict[str, Any]:
    """``inputs``: an object of tensors, or the only tensor."""
    if type(inputs) is dict:
        return inputs
    return {_only(contract).name: inputs}


def _rows(tree: dict[str, Any], contract: Contract) -> dict[str, Any]:
    """``instances``: a list of rows, each an object of values or the only tensor's value."""
    rows = tree["instances"]
    if isinstance(rows, ListText):
        return {_only(contract).name: rows}
    if type(rows) is not list or not rows:
        raise InvalidRequest("'instances' must be a list with at least one row")
    if type(rows[0]) is not dict:
        return {_only(contract).name: rows}
    names = rows[0].keys()
    if any(type(row) is not dict or row.keys() != names for row in rows):
        raise InvalidRequest("every row of 'instances' must have the same keys")
    return {name: [row[name] for row in rows] for name in names}


def _only(contract: Contract) -> TensorSpec:
    if len(contract.inputs) != 1:
        names = ", ".join(spec.name for spec in contract.inputs)
        raise InvalidRequest(
            f"the model has several inputs ({names}): give each row as an object with these keys"
        )
    return contract.inputs[0]


def _tensor(spec: TensorSpec, value: object) -> Tensor:
    if isinstance(value, ListText):
        shape = value.shape
    elif type(value) is list:
        shape = nested_shape(value)
    else:
        raise InvalidRequest(f"input '{spec.name}' must be a list")
    if len(shape) != len(spec.shape):
        shape = _flat_shape(spec, shape)
    return tensor_from_json(spec.name, spec.datatype, shape, value)


def _flat_shape(spec: TensorSpec, shape: Shape) -> Shape:
    """Rows given flat take the model's own inner shape where that is fixed."""
    inner = spec.shape[1:]
    if len(shape) == 2 and -1 not in inner and shape[1] == element_count(inner):
        return (shape[0], *inner)
    return shape


def encode_v1(response: InferenceResponse) -> dict[str, Any]:
    """``{"predictions": [...]}``: rows of the only output, or rows of objects of all outputs."""
    columns = {tensor.name: _nested(tensor) for tensor in response.outputs}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    lengths = {len(column) if type(column) is list else -1 for column in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        # Outputs without a common batch dimension have no rows.
        return {"predictions": columns}
    return {
        "predictions": [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
    }


def _nested(tensor: Tensor) -> Any:
    flat: Any = json_data(tensor)
    if type(flat) is not list:
        return flat.reshape(tensor.shape).tolist()
    if 0 in tensor.shape:
        return tensor.array.tolist()
    for width in tensor.shape[:0:-1]:
        flat = [flat[at : at + width] for at in range(0, len(flat), width)]
    return flat if tensor.shape else flat[0]
