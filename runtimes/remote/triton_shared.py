"""Requests and answers whose tensors are in shared memory: where each is, and the messages that
say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from gateway.codecs import client_grpc as codec
from gateway.codecs.messages import InferInputTensor, ModelInferResponse
from gateway.errors import printable
from gateway.tensors import Buffer, InferenceRequest, InferenceResponse, TensorSpec, element_count
from runtimes.remote.transport import There
from runtimes.remote.triton_memory import ALIGNMENT, THRESHOLD, Region


class Shared(NamedTuple):
    """A request whose tensors are to go by shared memory, if the server is still there."""

    request: InferenceRequest
    sizes: tuple[int, ...]
    """Bytes of each input."""


class Layout(NamedTuple):
    """Where in a region each tensor is: offset and size in bytes."""

    inputs: tuple[tuple[int, int], ...]
    outputs: dict[str, tuple[int, int]]
    size: int


def layout_of(shared: Shared, specs: Sequence[TensorSpec], *, batched: bool) -> Layout:
    """Inputs, then the outputs of known and considerable size. `batched`: their first dimension
    is that of the inputs."""
    at = 0
    inputs = []
    for size in shared.sizes:
        inputs.append((at, size))
        at += aligned(size)
    outputs: dict[str, tuple[int, int]] = {}
    rows = shared.request.rows
    for spec in specs:
        shape = (rows, *spec.shape[1:]) if batched else spec.shape
        if spec.datatype.itemsize and min(shape, default=0) >= 0:
            size = element_count(shape) * spec.datatype.itemsize
            if size >= THRESHOLD:
                outputs[spec.name] = (at, size)
                at += aligned(size)
    return Layout(tuple(inputs), outputs, at)


def message_of(
    request: InferenceRequest,
    there: There,
    specs: Sequence[TensorSpec],
    region: Region,
    layout: Layout,
) -> bytes:
    """The ``ModelInferRequest`` over tensors in `region`."""
    inputs = []
    for tensor, place in zip(request.inputs, layout.inputs, strict=True):
        each = InferInputTensor(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
        _point(each, region, place)
        inputs.append(each)
    message = codec.encode_head(request, there.name, there.version, inputs)
    if not request.outputs:
        for spec in specs:
            message.outputs.add(name=spec.name)
    for output in message.outputs:
        if output.name in layout.outputs:
            _point(output, region, layout.outputs[output.name])
    encoded: bytes = message.SerializeToString()
    return encoded


def answer_of(payload: bytes, there: There, region: Region, layout: Layout) -> InferenceResponse:
    """The answer, with what is in shared memory copied out of it. Raises `InferenceFailed`."""
    try:
        message = ModelInferResponse.FromString(payload)
    except (DecodeError, UnicodeDecodeError) as error:
        raise codec.malformed(error) from None
    beside = list(message.raw_output_contents)
    if len(beside) != len(message.outputs):
        raise codec.malformed(f"{len(beside)} contents for {len(message.outputs)} outputs")
    raws: list[Buffer] = []
    for output, raw in zip(message.outputs, beside, strict=True):
        place = layout.outputs.get(output.name)
        if place is None:
            raws.append(raw)
            continue
        at, size = place
        got = _bytes_of(output)
        if got > size:
            raise codec.malformed(f"output '{printable(output.name)}' is larger than declared")
        raws.append(region.map[at : at + got])
    return codec.response_of(message, raws, there.ours, there.our_version)


def _bytes_of(output: Any) -> int:
    """The size that an output's datatype and shape say. Raises `InferenceFailed`."""
    spec = codec.tensor_spec(output.name, output.datatype, list(output.shape))
    if min(spec.shape, default=0) < 0:
        raise codec.malformed(f"output '{printable(output.name)}' has shape {list(spec.shape)}")
    return element_count(spec.shape) * spec.datatype.itemsize


def _point(tensor: Any, region: Region, place: tuple[int, int]) -> None:
    """Says in a tensor's message where its bytes are."""
    at, size = place
    tensor.parameters["shared_memory_region"].string_param = region.name
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    tensor.parameters["shared_memory_offset"].int64_param = at


def aligned(size: int) -> int:
    """`size` rounded up, so that the next tensor begins where processors like it."""
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
