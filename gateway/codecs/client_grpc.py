"""The client's side of ModelInfer on gRPC, for calls to other servers: bytes both ways.

A request that came as a raw ``ModelInferRequest`` goes out as the bytes it came as, with our
names for model and version behind them: of a field given twice, the last one counts. Others
are built around a head (names, datatypes, shapes) that is kept, as in `oip_grpc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from gateway.codecs.messages import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelStreamInferResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from gateway.codecs.oip_grpc import LENGTHS, parameter_message, plain_parameters, typed_tensor
from gateway.codecs.wire import RAW_OUTPUT_CONTENTS, field, raw_spans, varint
from gateway.errors import InferenceFailed, InvalidRequest, printable
from gateway.tensors import (
    Buffer,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Tensor,
    TensorSpec,
    check_shape,
    datatype,
)

LARGE: Final = 65536
"""Bytes from which an answer's tensors are views of it."""
MAX_HEADS: Final = 4096
MAX_FIELDS: Final = 65536
"""Most fields of an answer of any size that is read."""
HTTP_ONLY: Final = frozenset({"binary_data_output"})
"""Request parameters that say something about HTTP bodies alone."""
FINAL: Final = "triton_final_response"

_heads: dict[tuple[object, ...], bytes] = {}


# --- requests


def encode_request(request: InferenceRequest, model: str, version: str) -> bytes:
    """The serialized ``ModelInferRequest``, for the server's name and version of the model
    (empty = whichever version it chooses). Raises `InvalidRequest`."""
    if request.wire is not None:
        return b"".join((request.wire, names(model, version)))
    parts = [_head(request, model, version)]
    if request.id:
        parts.append(field(3, request.id.encode()))
    if request.parameters:
        parts.append(_parameters(request.parameters))
    for tensor in request.inputs:
        data = tensor.data
        size = len(data)
        parts.append(b":" + LENGTHS[size] if size < 1024 else b":" + varint(size))
        parts.append(data)  # type: ignore[arg-type]
    return b"".join(parts)


def encode_head(request: InferenceRequest, model: str, version: str, inputs: Sequence[Any]) -> Any:
    """The ``ModelInferRequest`` message over `inputs` (``InferInputTensor`` messages), with
    everything else of `request`, but without contents."""
    message = ModelInferRequest(model_name=model, model_version=version, id=request.id)
    message.inputs.extend(inputs)
    for name in request.outputs:
        message.outputs.add(name=name)
    _put_parameters(message, request.parameters or {})
    return message


def names(model: str, version: str) -> bytes:
    """The fields ``model_name`` and ``model_version``, which are numbered alike in requests and
    answers; written even where empty, as they are to replace others."""
    name, number = model.encode(), version.encode()
    return b"".join((b"\n", varint(len(name)), name, b"\x12", varint(len(number)), number))


def _head(request: InferenceRequest, model: str, version: str) -> bytes:
    inputs = request.inputs
    key = (model, version, request.outputs, *[(t.name, t.datatype, t.shape) for t in inputs])
    head = _heads.get(key)
    if head is None:
        message = ModelInferRequest(model_name=model, model_version=version)
        for tensor in inputs:
            message.inputs.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
        for name in request.outputs:
            message.outputs.add(name=name)
        head = message.SerializeToString()
        if len(_heads) >= MAX_HEADS:
            _heads.clear()
        _heads[key] = head
    return head


def _parameters(parameters: dict[str, Parameter]) -> bytes:
    message = ModelInferRequest()
    _put_parameters(message, parameters)
    encoded: bytes = message.SerializeToString()
    return encoded


def _put_parameters(message: Any, parameters: dict[str, Parameter]) -> None:
    for name, value in parameters.items():
        if name in HTTP_ONLY:
            continue
        try:
            message.parameters[name].CopyFrom(parameter_message(value))
        except ValueError:
            raise InvalidRequest(
                f"parameter '{printable(name)}' is {printable(value)}, which does not fit 64 bits"
            ) from None


# --- answers


def decode_response(payload: bytes, model: str, version: str, *, wire: bool) -> InferenceResponse:
    """The answer in a serialized ``ModelInferResponse``, under our names. With `wire` nothing of
    it is looked at. Raises `InferenceFailed` for an answer that is malformed."""
    if wire:
        answer = b"".join((payload, names(model, version)))
        return InferenceResponse(model, version, (), wire=answer)
    raws: Sequence[Buffer]
    try:
        if len(payload) < LARGE:
            message = ModelInferResponse.FromString(payload)
            raws = message.raw_output_contents
        else:
            spans, rest = raw_spans(
                payload, MAX_FIELDS, number=RAW_OUTPUT_CONTENTS, what="a ModelInferResponse"
            )
            view = memoryview(payload)
            message = ModelInferResponse.FromString(b"".join([payload[a:b] for a, b in rest]))
            raws = [view[start:stop] for start, stop in spans]
    except (DecodeError, UnicodeDecodeError, InvalidRequest) as error:
        raise malformed(error) from None
    return response_of(message, raws, model, version)


def response_of(
    message: Any, raws: Sequence[Buffer], model: str, version: str
) -> InferenceResponse:
    """The answer that a parsed ``ModelInferResponse`` is, with its raw contents apart. Raises
    `InferenceFailed`."""
    if raws and len(raws) != len(message.outputs):
        raise malformed(f"{len(raws)} raw_output_contents for {len(message.outputs)} outputs")
    try:
        outputs = [
            _output(output, raws[index] if raws else None)
            for index, output in enumerate(message.outputs)
        ]
        parameters = plain_parameters(message.parameters) if message.parameters else None
    except InvalidRequest as error:
        raise malformed(error) from None
    return InferenceResponse(model, version, outputs, id=message.id, parameters=parameters)


def _output(message: Any, raw: Buffer | None) -> Tensor:
    kind = datatype(message.datatype)
    shape = check_shape(message.name, list(message.shape))
    if raw is None:
        return typed_tensor(message.name, kind, shape, message)
    tensor = Tensor(message.name, kind, shape, raw)
    tensor.check_data()
    return tensor


def decode_stream_response(
    payload: bytes, model: str, version: str, *, wire: bool = False
) -> tuple[InferenceResponse | None, str, bool]:
    """One ``ModelStreamInferResponse``: the answer in it (`None` where there is only an error, or
    nothing but the word that it was the last), the error's text, and whether it is the last of
    its request. With `wire`, contents that are raw are not looked at. Raises `InferenceFailed`
    for one that is malformed."""
    try:
        message = ModelStreamInferResponse.FromString(payload)
    except (DecodeError, UnicodeDecodeError) as error:
        raise malformed(error) from None
    if message.error_message:
        return None, message.error_message, True
    answer = message.infer_response
    final = answer.parameters[FINAL].bool_param if FINAL in answer.parameters else False
    if final and not answer.outputs:
        return None, "", True
    if wire and answer.raw_output_contents:
        # Who streams the answer on says this itself.
        answer.parameters.pop(FINAL, None)
        answer.model_name, answer.model_version = model, version
        passed = InferenceResponse(model, version, (), id=answer.id)
        passed.wire = answer.SerializeToString()
        return passed, "", final
    response = response_of(answer, answer.raw_output_contents, model, version)
    if response.parameters is not None:
        # Who streams the answer on says this itself.
        response.parameters.pop(FINAL, None)
    return response, "", final


def malformed(cause: object) -> InferenceFailed:
    """The error for an answer that makes no sense."""
    text = str(cause).replace("raw_input_contents", "raw_output_contents")
    if text.startswith("input '"):
        text = f"output{text[len('input') :]}"
    return InferenceFailed(f"the server's answer is malformed: {printable(text, 300)}")


# --- readiness and metadata


class ModelMetadata(NamedTuple):
    """What a server says of a model. Shapes with every dimension, -1 for any size."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ServerMetadata(NamedTuple):
    """What a server says of itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


def server_ready_request() -> bytes:
    """A ``ServerReadyRequest``."""
    return b""


def parse_server_ready(payload: bytes) -> bool:
    """Whether the server is ready. Raises `InferenceFailed`."""
    return bool(_parsed(ServerReadyResponse, payload).ready)


def server_metadata_request() -> bytes:
    """A ``ServerMetadataRequest``."""
    return b""


def parse_server_metadata(payload: bytes) -> ServerMetadata:
    """Raises `InferenceFailed`."""
    message = _parsed(ServerMetadataResponse, payload)
    return ServerMetadata(message.name, message.version, tuple(message.extensions))


def model_ready_request(model: str, version: str) -> bytes:
    """A ``ModelReadyRequest``."""
    encoded: bytes = ModelReadyRequest(name=model, version=version).SerializeToString()
    return encoded


def parse_model_ready(payload: bytes) -> bool:
    """Whether the model is ready. Raises `InferenceFailed`."""
    return bool(_parsed(ModelReadyResponse, payload).ready)


def model_metadata_request(model: str, version: str) -> bytes:
    """A ``ModelMetadataRequest``."""
    encoded: bytes = ModelMetadataRequest(name=model, version=version).SerializeToString()
    return encoded


def parse_model_metadata(payload: bytes) -> ModelMetadata:
    """Raises `InferenceFailed`, also for datatypes that the protocol does not have."""
    message = _parsed(ModelMetadataResponse, payload)
    return ModelMetadata(
        message.name,
        tuple(message.versions),
        message.platform,
        tuple(tensor_spec(t.name, t.datatype, list(t.shape)) for t in message.inputs),
        tuple(tensor_spec(t.name, t.datatype, list(t.shape)) for t in message.outputs),
    )


def tensor_spec(name: str, kind: str, shape: Sequence[object]) -> TensorSpec:
    """One declared tensor of a server's metadata. Raises `InferenceFailed`."""
    try:
        if any(type(dim) is not int or dim < -1 for dim in shape):
            raise InvalidRequest(f"shape {printable(list(shape))} of tensor '{printable(name)}'")
        return TensorSpec(name, datatype(kind), tuple(shape))  # type: ignore[arg-type]
    except InvalidRequest as error:
        raise malformed(error) from None


def _parsed(kind: Any, payload: bytes) -> Any:
    try:
        return kind.FromString(payload)
    except (DecodeError, UnicodeDecodeError) as error:
        raise malformed(error) from None
