"""Samples to bytes, by protocol."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import numpy as np
import orjson

from gateway.codecs import client_grpc, client_rest
from gateway.errors import SluiceError, printable
from gateway.tensors import BYTES, InferenceRequest, Tensor
from loadtests.bench.plan import Protocol, Target
from loadtests.errors import BenchError
from loadtests.payloads.base import Sample, Wire

SERVICE: Final = "/inference.GRPCInferenceService/"
EMPTY_FINAL: Final = "triton_enable_empty_final_response"
"""Parameter: the server says when a request of a stream has had its last answer, whatever the
model. It is asked for in every request of `Protocol.STREAM`."""
MODEL_HEADER: Final = "x-sluice-model"
"""Which model ``/invocations`` is about, where a server has several."""
_JSON: Final = ("content-type", "application/json")
_RAW_ONLY: Final = frozenset({"FP16", "BF16"})
_RAW: Final = "use grpc or binary"


def encode(sample: Sample, target: Target) -> Wire:
    """The request as the protocol of ``target`` has it; its headers are those of its own, then the
    sample's, then the target's. Raises `BenchError` for what it cannot say
    (V1 and ``/invocations`` have rows of values, and no FP16)."""
    protocol = target.protocol
    headers = (*sample.headers, *target.headers)
    if not protocol.http:
        method = "ModelInfer" if protocol is Protocol.GRPC else "ModelStreamInfer"
        return Wire(SERVICE + method, _grpc(sample, target), headers, sample.at_s)
    if protocol in (Protocol.BINARY, Protocol.JSON):
        path, body, own = _oip(sample, target)
    elif protocol is Protocol.V1:
        path, body, own = _v1(sample, target)
    else:
        path, body, own = _invocations(sample, target)
    return Wire(path, body, (*own, *headers), sample.at_s)


def _request(sample: Sample, target: Target) -> InferenceRequest:
    parameters = dict(sample.parameters)
    if target.protocol is Protocol.STREAM:
        parameters.setdefault(EMPTY_FINAL, True)
    return InferenceRequest(
        target.model,
        target.version,
        sample.inputs,
        outputs=sample.outputs,
        parameters=parameters or None,
    )


def _grpc(sample: Sample, target: Target) -> bytes:
    try:
        return client_grpc.encode_request(_request(sample, target), target.model, target.version)
    except SluiceError as error:
        raise BenchError(f"the request cannot be sent over gRPC: {error}") from None


_Encoded = tuple[str, bytes, tuple[tuple[str, str], ...]]


def _oip(sample: Sample, target: Target) -> _Encoded:
    binary = target.protocol is Protocol.BINARY
    if not binary:
        for tensor in sample.inputs:
            _check_json(tensor, "json")
    try:
        body, headers = client_rest.encode_request(_request(sample, target), binary=binary)
    except SluiceError as error:
        raise BenchError(f"the request cannot be sent as {target.protocol}: {error}") from None
    version = f"/versions/{quote(target.version, safe='')}" if target.version else ""
    path = f"/v2/models/{quote(target.model, safe='')}{version}/infer"
    return path, body, tuple(headers.items())


def _v1(sample: Sample, target: Target) -> _Encoded:
    if target.version:
        raise BenchError(
            f"v1 cannot ask for version '{printable(target.version)}', it has no word for "
            "versions; leave the version out, or use json, binary or grpc"
        )
    if sample.parameters:
        name = printable(next(iter(sample.parameters)))
        raise BenchError(
            f"v1 cannot say the parameter '{name}'; use json, binary, grpc or invocations"
        )
    columns = _columns(sample, "v1")
    counts = {len(column) for column in columns.values()}
    tree: dict[str, Any]
    if len(columns) == 1:
        tree = {"instances": next(iter(columns.values()))}
    elif len(counts) == 1:
        rows = zip(*columns.values(), strict=True)
        tree = {"instances": [dict(zip(columns, row, strict=True)) for row in rows]}
    else:
        tree = {"inputs": columns}
    return f"/v1/models/{quote(target.model, safe='')}:predict", orjson.dumps(tree), (_JSON,)


def _invocations(sample: Sample, target: Target) -> _Encoded:
    columns = _columns(sample, "invocations")
    tree: dict[str, Any]
    if (
        all(len(tensor.shape) == 1 for tensor in sample.inputs)
        and len({len(column) for column in columns.values()}) == 1
    ):
        # What models with columns take, and what others read as well.
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        tree = {"dataframe_split": {"columns": list(columns), "data": rows}}
    else:
        tree = {"inputs": columns}
    if sample.parameters:
        tree["params"] = sample.parameters
    body = orjson.dumps(tree)
    if target.version:
        model, version = quote(target.model, safe=""), quote(target.version, safe="")
        return f"/models/{model}/versions/{version}/invocations", body, (_JSON,)
    # The path that MLflow's own server has; the header tells ours which model is meant.
    return "/invocations", body, (_JSON, (MODEL_HEADER, target.model))


def _columns(sample: Sample, protocol: str) -> dict[str, list[Any]]:
    """Nested lists of values, by input."""
    if sample.outputs:
        raise BenchError(
            f"{protocol} cannot ask for the output '{printable(sample.outputs[0])}'; leave outputs "
            "out, or use json, binary or grpc"
        )
    return {tensor.name: _nested(tensor, protocol) for tensor in sample.inputs}


def _nested(tensor: Tensor, protocol: str) -> list[Any]:
    name = printable(tensor.name)
    if not tensor.shape or 0 in tensor.shape:
        raise BenchError(
            f"input '{name}' has shape {list(tensor.shape)}, but {protocol} has rows of values, at "
            f"least one; {_RAW}"
        )
    _check_json(tensor, protocol)
    array = tensor.array
    if tensor.datatype is BYTES:
        texts = np.empty(array.size, dtype=object)
        texts[:] = [each.decode() if isinstance(each, bytes) else str(each) for each in array.flat]
        array = texts.reshape(tensor.shape)
    nested: list[Any] = array.tolist()
    return nested


def _check_json(tensor: Tensor, protocol: str) -> None:
    """Raises `BenchError` for values that JSON has no word for."""
    name, kind = printable(tensor.name), tensor.datatype
    if kind.name in _RAW_ONLY:
        raise BenchError(f"input '{name}' is {kind}, which {protocol} cannot say; {_RAW}")
    if kind.kind == "float":
        array = tensor.array
        if np.isinf(array).any() or (protocol != "invocations" and np.isnan(array).any()):
            raise BenchError(
                f"input '{name}' holds NaN or an infinity, which {protocol} cannot say; {_RAW}"
            )
    elif kind is BYTES:
        try:
            for each in tensor.array.flat:
                (each if isinstance(each, bytes) else str(each).encode()).decode()
        except UnicodeError:
            raise BenchError(
                f"input '{name}' holds bytes that are not UTF-8, which {protocol} cannot say; "
                f"{_RAW}"
            ) from None
