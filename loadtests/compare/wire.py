"""Requests and answers of the Open Inference Protocol as bytes, in as few lines as will do.

Written out by hand rather than taken from a client or from the gateway: the load generator
posts these bytes to both servers, and the verifier reads both servers' answers with a reader
that shares no code with either of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = Floats | npt.NDArray[np.int64]
"""What a model is given: FP32, or INT64 (token ids)."""

GRPC_FRAME = 5
"""Bytes in front of a gRPC message."""
GRPC_INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class HttpRequest:
    """One POST: path, headers (without the length) and body."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def _varint(value: int) -> bytes:
    """Protobuf's variable-length integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def datatype(rows: Rows) -> str:
    """``FP32`` or ``INT64``."""
    return "INT64" if rows.dtype == np.int64 else "FP32"


def grpc_request(model: str, rows: Rows) -> bytes:
    """``ModelInferRequest`` with one raw input ``x``."""
    tensor = _field(1, b"x") + _field(2, datatype(rows).encode())
    tensor += _field(3, b"".join(_varint(size) for size in rows.shape))
    return _field(1, model.encode()) + _field(5, tensor) + _field(7, rows.tobytes())


def grpc_frame(message: bytes) -> bytes:
    """The message with gRPC's five bytes in front: not compressed, length."""
    return b"\x00" + struct.pack(">I", len(message)) + message


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and content of each field of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size = varint()
        yield number, message[at : at + size]
        at += size


def _shape(packed: bytes) -> tuple[int, ...]:
    """A packed list of non-negative int64."""
    sizes = []
    value = shift = 0
    for byte in packed:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            sizes.append(value)
            value = shift = 0
    return tuple(sizes)


def grpc_answer(message: bytes) -> Floats:
    """The one FP32 output of a ``ModelInferResponse`` with raw contents."""
    shape: tuple[int, ...] = ()
    said = b""
    raw: list[bytes] = []
    for number, content in _fields(message):
        if number == 5 and isinstance(content, bytes):
            for inner, value in _fields(content):
                if inner == 2 and isinstance(value, bytes):
                    said = value
                elif inner == 3:
                    shape += _shape(value) if isinstance(value, bytes) else (value,)
        elif number == 6 and isinstance(content, bytes):
            raw.append(content)
    if said != b"FP32" or len(raw) != 1:
        raise ValueError(f"one raw FP32 output expected, got {len(raw)} of type {said!r}")
    return np.frombuffer(raw[0], np.float32).reshape(shape)


def _infer_path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def binary_request(model: str, rows: Rows) -> HttpRequest:
    """HTTP with the binary tensor extension, both ways."""
    data = rows.tobytes()
    tensor = {
        "name": "x",
        "shape": list(rows.shape),
        "datatype": datatype(rows),
        "parameters": {"binary_data_size": len(data)},
    }
    output = {"name": "y", "parameters": {"binary_data": True}}
    head = _dump({"inputs": [tensor], "outputs": [output]})
    headers = {
        "Content-Type": "application/octet-stream",
        JSON_LENGTH_HEADER: str(len(head)),
    }
    return HttpRequest(_infer_path(model), head + data, headers)


def json_request(model: str, rows: Rows) -> HttpRequest:
    """HTTP with plain JSON, both ways."""
    tensor = {
        "name": "x",
        "shape": list(rows.shape),
        "datatype": datatype(rows),
        "data": rows.ravel().tolist(),
    }
    body = _dump({"inputs": [tensor]})
    return HttpRequest(_infer_path(model), body, {"Content-Type": "application/json"})


def _dump(document: dict[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def http_answer(body: bytes, json_length: str | None) -> Floats:
    """The one FP32 output of an HTTP answer; ``json_length`` is the header, if it came."""
    head = body if json_length is None else body[: int(json_length)]
    outputs = json.loads(head)["outputs"]
    if len(outputs) != 1 or outputs[0]["datatype"] != "FP32":
        raise ValueError(f"one FP32 output expected, got {outputs!r:.200}")
    shape = outputs[0]["shape"]
    if "data" in outputs[0]:
        return np.array(outputs[0]["data"], np.float32).reshape(shape)
    return np.frombuffer(body[len(head) :], np.float32).reshape(shape)
