"""The two tables from the error tree to what each protocol says."""

from __future__ import annotations

import math
from typing import Final

from gateway import errors
from gateway.errors import SluiceError

# gRPC's numbers, so that nobody has to import grpc to answer a call
INVALID_ARGUMENT: Final = 3
CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

CODES: Final[dict[type[SluiceError], tuple[int, int]]] = {
    # error: (HTTP, gRPC); a class that is missing takes its base's row
    errors.InvalidRequest: (400, INVALID_ARGUMENT),
    errors.RequestTooLarge: (413, RESOURCE_EXHAUSTED),
    errors.NotFound: (404, NOT_FOUND),
    errors.UnknownModel: (404, NOT_FOUND),
    errors.UnknownVersion: (404, NOT_FOUND),
    errors.Unsupported: (501, UNIMPLEMENTED),
    errors.NotAllowed: (403, PERMISSION_DENIED),
    errors.Conflict: (409, FAILED_PRECONDITION),
    errors.RequestError: (400, INVALID_ARGUMENT),
    errors.ModelNotReady: (503, UNAVAILABLE),
    errors.NotLoaded: (503, UNAVAILABLE),
    errors.Draining: (503, UNAVAILABLE),
    errors.Overloaded: (429, RESOURCE_EXHAUSTED),
    errors.QueueFull: (429, RESOURCE_EXHAUSTED),
    errors.Saturated: (429, RESOURCE_EXHAUSTED),
    errors.DeadlineUnmeetable: (429, RESOURCE_EXHAUSTED),
    errors.DeadlineExceeded: (504, DEADLINE_EXCEEDED),
    errors.Cancelled: (499, CANCELLED),
    errors.Unavailable: (503, UNAVAILABLE),
    errors.InvalidInput: (400, INVALID_ARGUMENT),
    errors.WrongRows: (500, INTERNAL),
    errors.InferenceFailed: (500, INTERNAL),
    errors.ConfigError: (400, INVALID_ARGUMENT),
    errors.InvalidModelSettings: (400, INVALID_ARGUMENT),
    errors.ModelLoadError: (400, FAILED_PRECONDITION),
    errors.FetchError: (503, UNAVAILABLE),
    errors.RegistryError: (503, UNAVAILABLE),
    errors.NotWritable: (503, UNAVAILABLE),
    errors.SetupError: (500, INTERNAL),
    errors.SluiceError: (500, INTERNAL),
}


LONGEST_PAUSE: Final = 86_400


def _codes(cls: type[SluiceError]) -> tuple[int, int]:
    for base in cls.__mro__:
        if base in CODES:
            return CODES[base]
    raise AssertionError("every error derives from SluiceError")


def http_status(error: SluiceError) -> int:
    """The HTTP status code for an error."""
    return _codes(type(error))[0]


def grpc_status(error: SluiceError) -> int:
    """The gRPC status code for an error."""
    return _codes(type(error))[1]


def retry_after(error: SluiceError) -> int | None:
    """Whole seconds for ``Retry-After``, at least 1; `None` when it makes no sense."""
    if not isinstance(error, errors.Unavailable) or error.retry_after is None:
        return None
    try:
        return min(max(1, math.ceil(error.retry_after)), LONGEST_PAUSE)
    except (TypeError, ValueError, OverflowError):
        return None  # a model's error: anything may be in it
