"""ModelInfer on gRPC: bytes ↔ `InferenceRequest` and `InferenceResponse`.

A client sends the same head (model, names, datatypes, shapes) over and over and only the
tensors' bytes change. The head of a raw request seen before is recognised by comparing
bytes (`Form`), which costs a tenth of parsing it again. Answers likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from gateway.codecs.messages import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
)
from gateway.codecs.parameters import refuse_tensor_parameters, timeout_and_priority
from gateway.codecs.wire import field, raw_spans, varint
from gateway.config import LimitsConfig
from gateway.errors import InvalidRequest, printable
from gateway.tensors import (
    BYTES,
    Datatype,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Shape,
    Tensor,
    as_bytes,
    check_shape,
    datatype,
    element_count,
    objects,
    signature_of,
)

LARGE: Final = 65536
"""Bytes from which raw contents are taken as views instead of being copied by protobuf."""
VIEW: Final = 4096
"""Bytes from which a tensor of a known form is a view."""
MAX_FORMS: Final = 512
MAX_ALIKE: Final = 4
"""Forms of the same length."""
MAX_HEADS: Final = 4096
MAX_BESIDE: Final = 65536
"""Most bytes beside the tensors' own with which a payload is kept for as long as its request."""

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_RAW_ONLY: Final = frozenset({"FP16", "BF16"})
_MAX_INT64: Final = 2**63 - 1


class Form:
    """The head of a raw request, and where its tensors' bytes are."""

    __slots__ = ("head", "like", "separators", "spans")

    def __init__(
        self, payload: bytes, spans: list[tuple[int, int]], like: InferenceRequest
    ) -> None:
        self.head = payload[: spans[0][0]]
        self.separators = tuple(
            (stop, payload[stop:start]) for (_, stop), (start, _) in pairwise(spans)
        )
        self.spans = tuple(spans)
        self.like = like.without_data()

    def fits(self, payload: bytes) -> bool:
        """Whether `payload` (of the same length) differs in the tensors' bytes alone."""
        if not payload.startswith(self.head):
            return False
        return all(payload.startswith(text, at) for at, text in self.separators)

    def request(self, payload: bytes) -> InferenceRequest:
        """The request of this form that `payload` is."""
        inputs = []
        for tensor, (start, stop) in zip(self.like.inputs, self.spans, strict=True):
            data: bytes | memoryview
            if stop - start < VIEW:
                data = payload[start:stop]
            else:
                data = memoryview(payload)[start:stop]
            inputs.append(Tensor(tensor.name, tensor.datatype, tensor.shape, data))
        request = self.like.with_inputs(tuple(inputs))
        request.wire = payload
        return request


class GrpcCodec:
    """Decodes and encodes ModelInfer; keeps the forms and heads it has seen. One thread."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        # Inputs, outputs and raw contents; parameters; model, version, id, and what we do not know.
        self._max_fields = 3 * limits.max_tensors + limits.max_parameters + 64
        self._forms: dict[int, list[Form]] = {}
        self._heads: dict[tuple[object, ...], bytes] = {}

    # --- in

    def decode(self, payload: bytes) -> tuple[InferenceRequest, bool]:
        """The request, and whether its contents are typed (then so are the answer's).

        Raises `RequestError`.
        """
        forms = self._forms.get(len(payload))
        if forms is not None:
            for form in forms:
                if form.fits(payload):
                    return form.request(payload), False
        return self._decode(payload)

    def _decode(self, payload: bytes) -> tuple[InferenceRequest, bool]:
        message, raws, spans = parse(payload, self._max_fields)
        request = self.request_of(message, raws)
        if raws:
            if len(payload) - request.nbytes <= MAX_BESIDE:
                request.wire = payload
            if spans is not None and not request.id:
                self._remember(payload, spans, request)
        return request, not raws and any(i.HasField("contents") for i in message.inputs)

    def _remember(
        self, payload: bytes, spans: list[tuple[int, int]], request: InferenceRequest
    ) -> None:
        if spans[0][0] > 4096:
            return
        alike = self._forms.get(len(payload))
        if alike is None:
            if len(self._forms) >= MAX_FORMS:
                self._forms.pop(next(iter(self._forms)))
            alike = self._forms[len(payload)] = []
        elif len(alike) >= MAX_ALIKE:
            alike.pop(0)
        alike.append(Form(payload, spans, request))

    def request_of(self, message: Any, raws: list[bytes | memoryview]) -> InferenceRequest:
        """The request that a parsed message is, with its raw contents apart."""
        limits = self._limits
        if len(message.inputs) > limits.max_tensors or len(message.outputs) > limits.max_tensors:
            raise InvalidRequest(
                f"the request has more than limits.max_tensors = {limits.max_tensors} tensors"
            )
        count = len(message.parameters)
        for tensor in (*message.inputs, *message.outputs):
            count += len(tensor.parameters)
        if count > limits.max_parameters:
            raise InvalidRequest(
                f"the request has {count} parameters, more than limits.max_parameters = "
                f"{limits.max_parameters}"
            )
        if raws and len(raws) != len(message.inputs):
            raise InvalidRequest(
                f"raw_input_contents has {len(raws)} entries for {len(message.inputs)} inputs; "
                "send one per input, in the same order, or none at all"
            )
        inputs = tuple(
            _input(tensor, raws[index] if raws else None)
            for index, tensor in enumerate(message.inputs)
        )
        parameters = plain_parameters(message.parameters) if message.parameters else None
        timeout_us = priority = 0
        if parameters is not None:
            timeout_us, priority = timeout_and_priority(parameters)
        outputs: tuple[str, ...] = ()
        if message.outputs:
            for output in message.outputs:
                refuse_tensor_parameters(output.name, plain_parameters(output.parameters), "output")
            outputs = tuple(dict.fromkeys(output.name for output in message.outputs))
        return InferenceRequest(
            message.model_name,
            message.model_version,
            inputs,
            id=message.id,
            outputs=outputs,
            parameters=parameters,
            signature=signature_of(inputs),
            timeout_us=timeout_us,
            priority=priority,
            unchecked=bool(raws) and not all(t.datatype.any_bytes for t in inputs),
        )

    # --- out

    def encode(self, response: InferenceResponse, *, typed: bool) -> bytes:
        """The serialized ModelInferResponse."""
        if response.wire is not None:
            return bytes(response.wire)
        if typed and not any(t.datatype.name in _RAW_ONLY for t in response.outputs):
            encoded: bytes = typed_response(response).SerializeToString()
            return encoded
        outputs = response.outputs
        key = (response.model, response.version, *[(t.name, t.datatype, t.shape) for t in outputs])
        head = self._heads.get(key)
        if head is None:
            head = self._head(key, response)
        parts = [head]
        if response.id:
            parts.append(field(3, response.id.encode()))
        if response.parameters:
            parts.append(_parameters_alone(response.parameters))
        for tensor in outputs:
            data = tensor.data
            size = len(data)
            parts.append(b"2" + LENGTHS[size] if size < 1024 else b"2" + varint(size))
            parts.append(data)  # type: ignore[arg-type]
        return b"".join(parts)

    def encode_for_stream(
        self, response: InferenceResponse, *, typed: bool, final: bool = True
    ) -> bytes:
        """The serialized ModelStreamInferResponse. Each answer says whether it is known to be
        the last of its request: clients of models that answer several times wait for that."""
        return field(2, self.encode(response, typed=typed) + (_FINAL if final else _NOT_FINAL))

    def _head(self, key: tuple[object, ...], response: InferenceResponse) -> bytes:
        """Everything but the id and the tensors' bytes; protobuf allows any order of fields."""
        message = ModelInferResponse(model_name=response.model, model_version=response.version)
        for tensor in response.outputs:
            message.outputs.add(name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape)
        head: bytes = message.SerializeToString()
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[key] = head
        return head


def _parameters_alone(parameters: Mapping[str, Parameter]) -> bytes:
    message = ModelInferResponse()
    _put_parameters(message, parameters)
    encoded: bytes = message.SerializeToString()
    return encoded


def _put_parameters(message: Any, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        message.parameters[name].CopyFrom(parameter_message(value))


LENGTHS: Final = tuple(varint(size) for size in range(1024))
"""Short lengths as varints."""


def parse(
    payload: bytes, max_fields: int
) -> tuple[Any, list[bytes | memoryview], list[tuple[int, int]] | None]:
    """The message without raw contents, those contents, and their places where the message ends
    with them. Raises `InvalidRequest`."""
    spans, rest = raw_spans(payload, max_fields)
    try:
        if len(payload) < LARGE:
            message = ModelInferRequest.FromString(payload)
            raws: list[bytes | memoryview] = [payload[start:stop] for start, stop in spans]
        else:
            view = memoryview(payload)
            message = ModelInferRequest.FromString(
                b"".join([payload[start:stop] for start, stop in rest])
            )
            raws = [view[start:stop] for start, stop in spans]
    except (DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the message is not a ModelInferRequest: {error}") from None
    ends_with_raws = bool(spans) and (not rest or rest[-1][1] <= spans[0][0])
    return message, raws, spans if ends_with_raws else None


def _input(message: Any, raw: bytes | memoryview | None) -> Tensor:
    name = message.name
    kind = datatype(message.datatype)
    shape = check_shape(name, list(message.shape))
    if message.parameters:
        refuse_tensor_parameters(name, plain_parameters(message.parameters), "input")
    if raw is not None:
        if message.HasField("contents"):
            raise InvalidRequest(
                f"input '{printable(name)}' has contents beside raw_input_contents; "
                "use one of the two for all inputs"
            )
        tensor = Tensor(name, kind, shape, raw)
        tensor.check_size()
        return tensor
    return typed_tensor(name, kind, shape, message)


def typed_tensor(name: str, kind: Datatype, shape: Shape, message: Any) -> Tensor:
    """The tensor in the typed contents of an input's or output's message. Raises
    `InvalidRequest`."""
    want = _CONTENTS.get(kind.name)
    if want is None:
        raise InvalidRequest(
            f"input '{printable(name)}': {kind} has no typed contents; use raw_input_contents"
        )
    for filled, _ in message.contents.ListFields():
        if filled.name != want:
            raise InvalidRequest(
                f"input '{printable(name)}' is {kind}, which belongs in {want}, but "
                f"{filled.name} was sent"
            )
    values = getattr(message.contents, want)
    expected = element_count(shape)
    if len(values) != expected:
        raise InvalidRequest(
            f"input '{printable(name)}' has {len(values)} elements in {want}, but shape "
            f"{printable(list(shape))} takes {expected}"
        )
    if kind is BYTES:
        return Tensor(name, kind, shape, array=objects(list(values), shape))
    if kind.kind == "int" and kind.itemsize < 4:
        wide = np.array(values, np.int64)
        limits = np.iinfo(kind.dtype)
        if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
            raise InvalidRequest(
                f"input '{printable(name)}' has a value that {kind} cannot hold "
                f"({limits.min} to {limits.max})"
            )
        return Tensor(name, kind, shape, array=wide.astype(kind.dtype).reshape(shape))
    return Tensor(name, kind, shape, array=np.array(values, kind.dtype).reshape(shape))


def plain_parameters(message: Any) -> dict[str, Parameter]:
    """A parameter map as plain values. Raises `InvalidRequest` for one without a value."""
    parameters: dict[str, Parameter] = {}
    for name, parameter in message.items():
        which = parameter.WhichOneof("parameter_choice")
        if which is None:
            raise InvalidRequest(f"parameter '{printable(name)}' has no value")
        parameters[name] = getattr(parameter, which)
    return parameters


def parameter_message(value: Parameter) -> Any:
    """A plain value as an InferParameter."""
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        if value > _MAX_INT64:
            return InferParameter(uint64_param=value)
        return InferParameter(int64_param=value)
    if isinstance(value, float):
        return InferParameter(double_param=value)
    return InferParameter(string_param=value)


_FINAL: Final = _parameters_alone({"triton_final_response": True})
_NOT_FINAL: Final = _parameters_alone({"triton_final_response": False})


def typed_response(response: InferenceResponse) -> Any:
    """A ModelInferResponse message with typed contents."""
    message = ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for tensor in response.outputs:
        output = message.outputs.add(
            name=tensor.name, datatype=tensor.datatype.name, shape=tensor.shape
        )
        values: list[Any] = tensor.array.ravel().tolist()
        if tensor.datatype is BYTES:
            values = [as_bytes(value) for value in values]
        getattr(output.contents, _CONTENTS[tensor.datatype.name]).extend(values)
    if response.parameters:
        _put_parameters(message, response.parameters)
    return message
