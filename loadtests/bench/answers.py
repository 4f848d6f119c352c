"""Whether the first answer is an inference answer, before thousands of others are only counted."""

from __future__ import annotations

import json
from typing import Final

from gateway.codecs import client_grpc, client_rest
from gateway.errors import InferenceFailed, printable
from loadtests.bench.plan import Protocol, Target
from loadtests.bench.results import CONNECTION
from loadtests.errors import BenchError, Unreachable

REFUSED: Final = frozenset(
    {
        "400", "401", "403", "404", "405", "406", "410", "411", "413", "414", "415", "422", "426",
        "431", "501",
        "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED",
        "OUT_OF_RANGE", "FAILED_PRECONDITION", "protocol", "error", CONNECTION,
    }
)  # fmt: skip
"""Outcomes of the first request that mean that none will fare better."""


def check_first(target: Target, outcome: str, body: bytes) -> None:
    """Raises `BenchError` if the first request was refused for what it is, or was answered with
    something else than an inference, and `Unreachable` if it lost its connection. Errors that time
    or load may bring are let pass."""
    if outcome in REFUSED:
        text = printable(_message(body), 300)
        if outcome == CONNECTION:
            raise Unreachable(f"the first request lost its connection: {text or 'no text'}")
        raise BenchError(f"the first request was answered with {outcome}: {text or 'no text'}")
    if outcome:
        return
    try:
        _decode(target, body)
    except (InferenceFailed, ValueError) as error:
        raise BenchError(
            f"the first answer is no answer of {target.protocol} to an inference ({error}); check "
            "the protocol and the address"
        ) from None


def _message(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        try:
            error = json.loads(text).get("error")
        except (ValueError, AttributeError):
            return text
        return error if isinstance(error, str) else text
    return text


def _decode(target: Target, body: bytes) -> None:
    protocol = target.protocol
    if not protocol.http:
        if not client_grpc.decode_response(body, target.model, "", wire=False).outputs:
            raise ValueError("it has no outputs")
        return
    if protocol in (Protocol.V1, Protocol.INVOCATIONS):
        tree = json.loads(body)
        if not isinstance(tree, dict | list) or (
            isinstance(tree, dict) and "predictions" not in tree and "outputs" not in tree
        ):
            raise ValueError("it has no 'predictions'")
        return
    length = _json_length(body)
    client_rest.decode_response(body, length, target.model, "")


def _json_length(body: bytes) -> int | None:
    """Bytes of the JSON in front of binary tensors; ``None``: it is all."""
    try:
        # In latin-1 every byte is one character: places are the same.
        tree, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
        outputs = tree["outputs"]
        if any("binary_data_size" in (each.get("parameters") or {}) for each in outputs):
            return end
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None
