"""Large JSON bodies and answers, as work for `gateway.apart`: functions of plain arguments.

What they take and give goes to another process and back, so elements of BYTES tensors are one
buffer on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any, Final

import orjson

from gateway.codecs.generate_rest import (
    decode_generate,
    parse_generate,
    plain_values,
)
from gateway.codecs.json_numbers import Odd, parse_around
from gateway.codecs.oip_rest import AnswerForm, RestCodec
from gateway.codecs.v1_rest import decode_v1, decode_v1_tree, encode_v1
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import SluiceError
from gateway.tensors import (
    BYTES,
    Buffer,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Tensor,
    element_count,
)

LARGE_BODY: Final = 131_072
"""Bytes of JSON from which reading it holds whoever does it for more than 3 ms."""
LARGE_ANSWER: Final = 32_768
"""Elements from which writing them as JSON does so for more than 1 ms."""
_TEXT: Final = 8
"""Bytes of strings that cost at least as much as one number."""
_WRITTEN: Final = 10
"""Bytes of JSON that a number takes, about."""


def large_answer(outputs: Sequence[Tensor]) -> int:
    """About how many bytes of JSON the tensors make; 0 if they are not large."""
    count = 0
    for tensor in outputs:  # this is done for every answer
        count += prod(tensor.shape)
        if tensor.datatype is BYTES:
            count += _text_bytes(tensor) // _TEXT
    return count * _WRITTEN if count >= LARGE_ANSWER else 0


def _text_bytes(tensor: Tensor) -> int:
    if element_count(tensor.shape) >= LARGE_ANSWER:
        return 0  # large as it is
    return sum(len(each) if isinstance(each, bytes | str) else 0 for each in tensor.array.flat)


# --- in: these run apart


def read_infer(
    limits: LimitsConfig, model: str, version: str, body: Buffer, head_length: int | None
) -> tuple[InferenceRequest, AnswerForm]:
    """`RestCodec.decode`."""
    codec = RestCodec(limits, remember=False)
    if head_length is None:
        # Where anything is odd, the whole text has the say about it.
        with suppress(Odd, SluiceError):
            tree = parse_around(body, limits.max_json_depth, "inputs", 0, "data")
            return codec.decode_tree(model, version, tree)
    request, form = codec.decode(model, version, body, head_length)
    return _packed_request(request), form


def read_v1(
    limits: LimitsConfig, model: str, version: str, body: Buffer, contract: Contract
) -> InferenceRequest:
    """`decode_v1`."""
    for key in ("instances", "inputs"):
        with suppress(Odd, SluiceError):
            tree = parse_around(body, limits.max_json_depth, key)
            return decode_v1_tree(model, version, tree, contract)
    return _packed_request(decode_v1(model, version, body, contract, limits))


def read_generate_values(limits: LimitsConfig, body: Buffer) -> dict[str, Parameter]:
    """`plain_values`, to choose a version by."""
    return plain_values(parse_generate(body, limits))


def read_generate(
    limits: LimitsConfig, model: str, version: str, body: Buffer, contract: Contract
) -> InferenceRequest:
    """`decode_generate`."""
    keys = parse_generate(body, limits)
    return _packed_request(decode_generate(model, version, keys, contract, limits))


# --- out: these run apart


def write_infer(
    response: InferenceResponse, form: AnswerForm, limits: LimitsConfig
) -> tuple[bytes, int | None]:
    """`RestCodec.encode`."""
    return RestCodec(limits, remember=False).encode(response, form)


def write_v1(response: InferenceResponse) -> bytes:
    """`encode_v1`."""
    return orjson.dumps(encode_v1(response))


# --- on the way: these run in a thread of the gateway


def unpack_request(request: InferenceRequest) -> None:
    """Cuts the buffers of strings into elements again."""
    for tensor in request.inputs:
        if tensor.datatype is BYTES:
            _ = tensor.array


def pack_response(response: InferenceResponse) -> InferenceResponse:
    """The answer with its strings in buffers."""
    outputs = [_packed(tensor) for tensor in response.outputs]
    return InferenceResponse(
        response.model,
        response.version,
        outputs,
        id=response.id,
        route=response.route,
        parameters=response.parameters,
    )


def _packed_request(request: InferenceRequest) -> InferenceRequest:
    request.inputs = tuple([_packed(tensor) for tensor in request.inputs])
    return request


def _packed(tensor: Tensor) -> Tensor:
    if tensor.datatype is not BYTES or not _all_bytes(tensor.array):
        return tensor
    return Tensor(tensor.name, BYTES, tensor.shape, tensor.data)


def _all_bytes(array: Any) -> bool:
    return set(map(type, array.ravel().tolist())) <= {bytes}
