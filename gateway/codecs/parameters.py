"""The reserved request parameters, the same on every protocol."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import InvalidRequest, Unsupported, printable
from gateway.tensors import Parameter

_SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")


def timeout_and_priority(parameters: Mapping[str, Parameter]) -> tuple[int, int]:
    """`timeout` in microseconds and `priority` (1 the most urgent), 0 where absent.

    Raises `InvalidRequest` when they are not natural numbers.
    """
    return _natural(parameters, "timeout"), _natural(parameters, "priority")


def _natural(parameters: Mapping[str, Parameter], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        return int(value)
    if type(value) is not int or not 0 <= value < 2**64:
        raise InvalidRequest(
            f"parameter '{name}' must be a whole number of at least 0, not {printable(repr(value))}"
        )
    return value


def refuse_tensor_parameters(name: str, parameters: Mapping[str, object], what: str) -> None:
    """Raises `Unsupported` for parameters of an input or output that we do not honour."""
    for key in _SHARED_MEMORY:
        if key in parameters:
            raise Unsupported(
                f"{what} '{printable(name)}': shared memory ('{key}') is not supported; "
                "send the tensor's bytes in the request"
            )
    if parameters.get("classification"):
        raise Unsupported(
            f"{what} '{printable(name)}': 'classification' is not supported; request the output "
            "itself and take its largest values"
        )
