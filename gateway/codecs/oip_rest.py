"""Inference on the Open Inference Protocol's REST side, with Triton's binary tensors.

A body is JSON, or JSON followed by the tensors' bytes, whose JSON part is as long as
``Inference-Header-Content-Length`` says. JSON heads of purely binary requests repeat, so
those seen before are looked up instead of parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.codecs.json_data import has_booleans, json_data, parse_json, tensor_from_json
from gateway.codecs.json_frames import JsonFrames
from gateway.codecs.parameters import refuse_tensor_parameters, timeout_and_priority
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import InvalidRequest, printable
from gateway.tensors import (
    BYTES,
    Buffer,
    Datatype,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Shape,
    Tensor,
    check_shape,
    datatype,
    element_count,
    signature_of,
)

MAX_HEADS: Final = 2048
MAX_HEAD: Final = 4096
VIEW: Final = 65536
"""Bytes from which a binary tensor is a view of the body."""

LARGE_ANSWER: Final = 262_144
"""Bytes from which tensors are sent from where they lie."""

_REQUEST_KEYS: Final = frozenset(
    {"id", "parameters", "inputs", "outputs", "model_name", "model_version"}
)
_INPUT_KEYS: Final = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_KEYS: Final = frozenset({"name", "parameters", "datatype", "shape", "data"})


class AnswerForm:
    """How the caller wants the outputs: `binary` as a default, and for those named."""

    __slots__ = ("binary", "named")

    def __init__(self, *, binary: bool = False, named: dict[str, bool] | None = None) -> None:
        self.binary = binary
        self.named = named

    def is_binary(self, name: str) -> bool:
        return self.binary if self.named is None else self.named.get(name, self.binary)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # The two that most have are known by identity, in every process.
        if self is JSON_ANSWER:
            return "JSON_ANSWER"
        if self is BINARY_ANSWER:
            return "BINARY_ANSWER"
        return _answer_form, (self.binary, self.named)


def _answer_form(binary: bool, named: dict[str, bool] | None) -> AnswerForm:
    return AnswerForm(binary=binary, named=named)


JSON_ANSWER: Final = AnswerForm()
BINARY_ANSWER: Final = AnswerForm(binary=True)


class Head:
    """The parsed JSON part of a request whose tensors are all binary."""

    __slots__ = ("answer", "request", "sizes")

    def __init__(
        self, request: InferenceRequest, sizes: tuple[int, ...], answer: AnswerForm
    ) -> None:
        # A request without data, from which the others of this head are made.
        self.request = request
        self.sizes = sizes
        self.answer = answer


class Parts:
    """A body in pieces, `size` bytes in all."""

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: list[Buffer], size: int) -> None:
        self.pieces = pieces
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)


class Elsewhere:
    """Stands for the bytes behind a JSON part that is read without them."""

    __slots__ = ("_size",)

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> Elsewhere:
        return Elsewhere(len(range(*part.indices(self._size))))


class RestCodec:
    """Decodes and encodes ``/infer`` bodies; keeps the heads it has seen unless told not to
    `remember` them. One thread."""

    def __init__(self, limits: LimitsConfig, *, remember: bool = True) -> None:
        self._limits = limits
        self._remember = remember
        self._heads: dict[tuple[str, str, bytes], Head] = {}
        self._frames = JsonFrames(limits.max_json_depth)
        self._answers: dict[tuple[object, ...], bytes] = {}
        self._json_answers: dict[tuple[object, ...], list[bytes]] = {}

    # --- in

    def decode(
        self, model: str, version: str, body: Buffer, head_length: int | None
    ) -> tuple[InferenceRequest, AnswerForm]:
        """The request in `body`, and the form of its answer. `head_length` is the JSON part's
        length in bytes where there are binary tensors. Raises `RequestError`."""
        if head_length is None:
            known = self._frames.request(model, version, body)
            if known is not None:
                return known
            tree = parse_json(body, self._limits.max_json_depth)
            request, answer, _ = self._request(
                model, version, tree, memoryview(b""), has_booleans(body)
            )
            if self._remember:
                self._frames.remember(body, tree, request, answer)
            return request, answer
        text, rest = split_body(body, head_length)
        head = self._heads.get((model, version, text))
        if head is not None and len(body) - head_length == sum(head.sizes):
            return self._filled(head, body, head_length), head.answer
        tree = parse_json(text, self._limits.max_json_depth)
        request, answer, sizes = self._request(model, version, tree, rest)
        if sizes is not None and not request.id and len(model) + head_length <= MAX_HEAD:
            if len(self._heads) >= MAX_HEADS:
                self._heads.pop(next(iter(self._heads)))
            self._heads[model, version, text] = Head(request.without_data(), sizes, answer)
        return request, answer

    def decode_tree(
        self, model: str, version: str, tree: dict[str, Any]
    ) -> tuple[InferenceRequest, AnswerForm]:
        """The request in a body that was parsed, without binary tensors. Raises `RequestError`."""
        request, answer, _ = self._request(model, version, tree, memoryview(b""))
        return request, answer

    def decode_head(
        self, model: str, version: str, text: Buffer, rest: int
    ) -> tuple[InferenceRequest, AnswerForm, list[int | None]]:
        """As `decode`, from the JSON part alone, which `rest` bytes follow: binary inputs have no
        data yet. And each input's size in bytes, `None` for one in JSON. Raises `RequestError`."""
        tree = parse_json(text, self._limits.max_json_depth)
        request, answer, _ = self._request(model, version, tree, Elsewhere(rest))
        given = [each.get("parameters") or {} for each in tree.get("inputs") or ()]
        return request, answer, [each.get("binary_data_size") for each in given]

    def _filled(self, head: Head, body: Buffer, at: int) -> InferenceRequest:
        """The request of a known head over this body's tensors."""
        like = head.request
        inputs = []
        for tensor, size in zip(like.inputs, head.sizes, strict=True):
            part = body[at : at + size] if size < VIEW else memoryview(body)[at : at + size]
            data = bytes(part) if size < VIEW else part
            inputs.append(Tensor(tensor.name, tensor.datatype, tensor.shape, data))
            at += size
        return like.with_inputs(tuple(inputs))

    def decode_raw(
        self, model: str, version: str, body: Buffer, contract: Contract
    ) -> tuple[InferenceRequest, AnswerForm]:
        """A body that is nothing but the bytes of a single input (head length 0)."""
        if len(contract.inputs) != 1:
            raise InvalidRequest(
                f"Inference-Header-Content-Length 0 means the body is the model's only input, "
                f"but '{model}' has {len(contract.inputs)}"
            )
        spec = contract.inputs[0]
        dims = list(spec.shape)
        if contract.batched:
            dims[0] = 1
        if dims.count(-1) > (0 if spec.datatype is BYTES else 1):
            raise InvalidRequest(
                f"input '{spec.name}' has shape {dims}: more sizes are open than a raw body tells"
            )
        if spec.datatype is BYTES:
            body = len(body).to_bytes(4, "little") + bytes(body)
        elif -1 in dims:
            known = element_count([d for d in dims if d >= 0]) * spec.datatype.itemsize
            dims[dims.index(-1)] = len(body) // known if known else 0
        tensor = _binary(spec.name, spec.datatype, tuple(dims), memoryview(body))
        unchecked = not tensor.datatype.any_bytes
        return InferenceRequest(model, version, (tensor,), unchecked=unchecked), BINARY_ANSWER

    def _request(
        self,
        model: str,
        version: str,
        tree: dict[str, Any],
        binary: memoryview | Elsewhere,
        booleans: bool = True,
    ) -> tuple[InferenceRequest, AnswerForm, tuple[int, ...] | None]:
        """The request of a parsed body, and the tensors' sizes if all are binary."""
        refuse_unknown(tree, _REQUEST_KEYS, "the request")
        inputs_json = _list_of_objects(tree, "inputs")
        outputs_json = _list_of_objects(tree, "outputs")
        limits = self._limits
        if max(len(inputs_json), len(outputs_json)) > limits.max_tensors:
            raise InvalidRequest(
                f"the request has more than limits.max_tensors = {limits.max_tensors} tensors"
            )
        parameters = _parameters(tree, "the request") or None
        count = len(parameters or ())
        inputs: list[Tensor] = []
        sizes: list[int] = []
        unchecked = False
        at = 0
        for each in inputs_json:
            tensor, size = _input(each, binary[at:], booleans)
            if "parameters" in each:
                count += len(each["parameters"] or ())
            inputs.append(tensor)
            if size is not None:
                sizes.append(size)
                at += size
                unchecked = unchecked or not tensor.datatype.any_bytes
        if at != len(binary):
            raise InvalidRequest(
                f"the body has {len(binary) - at} bytes more than its inputs' binary_data_size say"
            )
        answer, names = self._answer(outputs_json, parameters)
        for each in outputs_json:
            count += len(each.get("parameters") or ())
        if count > limits.max_parameters:
            raise InvalidRequest(
                f"the request has {count} parameters, more than limits.max_parameters = "
                f"{limits.max_parameters}"
            )
        timeout_us = priority = 0
        if parameters is not None:
            timeout_us, priority = timeout_and_priority(parameters)
        request_id = tree.get("id", "")
        if type(request_id) is not str:
            raise InvalidRequest("id must be a string")
        request = InferenceRequest(
            model,
            version,
            tuple(inputs),
            id=request_id,
            outputs=names,
            parameters=parameters,
            signature=signature_of(inputs),
            timeout_us=timeout_us,
            priority=priority,
            unchecked=unchecked,
        )
        return request, answer, tuple(sizes) if len(sizes) == len(inputs) else None

    def _answer(
        self, outputs: list[dict[str, Any]], parameters: dict[str, Parameter] | None
    ) -> tuple[AnswerForm, tuple[str, ...]]:
        default = parameters.get("binary_data_output", False) if parameters else False
        if type(default) is not bool:
            raise InvalidRequest("parameter 'binary_data_output' must be true or false")
        if not outputs:
            return BINARY_ANSWER if default else JSON_ANSWER, ()
        named: dict[str, bool] = {}
        for each in outputs:
            name = _name(each, "output")
            refuse_unknown(each, _OUTPUT_KEYS, "output", name)
            own = _parameters(each, "output", name)
            refuse_tensor_parameters(name, own, "output")
            binary = own.get("binary_data", default)
            if type(binary) is not bool:
                raise InvalidRequest(
                    f"output '{printable(name)}': binary_data must be true or false"
                )
            named[name] = binary
        if all(named.values()):
            return BINARY_ANSWER, tuple(named)
        return AnswerForm(binary=default, named=named), tuple(named)

    # --- out

    def encode(self, response: InferenceResponse, form: AnswerForm) -> tuple[bytes, int | None]:
        """The body, and the length of its JSON part where binary tensors follow it.

        Raises `Unsupported` for what JSON cannot say.
        """
        if form is BINARY_ANSWER and not response.id and not response.parameters:
            return self._encode_binary(response)
        if form is JSON_ANSWER and response.outputs and not (response.id or response.parameters):
            return self._encode_json(response), None
        binary = [t.data for t in response.outputs if form.is_binary(t.name)]
        head = self.encode_head(response, form, [len(each) for each in binary])
        if not binary:
            return head, None
        return b"".join([head, *binary]), len(head)

    def encode_head(
        self, response: InferenceResponse, form: AnswerForm, sizes: Sequence[int]
    ) -> bytes:
        """The JSON part of an answer whose binary outputs have these `sizes`, in bytes; their data
        is not looked at. Raises `Unsupported`."""
        outputs: list[dict[str, Any]] = []
        binary = iter(sizes)
        for tensor in response.outputs:
            output: dict[str, Any] = {
                "name": tensor.name,
                "datatype": tensor.datatype.name,
                "shape": tensor.shape,
            }
            if form.is_binary(tensor.name):
                output["parameters"] = {"binary_data_size": next(binary)}
            else:
                output["data"] = json_data(tensor)
            outputs.append(output)
        return self._head(response, outputs)

    def encode_parts(
        self, response: InferenceResponse, form: AnswerForm
    ) -> tuple[bytes | Parts, int | None]:
        """As `encode`; but large tensors that nobody changes any more are not copied."""
        if form is BINARY_ANSWER and response.fresh:
            data = [tensor.data for tensor in response.outputs]
            size = sum(map(len, data))
            if size >= LARGE_ANSWER:
                head = self._binary_head(response, data)
                return Parts([head, *data], len(head) + size), len(head)
        return self.encode(response, form)

    def _encode_json(self, response: InferenceResponse) -> bytes:
        """All outputs as JSON: the texts between their data are kept, too."""
        outputs = response.outputs
        key = (
            response.model,
            response.version,
            *[(t.name, t.datatype, t.shape) for t in outputs],
        )
        texts = self._json_answers.get(key)
        if texts is None:
            marked = [
                {"name": t.name, "datatype": t.datatype.name, "shape": t.shape, "data": None}
                for t in outputs
            ]
            head = self._head(response, [])[: -len(b"]}")]
            texts = [orjson.dumps(each)[: -len(b"null}")] for each in marked]
            texts = [(b"}," if index else head) + text for index, text in enumerate(texts)]
            if len(self._json_answers) >= MAX_HEADS:
                self._json_answers.clear()
            self._json_answers[key] = texts
        parts: list[bytes] = []
        for text, tensor in zip(texts, outputs, strict=True):
            parts.append(text)
            parts.append(orjson.dumps(json_data(tensor), option=orjson.OPT_SERIALIZE_NUMPY))
        parts.append(b"}]}")
        return b"".join(parts)

    def _encode_binary(self, response: InferenceResponse) -> tuple[bytes, int]:
        data = [tensor.data for tensor in response.outputs]
        head = self._binary_head(response, data)
        return b"".join([head, *data]), len(head)

    def _binary_head(self, response: InferenceResponse, data: list[Buffer]) -> bytes:
        """The JSON part of an answer whose outputs are all binary; kept, unless there is more in
        it than the outputs."""
        key: tuple[object, ...] | None = None
        if not response.id and not response.parameters:
            key = (
                response.model,
                response.version,
                *[
                    (t.name, t.datatype, t.shape, len(d))
                    for t, d in zip(response.outputs, data, strict=True)
                ],
            )
            if (known := self._answers.get(key)) is not None:
                return known
        head = self._head(
            response,
            [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype.name,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(each)},
                }
                for tensor, each in zip(response.outputs, data, strict=True)
            ],
        )
        if key is not None:
            if len(self._answers) >= MAX_HEADS:
                self._answers.clear()
            self._answers[key] = head
        return head

    def _head(self, response: InferenceResponse, outputs: list[dict[str, Any]]) -> bytes:
        tree: dict[str, Any] = {
            "model_name": response.model,
            "model_version": response.version,
        }
        if response.id:
            tree["id"] = response.id
        if response.parameters:
            tree["parameters"] = response.parameters
        tree["outputs"] = outputs
        return orjson.dumps(tree, option=orjson.OPT_SERIALIZE_NUMPY)


def split_body(body: Buffer, head_length: int) -> tuple[bytes, memoryview]:
    """The JSON part of a body, and the tensors behind it. Raises `InvalidRequest`."""
    if head_length > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {head_length}, but the body has only "
            f"{len(body)} bytes"
        )
    return bytes(body[:head_length]), memoryview(body)[head_length:]


def with_data(
    inputs: Sequence[Tensor], sizes: Sequence[int | None], data: memoryview
) -> tuple[Tensor, ...]:
    """The inputs that `decode_head` gave, with their bytes. Raises `InvalidRequest`."""
    found = []
    at = 0
    for tensor, size in zip(inputs, sizes, strict=True):
        if size is not None:
            part = data[at : at + size]
            tensor = _binary(tensor.name, tensor.datatype, tensor.shape, part)
            at += size
        found.append(tensor)
    return tuple(found)


def refuse_unknown(
    tree: dict[str, Any], known: frozenset[str], what: str, whose: str | None = None
) -> None:
    """Raises `InvalidRequest` for a key that the protocol does not have."""
    if not known.issuperset(tree):
        name = next(key for key in tree if key not in known)
        raise InvalidRequest(
            f"{described(what, whose)} has an unknown key '{printable(name)}'; "
            f"known: {', '.join(sorted(known))}"
        )


def described(what: str, whose: str | None) -> str:
    """``input 'x'``, or just ``the request``; made only when there is an error to tell."""
    return what if whose is None else f"{what} '{printable(whose)}'"


def _list_of_objects(tree: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = tree.get(key)
    if value is None:
        return []
    if type(value) is list:
        for each in value:
            if type(each) is not dict:
                break
        else:
            return value
    raise InvalidRequest(f"'{key}' must be a list of objects")


def _name(tree: dict[str, Any], what: str) -> str:
    name = tree.get("name")
    if type(name) is not str or not name:
        raise InvalidRequest(f"every {what} needs a 'name' that is a string")
    return name


def _parameters(tree: dict[str, Any], what: str, whose: str | None = None) -> dict[str, Parameter]:
    parameters = tree.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InvalidRequest(f"the parameters of {described(what, whose)} must be an object")
    for name, value in parameters.items():
        if type(value) not in (str, int, float, bool):
            raise InvalidRequest(
                f"parameter '{printable(name)}' of {described(what, whose)} must be a string, "
                "number or boolean"
            )
    return parameters


def _input(
    tree: dict[str, Any], binary: memoryview | Elsewhere, booleans: bool
) -> tuple[Tensor, int | None]:
    """One input, and its size in bytes if it is binary."""
    name = _name(tree, "input")
    refuse_unknown(tree, _INPUT_KEYS, "input", name)
    shape_json = tree.get("shape")
    if type(shape_json) is not list:
        raise InvalidRequest(f"input '{printable(name)}' needs a 'shape' that is a list")
    shape = check_shape(name, shape_json)
    kind = datatype(tree.get("datatype", ""))
    parameters = _parameters(tree, "input", name)
    if parameters:
        refuse_tensor_parameters(name, parameters, "input")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in tree:
            raise InvalidRequest(
                f"input '{printable(name)}' has neither 'data' nor the parameter 'binary_data_size'"
            )
        return tensor_from_json(name, kind, shape, tree["data"], booleans=booleans), None
    if "data" in tree:
        raise InvalidRequest(
            f"input '{printable(name)}' has both 'data' and 'binary_data_size'; send one of them"
        )
    if type(size) is not int or size < 0:
        raise InvalidRequest(
            f"input '{printable(name)}': binary_data_size must be a whole number of at least 0"
        )
    if size > len(binary):
        raise InvalidRequest(
            f"input '{printable(name)}' says binary_data_size {size}, but only {len(binary)} bytes "
            "are left in the body"
        )
    return _binary(name, kind, shape, binary[:size]), size


def _binary(name: str, kind: Datatype, shape: Shape, data: memoryview | Elsewhere) -> Tensor:
    if isinstance(data, Elsewhere):
        return Tensor(name, kind, shape, b"")
    tensor = Tensor(name, kind, shape, data if len(data) >= VIEW else bytes(data))
    tensor.check_size()
    return tensor
