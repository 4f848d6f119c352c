"""Large JSON bodies and answers, as work for `gateway.apart`: functions of plain arguments.

What they take and give goes to another process and back, so elements of BYTES tensors are one
buffer on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any, Final, TypeAlias

import orjson

from gateway.codecs.generate_rest import (
    decode_generate,
    parse_generate,
    plain_values,
)
from gateway.codecs.invocations import decode_invocations, parse_invocations
from gateway.codecs.invocations_answer import encode_predictions
from gateway.codecs.json_numbers import Odd, parse_around
from gateway.codecs.oip_rest import AnswerForm, RestCodec, with_data
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
    TensorSpec,
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
    limits: LimitsConfig, model: str, version: str, body: Buffer
) -> tuple[InferenceRequest, AnswerForm]:
    """`RestCodec.decode` of a body that is JSON."""
    codec = RestCodec(limits, remember=False)
    # Where anything is odd, the whole text has the say about it.
    with suppress(Odd, SluiceError):
        tree = parse_around(body, limits.max_json_depth, "inputs", 0, "data")
        return codec.decode_tree(model, version, tree)
    request, form = codec.decode(model, version, body, None)
    return _packed_request(request), form


HeadRead: TypeAlias = "tuple[InferenceRequest, AnswerForm, list[int | None]]"


def read_infer_head(
    limits: LimitsConfig, model: str, version: str, head: Buffer, rest: int
) -> HeadRead:
    """`RestCodec.decode_head`."""
    codec = RestCodec(limits, remember=False)
    request, form, sizes = codec.decode_head(model, version, head, rest)
    return _packed_request(request), form, sizes


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


def read_invocations_parameters(
    limits: LimitsConfig, media_type: str, body: Buffer
) -> dict[str, Parameter] | None:
    """``params``, to choose a version by."""
    return parse_invocations(body, media_type, limits).parameters


def read_invocations(
    limits: LimitsConfig,
    media_type: str,
    model: str,
    version: str,
    body: Buffer,
    contract: Contract,
) -> InferenceRequest:
    """`decode_invocations`."""
    payload = parse_invocations(body, media_type, limits)
    return _packed_request(decode_invocations(model, version, payload, contract))


# --- out: these run apart


def write_infer(
    response: InferenceResponse, form: AnswerForm, limits: LimitsConfig
) -> tuple[bytes, int | None]:
    """`RestCodec.encode`."""
    return RestCodec(limits, remember=False).encode(response, form)


def write_infer_head(
    response: InferenceResponse, form: AnswerForm, sizes: Sequence[int], limits: LimitsConfig
) -> bytes:
    """`RestCodec.encode_head`."""
    return RestCodec(limits, remember=False).encode_head(response, form, sizes)


def write_invocations(response: InferenceResponse, specs: Sequence[TensorSpec]) -> bytes:
    """`encode_predictions`."""
    return encode_predictions(response, specs)


def write_v1(response: InferenceResponse) -> bytes:
    """`encode_v1`."""
    return orjson.dumps(encode_v1(response))


# --- on the way: these run in a thread of the gateway


def unpack_request(request: InferenceRequest) -> None:
    """Cuts the buffers of strings into elements again."""
    for tensor in request.inputs:
        if tensor.datatype is BYTES:
            _ = tensor.array


def join_request(rest: memoryview, found: HeadRead) -> None:
    """Gives the binary inputs of a head their data. Raises `InvalidRequest`."""
    request, _, sizes = found
    request.inputs = with_data(request.inputs, sizes, rest)
    unpack_request(request)


def split_response(
    response: InferenceResponse, form: AnswerForm
) -> tuple[InferenceResponse, list[Buffer]]:
    """The answer without the data of its binary outputs, and that."""
    outputs: list[Tensor] = []
    binary: list[Buffer] = []
    for tensor in response.outputs:
        if form.is_binary(tensor.name):
            data = tensor.data
            binary.append(data if response.fresh else bytes(data))
            tensor = Tensor(tensor.name, tensor.datatype, tensor.shape, b"")
        outputs.append(tensor)
    return _with_outputs(response, outputs), binary


def pack_response(response: InferenceResponse) -> InferenceResponse:
    """The answer with its strings in buffers."""
    return _with_outputs(response, [_packed(tensor) for tensor in response.outputs])


def _with_outputs(response: InferenceResponse, outputs: Sequence[Tensor]) -> InferenceResponse:
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
    if tensor.datatype is not BYTES or not (tensor.packed or _all_bytes(tensor.array)):
        return tensor
    return Tensor(tensor.name, BYTES, tensor.shape, tensor.data)


def _all_bytes(array: Any) -> bool:
    return set(map(type, array.ravel().tolist())) <= {bytes}
