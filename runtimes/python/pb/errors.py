"""Triton's errors, and how they become ours and ours become theirs."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from gateway import errors
from gateway.errors import SluiceError, printable


class TritonModelException(Exception):
    """Raised by what a model calls, such as `InferenceResponseSender.send`."""


class ErrorCode(IntEnum):
    """Triton's codes."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonError:
    """An error for the caller of one request."""

    UNKNOWN: Final = ErrorCode.UNKNOWN
    INTERNAL: Final = ErrorCode.INTERNAL
    NOT_FOUND: Final = ErrorCode.NOT_FOUND
    INVALID_ARG: Final = ErrorCode.INVALID_ARG
    UNAVAILABLE: Final = ErrorCode.UNAVAILABLE
    UNSUPPORTED: Final = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS: Final = ErrorCode.ALREADY_EXISTS
    CANCELLED: Final = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(message, str):
            raise TypeError(f"TritonError takes a text, not {type(message).__name__}")
        self._message = message
        self._code = ErrorCode(code)

    def code(self) -> ErrorCode:
        """One of the codes above."""
        return self._code

    def message(self) -> str:
        """What went wrong."""
        return self._message

    def __str__(self) -> str:
        return self._message


_OURS: Final[dict[ErrorCode, type[SluiceError]]] = {
    ErrorCode.UNKNOWN: errors.InferenceFailed,
    ErrorCode.INTERNAL: errors.InferenceFailed,
    ErrorCode.NOT_FOUND: errors.NotFound,
    ErrorCode.INVALID_ARG: errors.InvalidInput,
    ErrorCode.UNAVAILABLE: errors.Unavailable,
    ErrorCode.UNSUPPORTED: errors.Unsupported,
    ErrorCode.ALREADY_EXISTS: errors.InvalidInput,
    ErrorCode.CANCELLED: errors.Cancelled,
}

_THEIRS: Final[tuple[tuple[type[SluiceError], ErrorCode], ...]] = (
    (errors.NotFound, ErrorCode.NOT_FOUND),
    (errors.Unsupported, ErrorCode.UNSUPPORTED),
    (errors.RequestError, ErrorCode.INVALID_ARG),
    (errors.Cancelled, ErrorCode.CANCELLED),
    (errors.Unavailable, ErrorCode.UNAVAILABLE),
    (errors.InvalidInput, ErrorCode.INVALID_ARG),
    (SluiceError, ErrorCode.INTERNAL),
)


def to_ours(error: TritonError) -> SluiceError:
    """For the caller, whose protocol knows what to make of it."""
    return _OURS[error.code()](printable(" ".join(error.message().split()), 2000))


def to_theirs(error: BaseException) -> TritonError:
    """What a model is told of the failure of another model that it called."""
    for cls, code in _THEIRS:
        if isinstance(error, cls):
            return TritonError(str(error), code)
    return TritonError(f"{type(error).__name__}: {error}")
