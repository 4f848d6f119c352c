"""Triton's generate extension: one flat JSON object in, one flat JSON object an answer.

A key that is the name of an input is that tensor; every other key is a parameter. So is what
stands inside ``parameters``. There are no shapes: they follow from the model's own.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.codecs.json_data import json_data, nested_shape, parse_json, tensor_from_json
from gateway.codecs.parameters import timeout_and_priority
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import InvalidRequest, Unsupported, printable
from gateway.tensors import (
    Buffer,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Shape,
    Tensor,
    TensorSpec,
    element_count,
)

NESTED: Final = "parameters"
_RESERVED: Final = ("model_name", "model_version", "id")


def parse_generate(body: Buffer, limits: LimitsConfig) -> dict[str, Any]:
    """The keys of a body, those inside ``parameters`` among them. Raises `InvalidRequest`."""
    tree = parse_json(body, limits.max_json_depth)
    if NESTED not in tree:
        return tree
    nested = tree.pop(NESTED)
    if type(nested) is not dict:
        raise InvalidRequest(f"'{NESTED}' must be an object, not {type(nested).__name__}")
    for name in nested:
        if name in tree:
            raise InvalidRequest(
                f"'{printable(name)}' is there twice: beside '{NESTED}' and inside it"
            )
    return tree | nested


def plain_values(keys: dict[str, Any]) -> dict[str, Parameter]:
    """Those that could be parameters, to choose a version by before its inputs are known."""
    return {name: value for name, value in keys.items() if type(value) in (str, int, float, bool)}


def decode_generate(
    model: str, version: str, keys: dict[str, Any], contract: Contract, limits: LimitsConfig
) -> InferenceRequest:
    """The request that `parse_generate` found. Raises `RequestError`."""
    specs = {spec.name: spec for spec in contract.inputs}
    if NESTED in specs:
        raise Unsupported(
            f"model '{model}' has an input '{NESTED}', a word of generate's own; use /infer"
        )
    inputs: list[Tensor] = []
    parameters: dict[str, Parameter] = {}
    request_id = ""
    for name, value in keys.items():
        spec = specs.get(name)
        if spec is not None:
            inputs.append(_tensor(spec, value))
        elif name == "id":
            request_id = _id(value)
        else:
            parameters[name] = _parameter(name, value)
    if len(parameters) > limits.max_parameters:
        raise InvalidRequest(
            f"the request has {len(parameters)} parameters, more than limits.max_parameters = "
            f"{limits.max_parameters}"
        )
    if not inputs:
        named = ", ".join(map(repr, contract.inputs))
        raise InvalidRequest(f"no key of the body is an input; model '{model}' takes: {named}")
    timeout_us, priority = timeout_and_priority(parameters)
    # In the order that the model declares, so that equal requests are alike whatever their keys'.
    places = {spec.name: place for place, spec in enumerate(contract.inputs)}
    inputs.sort(key=lambda tensor: places[tensor.name])
    return InferenceRequest(
        model,
        version,
        tuple(inputs),
        id=request_id,
        parameters=parameters or None,
        timeout_us=timeout_us,
        priority=priority,
    )


def _id(value: object) -> str:
    if type(value) is not str:
        raise InvalidRequest(f"'id' must be a string, not {type(value).__name__}")
    return value


def _parameter(name: str, value: object) -> Parameter:
    if name == "binary_data_output":
        raise Unsupported(f"parameter '{name}': answers of generate are JSON; use /infer")
    if name.startswith("triton_"):
        raise InvalidRequest(
            f"parameter '{printable(name)}': names that start with 'triton_' are reserved; leave "
            "it out"
        )
    if isinstance(value, str | int | float | bool):
        return value
    kind = "null" if value is None else type(value).__name__
    raise InvalidRequest(
        f"'{printable(name)}' is no input of the model, so it is a parameter, which must be a "
        f"string, a number, true or false, not {kind}"
    )


def _tensor(spec: TensorSpec, value: object) -> Tensor:
    if value is None or type(value) is dict:
        kind = "null" if value is None else "an object"
        raise InvalidRequest(f"input '{spec.name}' must be a value or a list of values, not {kind}")
    values = value if type(value) is list else [value]
    if any(type(each) is list for each in values):
        shape = nested_shape(values)
    else:
        shape = _shape(spec, len(values))
    return tensor_from_json(spec.name, spec.datatype, shape, values)


def _shape(spec: TensorSpec, count: int) -> Shape:
    """The shape for `count` values in a row: what the sizes that are fixed leave over is the last
    open one's, and the other open ones are 1. Raises `InvalidRequest` where that cannot be."""
    fixed = element_count([dim for dim in spec.shape if dim != -1])
    left, rest = divmod(count, fixed) if fixed else (0, count)
    shape = list(spec.shape)
    for place in reversed(range(len(shape))):
        if shape[place] == -1:
            shape[place] = left
            left = 1
    if rest or left != 1:
        raise InvalidRequest(
            f"input '{spec.name}' takes shape {list(spec.shape)} (-1 is any size), which {count} "
            "values do not fill; nest the lists to say the shape"
        )
    return tuple(shape)


def encode_generate(response: InferenceResponse) -> bytes:
    """The JSON object of one answer: a single element as a value, more as a flat list.

    Raises `Unsupported` for what JSON cannot say, and for outputs named like something else.
    """
    tree: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        tree["id"] = response.id
    for name, value in (response.parameters or {}).items():
        tree.setdefault(name, value)
    for tensor in response.outputs:
        if tensor.name in _RESERVED:
            raise Unsupported(
                f"output '{tensor.name}' is named like a key of generate's own; use /infer"
            )
        values: Any = json_data(tensor)
        tree[tensor.name] = values[0] if element_count(tensor.shape) == 1 else values
    return orjson.dumps(tree, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_event(data: bytes) -> bytes:
    """A server-sent event with JSON, which has no line breaks, as its data."""
    return b"data: %b\n\n" % data
