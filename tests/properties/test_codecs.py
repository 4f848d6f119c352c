"""The codecs: nothing is lost on the way, whatever comes in; the fast paths change nothing."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc._utils import _get_inference_request as triton_grpc_request
from tritonclient.http._utils import _get_inference_request as triton_http_request

from gateway.codecs.json_data import parse_json
from gateway.codecs.messages import ModelInferRequest, ModelInferResponse
from gateway.codecs.oip_grpc import LARGE, GrpcCodec, parameter_message
from gateway.codecs.oip_rest import BINARY_ANSWER, JSON_ANSWER, AnswerForm, RestCodec
from gateway.codecs.wire import raw_spans, varint
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.errors import InvalidRequest, RequestError, Unsupported
from gateway.tensors import (
    DATATYPES,
    InferenceRequest,
    InferenceResponse,
    Tensor,
    TensorSpec,
    datatype_of,
    objects,
    to_wire,
)

LIMITS = LimitsConfig()
NAMES = tuple(DATATYPES)
TYPED = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
RAW_ELEMENTS = st.sampled_from(
    [b"", b"\0", b"\0\0a", b"\xff\xfe", b"text", "héllo ☃".encode(), b"x" * 300]
)
TEXT_ELEMENTS = st.sampled_from(["", "\0", "text", "héllo ☃ \U0001f600", '"\\ : {', "x" * 300])


@st.composite
def arrays(draw: Any, names: tuple[str, ...] = NAMES, *, json_able: bool = False) -> np.ndarray:
    kind = DATATYPES[draw(st.sampled_from(names))]
    shape = draw(SHAPES)
    count = int(np.prod(shape, dtype=int))
    if kind.name == "BYTES":
        elements = TEXT_ELEMENTS.map(str.encode) if json_able else RAW_ELEMENTS
        return objects(draw(st.lists(elements, min_size=count, max_size=count)), shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind.name == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    raw = np.frombuffer(rng.bytes(count * kind.itemsize), kind.dtype).reshape(shape)
    if kind.kind == "int":
        limits = np.iinfo(kind.dtype)
        edges = np.array([0, 1, limits.min, limits.max], kind.dtype)
        return np.where(rng.integers(0, 2, shape) == 1, raw, rng.choice(edges, shape))
    if json_able:
        with np.errstate(all="ignore"):
            small = np.nan_to_num(raw.astype("f8"), nan=-0.0, posinf=1.5, neginf=-3.25)
            narrow = small.astype(kind.dtype)
        return np.where(np.isfinite(narrow.astype("f8")), narrow, np.array(1, kind.dtype))
    return raw


def quiet(array: np.ndarray) -> np.ndarray:
    """With one NaN for all: Python's floats do not keep which one it was."""
    return np.where(np.isnan(array), np.array(np.nan, array.dtype), array)


def same(array: np.ndarray, tensor: Tensor) -> bool:
    """Equal in shape, datatype and every bit."""
    kind = datatype_of(array)
    return (
        tensor.datatype is kind
        and tensor.shape == array.shape
        and tensor.array.shape == array.shape
        and bytes(tensor.data) == bytes(to_wire(array))
        and (kind.name != "BYTES" or tensor.array.tolist() == array.tolist())
    )


def facts(request: InferenceRequest) -> tuple[Any, ...]:
    return (
        request.model, request.version, request.id, request.outputs, request.parameters or None,
        request.signature, request.rows, request.timeout_us, request.priority, request.nbytes,
        [
            (
                t.name, t.datatype.name, t.shape, bytes(t.data),
                t.array.tobytes() if t.datatype.itemsize else t.array.tolist(),
            )
            for t in request.inputs
        ],
    )  # fmt: skip


def response_of(found: list[np.ndarray], id: str = "") -> InferenceResponse:
    tensors = [
        Tensor(f"o{i}", datatype_of(array), array.shape, array=array)
        for i, array in enumerate(found)
    ]
    return InferenceResponse("m", "3", tensors, id=id)


IDS = st.sampled_from(["", "42", "ü", "x" * 200])
PARAMETERS = st.dictionaries(
    st.sampled_from(["a", "b", "timeout", "priority", "ключ"]),
    st.one_of(st.integers(0, 2**40), st.just("7")),
    max_size=3,
)


# --- gRPC


def grpc_message(found: list[np.ndarray], *, typed: bool = False, **fields: Any) -> Any:
    parameters = fields.pop("parameters", {})
    message = ModelInferRequest(model_name="m", **fields)
    for name, value in parameters.items():
        message.parameters[name].CopyFrom(parameter_message(value))
    for index, array in enumerate(found):
        kind = datatype_of(array)
        tensor = message.inputs.add(name=f"i{index}", datatype=kind.name, shape=array.shape)
        if typed:
            getattr(tensor.contents, TYPED[kind.name]).extend(array.ravel().tolist())
        else:
            message.raw_input_contents.append(bytes(to_wire(array)))
    return message


@given(found=st.lists(arrays(), max_size=3), id=IDS, parameters=PARAMETERS)
def test_grpc_raw_requests(found: list[np.ndarray], id: str, parameters: dict[str, Any]) -> None:
    message = grpc_message(found, id=id, parameters=parameters, model_version="2")
    payload = message.SerializeToString()
    codec = GrpcCodec(LIMITS)
    slow, typed = codec.decode(payload)
    fast, typed_again = codec.decode(payload)
    assert facts(slow) == facts(fast)
    assert not typed and not typed_again
    assert (slow.id, slow.version, slow.parameters or {}) == (id, "2", parameters)
    assert (slow.timeout_us, slow.priority) == (
        int(parameters.get("timeout", 0)),
        int(parameters.get("priority", 0)),
    )
    assert all(same(array, t) for array, t in zip(found, slow.inputs, strict=True))


@given(found=st.lists(arrays(tuple(TYPED)), min_size=1, max_size=3))
def test_grpc_typed_requests(found: list[np.ndarray]) -> None:
    request, typed = GrpcCodec(LIMITS).decode(grpc_message(found, typed=True).SerializeToString())
    assert typed
    for array, tensor in zip(found, request.inputs, strict=True):
        if array.dtype.kind == "f":
            tensor = Tensor("", tensor.datatype, tensor.shape, array=quiet(tensor.array))
            assert same(quiet(array), tensor)
        else:
            assert same(array, tensor)


@given(found=st.lists(arrays(), max_size=3), id=IDS, typed=st.booleans())
def test_grpc_answers(found: list[np.ndarray], id: str, typed: bool) -> None:
    codec = GrpcCodec(LIMITS)
    response = response_of(found, id)
    response.parameters = {"p": 1, "q": "text", "r": True} if id else None
    for _ in range(2):
        payload = codec.encode(response, typed=typed)
        message = ModelInferResponse.FromString(payload)
        assert (message.model_name, message.model_version, message.id) == ("m", "3", id)
        assert set(message.parameters) == set(response.parameters or ())
        result = triton_grpc.InferResult(
            triton_grpc.service_pb2.ModelInferResponse.FromString(payload)
        )
        half = typed and not any(datatype_of(a).name in ("FP16", "BF16") for a in found)
        assert bool(message.raw_output_contents) == (bool(found) and not half)
        for index, array in enumerate(found):
            kind = datatype_of(array).name
            if half:  # the client reads raw contents only
                output = message.outputs[index]
                assert (output.datatype, tuple(output.shape)) == (kind, array.shape)
                values = np.array(getattr(output.contents, TYPED[kind]), array.dtype)
                if array.dtype.kind == "f":
                    array, values = quiet(array), quiet(values)
                assert to_wire(values) == to_wire(array)
                continue
            if kind == "BF16":  # the client turns it into FP32
                assert message.raw_output_contents[index] == to_wire(array)
                continue
            back = result.as_numpy(f"o{index}")
            assert back.shape == array.shape
            assert to_wire(back) == to_wire(array)


@given(found=arrays(tuple(n for n in NAMES if n != "BF16")))
def test_grpc_requests_of_tritonclient(found: np.ndarray) -> None:
    tensor = triton_grpc.InferInput("x", list(found.shape), datatype_of(found).name)
    tensor.set_data_from_numpy(found)
    request = triton_grpc_request(
        model_name="m", inputs=[tensor], model_version="1", request_id="r",
        outputs=[triton_grpc.InferRequestedOutput("y")], sequence_id=0, sequence_start=False,
        sequence_end=False, priority=2, timeout=7, parameters={"k": "v"},
    )  # fmt: skip
    decoded, typed = GrpcCodec(LIMITS).decode(request.SerializeToString())
    assert same(found, decoded.inputs[0]) and not typed
    assert (decoded.id, decoded.outputs, decoded.priority, decoded.timeout_us) == (
        "r",
        ("y",),
        2,
        7,
    )


def outcome(codec: Any, *payload: Any) -> Any:
    """What decoding gives, in a form that can be compared; anything but a RequestError escapes."""
    try:
        request, form = codec.decode(*payload)
        if request.unchecked:
            request.check_data()
    except RequestError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return type(error), str(error)
    if isinstance(form, AnswerForm):
        form = (form.binary, form.named)
    return facts(request), form


@st.composite
def mutated(draw: Any, payload: bytes) -> bytes:
    """`payload` with some bytes changed; often of the same length."""
    data = bytearray(payload)
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["set", "set", "set", "flip", "cut", "add", "swap"]))
        if how == "set":
            data[at] = draw(st.integers(0, 255))
        elif how == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 5))]
        elif how == "add":
            data[at:at] = draw(st.binary(max_size=5))
        else:
            other = draw(st.integers(0, len(data) - 1))
            data[at], data[other] = data[other], data[at]
    return bytes(data)


@given(
    data=st.data(), found=st.lists(arrays(), max_size=3), large=st.booleans(), typed=st.booleans()
)
def test_grpc_fast_path_is_never_taken_for_another_head(
    data: st.DataObject, found: list[np.ndarray], large: bool, typed: bool
) -> None:
    typed = typed and not any(datatype_of(a).name in ("FP16", "BF16") for a in found)
    if large:
        found = [*found, np.zeros((1, LARGE), np.uint8)]
    message = grpc_message(found, typed=typed, parameters={"k": 1})
    message.outputs.add(name="y")
    payload = message.SerializeToString()
    warm = GrpcCodec(LIMITS)
    warm.decode(payload)
    for _ in range(3):
        if large:
            changed = data.draw(mutated(payload[:120])) + payload[120:]
        else:
            changed = data.draw(mutated(payload))
        assert outcome(warm, changed) == outcome(GrpcCodec(LIMITS), changed)
    assert outcome(warm, payload) == outcome(GrpcCodec(LIMITS), payload)


@given(payload=st.binary(max_size=80))
@example(payload=b"\x2a\x04\x1a\x02\x80\x01")
@example(payload=b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(payload=b"\x80" * 20)
@example(payload=b"\x0b\x0c")
def test_grpc_garbage_is_refused(payload: bytes) -> None:
    outcome(GrpcCodec(LIMITS), payload)


@given(lengths=st.lists(st.integers(0, 300), max_size=5), ahead=st.booleans())
def test_raw_contents_are_found_wherever_they_are(lengths: list[int], ahead: bool) -> None:
    raws = [bytes([i % 256]) * n for i, n in enumerate(lengths)]
    name = b"\x0a\x01m"
    pieces = [b"\x3a" + varint(len(raw)) + raw for raw in raws]
    payload = b"".join([*pieces, name] if ahead else [name, *pieces])
    spans, rest = raw_spans(payload)
    assert [payload[a:b] for a, b in spans] == raws
    assert ModelInferRequest.FromString(payload).raw_input_contents == raws
    assert b"".join(payload[a:b] for a, b in rest) == name


@pytest.mark.parametrize(
    ("shape", "raw", "says"),
    [
        ([-1, 2], b"", "dimension -1"),
        ([2**31], b"", "not between 0 and 2147483647"),
        ([2**62], b"", "not between"),
        ([2**31 - 1] * 8, b"", "takes"),
        ([0] + [2**31 - 1] * 3, b"", "too large"),
        ([1] * 33, b"\0\0\0\0", "33 dimensions"),
        ([2], b"\0\0\0\0", "takes 8"),
    ],
)
def test_grpc_shapes_are_checked(shape: list[int], raw: bytes, says: str) -> None:
    for kind in ("FP32", "BYTES"):
        message = ModelInferRequest(model_name="m", raw_input_contents=[raw])
        message.inputs.add(name="x", datatype=kind, shape=shape)
        with pytest.raises(InvalidRequest, match=says if kind == "FP32" else "x"):
            GrpcCodec(LIMITS).decode(message.SerializeToString())[0].check_data()


# --- REST


def rest_input(index: int, array: np.ndarray, binary: bool, nested: bool) -> tuple[Any, bytes]:
    kind = datatype_of(array)
    tree: dict[str, Any] = {"name": f"i{index}", "datatype": kind.name, "shape": list(array.shape)}
    if binary:
        raw = bytes(to_wire(array))
        return tree | {"parameters": {"binary_data_size": len(raw)}}, raw
    if kind.name == "BYTES":
        array = (
            objects([], array.shape) if not array.size else np.vectorize(bytes.decode, "O")(array)
        )
    tree["data"] = array.tolist() if nested and array.ndim else array.ravel().tolist()
    return tree, b""


def rest_body(
    found: list[np.ndarray], binary: list[bool], *, nested: bool = False, **fields: Any
) -> tuple[bytes, int | None]:
    pieces = [
        rest_input(i, a, b, nested) for i, (a, b) in enumerate(zip(found, binary, strict=True))
    ]
    head = json.dumps({**fields, "inputs": [tree for tree, _ in pieces]}).encode()
    body = head + b"".join(raw for _, raw in pieces)
    return body, len(head) if any(binary) else None


@given(
    found=st.lists(arrays(json_able=True), max_size=3), nested=st.booleans(), id=IDS, data=st.data()
)
def test_rest_requests_json_binary_and_mixed(
    found: list[np.ndarray], nested: bool, id: str, data: st.DataObject
) -> None:
    binary = [data.draw(st.booleans()) for _ in found]
    fields: dict[str, Any] = {"id": id} if id else {}
    parameters = data.draw(PARAMETERS)
    body, head = rest_body(found, binary, nested=nested, parameters=parameters, **fields)
    codec = RestCodec(LIMITS)
    request, form = codec.decode("m", "1", body, head)
    again, form_again = codec.decode("m", "1", body, head)
    assert facts(request) == facts(again) and form is form_again is JSON_ANSWER
    assert (request.id, request.parameters or {}) == (id, parameters)
    assert all(same(array, t) for array, t in zip(found, request.inputs, strict=True))


@given(found=st.lists(arrays(), min_size=1, max_size=3), id=IDS)
def test_rest_binary_requests_of_any_bytes(found: list[np.ndarray], id: str) -> None:
    body, head = rest_body(
        found, [True] * len(found), id=id, parameters={"binary_data_output": True}
    )
    for kind in (bytes, bytearray, memoryview):
        codec = RestCodec(LIMITS)
        for _ in range(2):
            request, form = codec.decode("m", "", kind(body), head)
            assert form is BINARY_ANSWER
            assert all(same(array, t) for array, t in zip(found, request.inputs, strict=True))


@given(found=arrays(tuple(n for n in NAMES if n != "BF16"), json_able=True), binary=st.booleans())
def test_rest_requests_of_tritonclient(found: np.ndarray, binary: bool) -> None:
    kind = datatype_of(found).name
    binary = binary or kind == "FP16"
    tensor = triton_http.InferInput("x", list(found.shape), kind)
    tensor.set_data_from_numpy(found, binary_data=binary)
    body, head = triton_http_request(
        inputs=[tensor], request_id="r", sequence_id=0, sequence_start=False, sequence_end=False,
        outputs=[triton_http.InferRequestedOutput("y", binary_data=True)],
        priority=2, timeout=7, custom_parameters={"k": "v"},
    )  # fmt: skip
    body = body.encode() if isinstance(body, str) else body
    decoded, form = RestCodec(LIMITS).decode("m", "", body, head)
    assert same(found, decoded.inputs[0]) and form.is_binary("y")
    assert (decoded.id, decoded.outputs, decoded.priority, decoded.timeout_us) == (
        "r",
        ("y",),
        2,
        7,
    )


@given(found=st.lists(arrays(json_able=True), max_size=3), id=IDS, data=st.data())
def test_rest_answers(found: list[np.ndarray], id: str, data: st.DataObject) -> None:
    named = {f"o{i}": data.draw(st.booleans()) for i in range(len(found))}
    form = data.draw(st.sampled_from([JSON_ANSWER, BINARY_ANSWER, AnswerForm(named=named)]))
    codec = RestCodec(LIMITS)
    response = response_of(found, id)
    response.parameters = {"p": 1} if id else None
    for _ in range(2):
        body, head = codec.encode(response, form)
        tree = json.loads(body if head is None else body[:head])
        assert (tree["model_name"], tree["model_version"], tree.get("id", "")) == ("m", "3", id)
        assert tree.get("parameters") == response.parameters
        result = triton_http.InferResult.from_response_body(body, header_length=head)
        for index, array in enumerate(found):
            kind = datatype_of(array).name
            output = tree["outputs"][index]
            if kind in ("FP16", "BF16"):
                if not form.is_binary(f"o{index}"):
                    back = np.array(output["data"], array.dtype).reshape(array.shape)
                    assert np.array_equal(back, array)
                continue
            back = result.as_numpy(f"o{index}")
            if kind == "BYTES" and back is not None and back.size and type(back.flat[0]) is str:
                back = np.vectorize(str.encode, "O")(back)
            assert back.shape == array.shape
            assert np.array_equal(back, array)


@pytest.mark.parametrize("typed", [False, True])
def test_answers_of_one_name_and_several_types_are_told_apart(typed: bool) -> None:
    rest, grpc = RestCodec(LIMITS), GrpcCodec(LIMITS)
    for dtype in ("<f4", "<i4", "<u4", "<f4"):
        response = response_of([np.arange(4, dtype=dtype)])
        want = datatype_of(np.empty(0, dtype)).name
        body, head = rest.encode(response, BINARY_ANSWER)
        assert json.loads(body[:head])["outputs"][0]["datatype"] == want
        message = ModelInferResponse.FromString(grpc.encode(response, typed=typed))
        assert message.outputs[0].datatype == want


def test_parameters_of_one_answer_are_not_given_with_the_next() -> None:
    rest, grpc = RestCodec(LIMITS), GrpcCodec(LIMITS)
    for parameters in ({"p": 1}, None, {"p": 2}):
        response = response_of([np.zeros(3, "<f4")])
        response.parameters = parameters
        body, head = rest.encode(response, BINARY_ANSWER)
        assert json.loads(body[:head]).get("parameters") == parameters
        message = ModelInferResponse.FromString(grpc.encode(response, typed=False))
        assert {k: v.int64_param for k, v in message.parameters.items()} == (parameters or {})


def test_json_answers_say_null_for_what_json_cannot_say() -> None:
    for count in (3, 100):
        array = np.full(count, np.nan, "<f4")
        array[1] = np.inf
        body, _ = RestCodec(LIMITS).encode(response_of([array]), JSON_ANSWER)
        assert json.loads(body)["outputs"][0]["data"] == [None] * count
    with pytest.raises(Unsupported, match="binary_data"):
        RestCodec(LIMITS).encode(response_of([objects([b"\xff"], (1,))]), JSON_ANSWER)


@given(
    data=st.data(),
    found=st.lists(arrays(json_able=True), min_size=1, max_size=2),
    some=st.booleans(),
)
def test_rest_fast_path_is_never_taken_for_another_head(
    data: st.DataObject, found: list[np.ndarray], some: bool
) -> None:
    binary = [True] * len(found) if some else [data.draw(st.booleans()) for _ in found]
    body, head = rest_body(
        found, binary, outputs=[{"name": "y", "parameters": {"binary_data": True}}]
    )
    warm = RestCodec(LIMITS)
    warm.decode("m", "1", body, head)
    for _ in range(3):
        changed = data.draw(mutated(body))
        length = (
            None if head is None else data.draw(st.sampled_from([head, head, head - 1, head + 1]))
        )
        for names in (("m", "1"), ("m", ""), ("n", "1")):
            new = RestCodec(LIMITS)
            assert outcome(warm, *names, changed, length) == outcome(new, *names, changed, length)


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(body=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_rest_garbage_is_refused(body: bytes) -> None:
    for length in (None, 0, len(body) // 2, len(body), len(body) + 1):
        outcome(RestCodec(LIMITS), "m", "", body, length)


@given(
    tree=st.fixed_dictionaries(
        {},
        optional={
            "id": JSON_VALUES,
            "parameters": JSON_VALUES,
            "outputs": JSON_VALUES,
            "inputs": st.one_of(
                JSON_VALUES,
                st.lists(
                    st.fixed_dictionaries(
                        {"name": st.one_of(st.just("x"), JSON_VALUES)},
                        optional={
                            "shape": st.one_of(
                                st.lists(st.integers(-1, 3), max_size=3), JSON_VALUES
                            ),
                            "datatype": st.one_of(st.sampled_from(NAMES), JSON_VALUES),
                            "parameters": JSON_VALUES,
                            "data": JSON_VALUES,
                        },
                    ),
                    max_size=2,
                ),
            ),
        },
    )
)
def test_rest_json_of_the_wrong_form_is_refused(tree: dict[str, Any]) -> None:
    body = json.dumps(tree).encode()
    outcome(RestCodec(LIMITS), "m", "", body, None)
    outcome(RestCodec(LIMITS), "m", "", body, len(body))


@given(shape=SHAPES, data=JSON_VALUES, name=st.sampled_from(NAMES))
def test_rest_data_of_the_wrong_form_is_refused(
    shape: tuple[int, ...], data: Any, name: str
) -> None:
    each = {"name": "x", "shape": shape, "datatype": name, "data": data}
    outcome(RestCodec(LIMITS), "m", "", json.dumps({"inputs": [each]}).encode(), None)


def infer(text: str, kind: str = "FP32", shape: str = "[2]") -> InferenceRequest:
    body = (
        f'{{"inputs": [{{"name": "x", "shape": {shape}, "datatype": "{kind}", "data": {text}}}]}}'
    )
    return RestCodec(LIMITS).decode("m", "", body.encode(), None)[0]


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("[1, NaN]", "FP32", "not JSON"),
        ("[1, Infinity]", "FP32", "not JSON"),
        ("[1, 1e400]", "FP64", "not JSON.*infinity"),
        ("[1, 1e39]", "FP32", "FP32 cannot hold"),
        ("[1, 1e6]", "FP16", "FP16 cannot hold"),
        ("[1, 300]", "UINT8", r"UINT8 cannot hold \(0 to 255\)"),
        ("[1, -1]", "UINT64", "no integer or out of range|cannot hold"),
        ("[9223372036854775808, -1]", "UINT64", "no integer or out of range"),
        ("[9223372036854775808, 0]", "INT64", "out of range|cannot hold"),
        ("[18446744073709551616, 0]", "UINT64", "no integer or out of range"),
        ("[1.5, 2]", "INT32", "no integer"),
        ("[1, 2.5]", "UINT64", "no integer"),
        ("[true, false]", "INT32", "true or false"),
        ("[1, 0]", "BOOL", "numbers"),
        ('["1", "2"]', "FP32", "strings"),
        ('[1, "2"]', "INT64", "strings"),
        ("[1, null]", "FP32", "null"),
        ("[[1], 2]", "FP32", "rows of different depth"),
        ("[[1, 2], [3]]", "FP32", "rows differ"),
        ("[1, 2]", "BYTES", "must be strings, not int"),
        ('["a", ["b"]]', "BYTES", "must be strings, not list"),
        ("[1]", "FP32", "takes 2 elements"),
        ("[]", "FP32", "takes 2 elements"),
        ("{}", "FP32", "must be a list, not dict"),
        ("3", "FP32", "must be a list, not int"),
        ("[1, 2]", "FLOAT", "unknown datatype 'FLOAT'; known: BOOL"),
    ],
)
def test_wrong_data_is_refused_in_words(text: str, kind: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        infer(text, kind)


def test_large_and_small_unsigned_integers_together() -> None:
    request = infer("[1, 18446744073709551615]", "UINT64")
    assert request.inputs[0].array.tolist() == [1, 2**64 - 1]
    request = infer("[[9223372036854775808], [3]]", "UINT64", "[2, 1]")
    assert request.inputs[0].array.tolist() == [[2**63], [3]]


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    ("text", "shape"), [("[]", "[0]"), ("[[], []]", "[2, 0]"), ("[]", "[2, 0]")]
)
def test_empty_data_is_of_every_type(text: str, shape: str, kind: str) -> None:
    tensor = infer(text, kind, shape).inputs[0]
    assert tensor.array.size == 0
    assert tensor.array.dtype == DATATYPES[kind].dtype


def test_a_long_string_among_numbers_costs_no_memory() -> None:
    # As strings of one width this would take 400 GB.
    text = "[0," * 1 + '"' + "x" * 1_000_000 + '"' + ",0" * 100_000 + "]"
    with pytest.raises(InvalidRequest, match="strings"):
        infer(text, "FP32", "[100002]")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xef\xbb\xbf{}", "remove the byte order mark"),
        (b'{"inputs": [], "inputs": []}', "same key twice"),
        (b'{"parameters": {"a": 1, "\\u0061": 2}}', "same key twice"),
        (b'{"inputs": [{"name": "x", "name": "y: z"}]}', "same key twice"),
        (b'{"id": "\xff"}', "not JSON"),
        (b'{"id": "\\ud800"}', "not JSON"),
        (b"[]", "must be a JSON object, not list"),
        (b"null", "must be a JSON object"),
        (b"", "not JSON"),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON|nested deeper"),
        (b'{"inputs": ' + b"[" * 70 + b"]" * 70 + b"}", "max_json_depth = 64"),
        (b'{"inputz": []}', "unknown key 'inputz'; known: "),
        (b'{"inputs": [{"name": "x", "shape": [1.0], "datatype": "FP32"}]}', "list of integers"),
        (b'{"inputs": [{"name": "x", "shape": [true], "datatype": "FP32"}]}', "list of integers"),
        (b'{"inputs": [{"name": "x", "shape": [1]}]}', "unknown datatype ''"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "INT8"}]}', "neither 'data' nor"),
        (b'{"id": 7}', "id must be a string"),
        (b'{"parameters": {"timeout": -1}}', "'timeout' must be a whole number"),
        (b'{"parameters": {"priority": 1.5}}', "'priority' must be a whole number"),
        (b'{"parameters": {"x": [1]}}', "must be a string, number or boolean"),
    ],
)
def test_wrong_json_is_refused_in_words(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        RestCodec(LIMITS).decode("m", "", body, None)


@given(tree=JSON_VALUES.map(lambda value: {"a": value}), spaces=st.booleans())
def test_json_without_repeated_keys_is_never_refused_for_them(tree: Any, spaces: bool) -> None:
    text = json.dumps(tree, ensure_ascii=spaces, indent=1 if spaces else None)
    try:
        parse_json(text.encode("utf-8", "surrogatepass"), 64)
    except InvalidRequest as error:
        assert "twice" not in str(error)


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from("abc:"), st.sampled_from(['"x:y"', "1", '"\\":"'])), max_size=5
    ),
    deep=st.integers(0, 3),
)
def test_repeated_keys_are_found_at_any_depth(pairs: list[tuple[str, str]], deep: int) -> None:
    inner = "{" + ",".join(f'"{key}": {value}' for key, value in pairs) + "}"
    text = '{"d": [1, ' * deep + '{"e": ' + inner + "}" + "]}" * deep
    repeated = len({key for key, _ in pairs}) < len(pairs)
    if repeated:
        with pytest.raises(InvalidRequest, match="twice"):
            parse_json(text.encode(), 64)
    else:
        parse_json(text.encode(), 64)


def test_the_deepest_json_that_may_be_configured() -> None:
    text = b'{"a": ' * 990 + b"1" + b"}" * 990
    parse_json(text, 1000)
    text = b'{"a": ' + b"[" * 990 + b"]" * 990 + b"}"
    parse_json(text, 1000)
    codec = RestCodec(LimitsConfig(max_json_depth=1000))
    numbers = b"[" * 900 + b"1" + b"]" * 900
    for kind in NAMES:
        body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"%s","data":%s}]}'
        with pytest.raises(InvalidRequest):
            codec.decode("m", "", body % (kind.encode(), numbers), None)


@pytest.mark.parametrize(
    ("kind", "shape", "body", "want"),
    [
        ("FP32", (-1, 2), struct.pack("<2f", 1, 2), (1, 2)),
        ("FP32", (-1, -1), struct.pack("<3f", 1, 2, 3), (1, 3)),
        ("BYTES", (-1, 1), b"any\0thing\xff", (1, 1)),
        ("FP32", (-1, -1, -1), b"", None),
        ("BYTES", (-1, -1), b"", None),
        ("FP32", (-1, 2), b"123", None),
        ("FP32", (-1, -1), b"12345", None),
        ("FP32", (-1, 0, -1), b"1234", None),
    ],
)
def test_a_raw_body_is_the_only_input(
    kind: str, shape: tuple[int, ...], body: bytes, want: tuple[int, ...] | None
) -> None:
    contract = Contract([TensorSpec("x", DATATYPES[kind], shape)], [], batched=True)
    codec = RestCodec(LIMITS)
    if want is None:
        with pytest.raises(InvalidRequest, match="input 'x'"):
            codec.decode_raw("m", "", body, contract)
        return
    request, form = codec.decode_raw("m", "", body, contract)
    assert request.inputs[0].array.shape == want and form is BINARY_ANSWER
    if kind == "BYTES":
        assert request.inputs[0].array.tolist() == [[body]]


# --- tensors


@given(array=arrays(), data=st.data())
def test_rows_of_a_tensor_are_its_rows(array: np.ndarray, data: st.DataObject) -> None:
    if not array.ndim or not array.shape[0]:
        return
    start = data.draw(st.integers(0, array.shape[0]))
    stop = data.draw(st.integers(start, array.shape[0]))
    kind = datatype_of(array)
    for tensor in (
        Tensor("x", kind, array.shape, bytes(to_wire(array))),
        Tensor("x", kind, array.shape, array=array),
    ):
        assert same(array[start:stop], tensor.rows(start, stop))


@given(array=arrays(tuple(n for n in NAMES if n not in ("BYTES", "BOOL", "BF16", "INT8", "UINT8"))))
def test_foreign_byte_order_and_strides_are_put_right(array: np.ndarray) -> None:
    swapped = array.astype(array.dtype.newbyteorder(">"))
    assert to_wire(swapped) == to_wire(array)
    assert to_wire(array.T) == to_wire(np.ascontiguousarray(array.T))
