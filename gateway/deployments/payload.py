"""Inputs of ``predict`` as a body of ``/invocations``."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from gateway.deployments.settings import wrong

FORMATS: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")


def payload_of(inputs: Any) -> bytes:
    """The JSON body for a DataFrame, an array, a list or a mapping.

    Raises `MlflowException` for what JSON cannot say.
    """
    if isinstance(inputs, (str, bytes)):
        return inputs.encode() if isinstance(inputs, str) else inputs
    try:
        return json.dumps(_tree(inputs), default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise wrong(f"the inputs cannot be sent as JSON: {error}") from None


def _tree(inputs: Any) -> Any:
    kind = type(inputs).__name__
    if kind == "Series":
        inputs, kind = inputs.to_frame(), "DataFrame"
    if kind == "DataFrame":
        split = inputs.to_dict(orient="split")
        return {"dataframe_split": {"columns": split["columns"], "data": split["data"]}}
    if isinstance(inputs, dict):
        return inputs if any(name in inputs for name in FORMATS) else {"inputs": inputs}
    if callable(getattr(inputs, "toarray", None)):  # scipy's sparse matrices
        inputs = inputs.toarray()
    if inputs is None:
        raise wrong("give inputs: a DataFrame, an array, a list, or a mapping of arrays by name")
    return {"inputs": inputs}


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    for method in ("isoformat", "tolist"):
        found = getattr(value, method, None)
        if callable(found):
            return found()
    raise TypeError(f"a {type(value).__name__}")
