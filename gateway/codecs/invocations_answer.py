"""MLflow's scoring protocol, on the way out: ``{"predictions": ...}`` and its errors.

The signature says the shape: an output without a name is a plain (nested) list, tensors with
names are an object of lists, columns are a list with an object for each row.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

import orjson

from gateway.codecs.invocations_values import MADE_UP
from gateway.codecs.statuses import http_status
from gateway.errors import InferenceFailed, SluiceError, Unsupported, text_of
from gateway.tensors import BYTES, InferenceResponse, Tensor, TensorSpec, as_bytes

ERROR_CODES: Final = {
    400: "BAD_REQUEST",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    408: "DEADLINE_EXCEEDED",
    409: "RESOURCE_CONFLICT",
    413: "BAD_REQUEST",
    415: "BAD_REQUEST",
    429: "REQUEST_LIMIT_EXCEEDED",
    499: "CANCELLED",
    500: "INTERNAL_ERROR",
    501: "NOT_IMPLEMENTED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""HTTP status → MLflow's name for it."""


def encode_predictions(response: InferenceResponse, specs: Sequence[TensorSpec]) -> bytes:
    """The JSON of an answer; NaN and infinities are ``null``.

    `specs` are the model's outputs. Raises `Unsupported` for bytes that are not UTF-8, and
    `InferenceFailed` for JSON columns that hold none.
    """
    content = {spec.name: spec.content for spec in specs}
    values = {t.name: _values(t, content.get(t.name, "")) for t in response.outputs}
    return orjson.dumps({"predictions": _arranged(values, content)})


def _arranged(values: dict[str, Any], content: dict[str, str]) -> Any:
    unnamed = len(content) == 1 and len(values) == 1 and MADE_UP.fullmatch(next(iter(values)))
    if unnamed:
        return next(iter(values.values()))
    if values and all(content.get(name) for name in values):
        columns = list(values.values())
        if len(set(map(len, columns))) == 1:
            return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
    return values


def _values(tensor: Tensor, content: str) -> Any:
    array = tensor.array
    if content:
        array = array.reshape(-1)
    if tensor.datatype is not BYTES:
        return array.tolist()
    return _told(tensor.name, array.tolist(), content)


def _told(name: str, value: Any, content: str) -> Any:
    """(Nested lists of) elements as JSON has them."""
    if isinstance(value, list):
        return [_told(name, each, content) for each in value]
    raw = bytes(as_bytes(value))
    if content == "binary":
        return base64.b64encode(raw).decode()
    if content == "json":
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise InferenceFailed(f"output '{name}' should hold JSON, and does not") from None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Unsupported(
            f"output '{name}' holds bytes that are not UTF-8, which JSON cannot say; use "
            "/v2/models/<model>/infer with binary data"
        ) from None


def mlflow_error(error: SluiceError) -> tuple[bytes, int]:
    """An error as MLflow's clients read it, and its HTTP status."""
    status = http_status(error)
    return error_json(status, text_of(error)), status


def error_json(status: int, message: str) -> bytes:
    """``{"error_code": ..., "message": ...}``."""
    code = ERROR_CODES.get(status, "INTERNAL_ERROR")
    return orjson.dumps({"error_code": code, "message": message})
