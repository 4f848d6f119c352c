"""The client's side of the protocol's REST form, for calls to other servers.

Tensors go as JSON, which every server takes, or as bytes behind a JSON head (Triton's binary
tensor extension), which loses nothing and costs less.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import orjson

from gateway.codecs.client_grpc import HTTP_ONLY, ModelMetadata, malformed, tensor_spec
from gateway.codecs.json_data import has_booleans, json_data, parse_json, tensor_from_json
from gateway.errors import InvalidRequest, Unsupported, printable
from gateway.tensors import (
    Buffer,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Shape,
    Tensor,
    TensorSpec,
    check_shape,
    datatype,
)

HEADER_LENGTH: Final = "inference-header-content-length"
MAX_DEPTH: Final = 64
"""Most levels of an answer's JSON: a tensor of the highest rank, and what is around it."""
VIEW: Final = 65536
"""Bytes from which a binary tensor is a view of the body."""
_RAW_ONLY: Final = frozenset({"FP16", "BF16"})


# --- requests


def encode_request(request: InferenceRequest, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """The body and its headers. `binary`: all tensors as bytes, and the answer's, too.

    Raises `Unsupported` for what JSON cannot say: FP16 and BF16, NaN, bytes that are no text.
    """
    inputs: list[dict[str, Any]] = []
    data: list[Buffer] = []
    for tensor in request.inputs:
        each: dict[str, Any] = {
            "name": tensor.name,
            "shape": tensor.shape,
            "datatype": tensor.datatype.name,
        }
        if binary:
            data.append(tensor.data)
            each["parameters"] = {"binary_data_size": len(tensor.data)}
        else:
            each["data"] = _json_data(tensor)
        inputs.append(each)
    parameters: dict[str, Parameter] = {
        name: value for name, value in (request.parameters or {}).items() if name not in HTTP_ONLY
    }
    tree: dict[str, Any] = {}
    if request.id:
        tree["id"] = request.id
    outputs: list[dict[str, Any]] = [{"name": name} for name in request.outputs]
    if binary and outputs:
        outputs = [{**each, "parameters": {"binary_data": True}} for each in outputs]
    elif binary:
        parameters["binary_data_output"] = True
    if parameters:
        tree["parameters"] = parameters
    tree["inputs"] = inputs
    if outputs:
        tree["outputs"] = outputs
    head = orjson.dumps(tree, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *data]), headers


def _json_data(tensor: Tensor) -> object:
    kind = tensor.datatype
    name = printable(tensor.name)
    if kind.name in _RAW_ONLY:
        raise Unsupported(
            f"input '{name}' is {kind}, which JSON servers do not take; use a grpc:// URL, or a "
            "server that takes binary tensors"
        )
    if kind.kind == "float" and not np.isfinite(tensor.array).all():
        raise Unsupported(
            f"input '{name}' holds NaN or an infinity, which JSON cannot say; use a grpc:// URL, "
            "or a server that takes binary tensors"
        )
    try:
        return json_data(tensor)
    except Unsupported:
        raise Unsupported(
            f"input '{name}' holds bytes that are not UTF-8, which JSON cannot say; use a grpc:// "
            "URL, or a server that takes binary tensors"
        ) from None


# --- answers


def decode_response(
    body: bytes, header_length: int | None, model: str, version: str
) -> InferenceResponse:
    """The answer in `body`, under our names. `header_length` is the JSON part's length in bytes
    where binary tensors follow it. ``null`` among floating-point data is NaN.

    Raises `InferenceFailed` for an answer that is malformed.
    """
    try:
        return _decode(body, header_length, model, version)
    except InvalidRequest as error:
        raise malformed(error) from None


def _decode(body: bytes, header_length: int | None, model: str, version: str) -> InferenceResponse:
    text, binary = body, memoryview(b"")
    if header_length is not None:
        if not 0 <= header_length <= len(body):
            raise InvalidRequest(
                f"{HEADER_LENGTH} is {header_length}, but the body has {len(body)} bytes"
            )
        text, binary = body[:header_length], memoryview(body)[header_length:]
    tree = parse_json(text, MAX_DEPTH)
    listed = tree.get("outputs")
    if type(listed) is not list or not all(type(each) is dict for each in listed):
        raise InvalidRequest("'outputs' is not a list of objects")
    booleans, nulls = has_booleans(text), b"null" in text
    outputs: list[Tensor] = []
    for each in listed:
        tensor, size = _output(each, binary, booleans=booleans, nulls=nulls)
        outputs.append(tensor)
        binary = binary[size:]
    if binary:
        raise InvalidRequest(f"{len(binary)} bytes more than the outputs' binary_data_size say")
    id_ = tree.get("id")
    return InferenceResponse(
        model,
        version,
        outputs,
        id=id_ if type(id_) is str else "",
        parameters=_plain(tree.get("parameters")) or None,
    )


def _output(
    tree: dict[str, Any], binary: memoryview, *, booleans: bool, nulls: bool
) -> tuple[Tensor, int]:
    """One output, and how many of the binary bytes it took."""
    name, shape = _named(tree)
    kind = datatype(tree.get("datatype", ""))
    checked: Shape = check_shape(name, shape)
    size = _plain(tree.get("parameters")).get("binary_data_size")
    if size is None:
        data = tree.get("data")
        if nulls and kind.kind == "float":
            data = _with_nan(data)
        return tensor_from_json(name, kind, checked, data, booleans=booleans), 0
    if type(size) is not int or not 0 <= size <= len(binary):
        raise InvalidRequest(
            f"output '{printable(name)}' says binary_data_size {printable(size)}, but "
            f"{len(binary)} bytes are left"
        )
    part = binary[:size]
    tensor = Tensor(name, kind, checked, part if size >= VIEW else bytes(part))
    tensor.check_data()
    return tensor, size


def _named(tree: dict[str, Any]) -> tuple[str, list[Any]]:
    name, shape = tree.get("name"), tree.get("shape")
    if type(name) is not str or type(shape) is not list:
        raise InvalidRequest("a tensor needs a 'name' that is text and a 'shape' that is a list")
    return name, shape


def _with_nan(data: Any) -> Any:
    if type(data) is list:
        return [_with_nan(each) for each in data]
    return float("nan") if data is None else data


def _plain(parameters: object) -> dict[str, Parameter]:
    """The parameters that are plain values: others have no place in our answer."""
    if type(parameters) is not dict:
        return {}
    return {k: v for k, v in parameters.items() if type(v) in (str, int, float, bool)}


# --- metadata


def parse_metadata(body: bytes) -> ModelMetadata:
    """The model's metadata in an answer to ``GET /v2/models/<name>``. Raises `InferenceFailed`,
    also for datatypes that the protocol does not have."""
    try:
        tree = parse_json(body, MAX_DEPTH)
        versions = tree.get("versions")
        return ModelMetadata(
            str(tree.get("name", "")),
            tuple(str(each) for each in versions) if type(versions) is list else (),
            str(tree.get("platform", "")),
            _specs(tree, "inputs"),
            _specs(tree, "outputs"),
        )
    except InvalidRequest as error:
        raise malformed(error) from None


def _specs(tree: dict[str, Any], key: str) -> tuple[TensorSpec, ...]:
    listed = tree.get(key)
    if listed is None:
        return ()
    if type(listed) is not list or not all(type(each) is dict for each in listed):
        raise InvalidRequest(f"'{key}' is not a list of objects")
    specs = []
    for each in listed:
        name, shape = _named(each)
        specs.append(tensor_spec(name, each.get("datatype", ""), shape))
    return tuple(specs)
