"""Bodies of requests, as clients send them, back into samples."""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.codecs.client_grpc import ModelMetadata
from gateway.codecs.invocations import FORMATS, decode_invocations, parse_invocations
from gateway.codecs.oip_rest import RestCodec
from gateway.codecs.v1_rest import decode_v1
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import SluiceError, printable
from gateway.tensors import InferenceRequest
from loadtests.errors import BenchError
from loadtests.payloads.base import Sample

_LIMITS: Final = LimitsConfig()
_HTTP_ONLY: Final = "binary_data_output"


def sample_of_body(
    body: bytes,
    metadata: ModelMetadata | None,
    source: str,
    *,
    head_length: int | None = None,
    media_type: str = "application/json",
    headers: tuple[tuple[str, str], ...] = (),
    at_s: float | None = None,
) -> Sample:
    """The request in a body: Open Inference Protocol (``head_length``: with binary tensors), V1 or
    MLflow's. Its id is not kept, as it is sent many times. Raises `BenchError`."""
    try:
        request = _decoded(body, metadata, source, head_length, media_type)
        if metadata is not None and metadata.inputs:
            contract_of(metadata).check(request)
        request.check_data()
    except SluiceError as error:
        raise BenchError(f"{source}: {error}") from None
    parameters = {k: v for k, v in (request.parameters or {}).items() if k != _HTTP_ONLY}
    return Sample(request.inputs, parameters, headers, at_s, request.outputs)


def samples_of_json(text: bytes, metadata: ModelMetadata | None, source: str) -> list[Sample]:
    """A body, or a list of bodies, in a .json file. Raises `BenchError`."""
    tree = parse(text, source)
    if not isinstance(tree, list):
        return [sample_of_body(text, metadata, source)]
    if not tree:
        raise BenchError(f"{source} is an empty list; give at least one request body")
    return [
        sample_of_body(orjson.dumps(each), metadata, f"{source}, request {place}")
        for place, each in enumerate(tree)
    ]


def parse(text: bytes, source: str) -> Any:
    """Raises `BenchError` for what is not JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BenchError(f"{source} is not JSON: {printable(error)}") from None


def contract_of(metadata: ModelMetadata) -> Contract:
    """What the model takes, as the gateway checks it."""
    batched = any(spec.shape[:1] == (-1,) for spec in metadata.inputs)
    return Contract(metadata.inputs, metadata.outputs, batched=batched)


def _decoded(
    body: bytes,
    metadata: ModelMetadata | None,
    source: str,
    head_length: int | None,
    media_type: str,
) -> InferenceRequest:
    model = metadata.name if metadata is not None else ""
    if head_length is not None:
        return RestCodec(_LIMITS).decode(model, "", body, head_length)[0]
    tree = parse(body, source) if media_type != "text/csv" else {}
    if isinstance(tree, dict) and _is_oip(tree):
        return RestCodec(_LIMITS).decode(model, "", body, None)[0]
    if metadata is None or not metadata.inputs:
        raise BenchError(
            f"{source} is no Open Inference Protocol body, so the model must say what its values "
            "are, but it declares no inputs; write it with name, shape, datatype and data"
        )
    contract = contract_of(metadata)
    if media_type == "text/csv":
        return decode_invocations(model, "", parse_invocations(body, media_type, _LIMITS), contract)
    if not isinstance(tree, dict) or not any(key in tree for key in FORMATS):
        raise BenchError(f"{source} has none of {', '.join(FORMATS)}; is it a request body?")
    if "params" in tree or ("instances" not in tree and "inputs" not in tree):
        return decode_invocations(
            model, "", parse_invocations(body, "application/json", _LIMITS), contract
        )
    return decode_v1(model, "", body, contract, _LIMITS)


def _is_oip(tree: dict[str, Any]) -> bool:
    inputs = tree.get("inputs")
    return (
        isinstance(inputs, list)
        and bool(inputs)
        and all(isinstance(each, dict) and "datatype" in each for each in inputs)
    )
