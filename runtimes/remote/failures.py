"""What became of an attempt at another server, and what the caller is told of it."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelNotReady,
    NotAllowed,
    QueueFull,
    RequestTooLarge,
    SluiceError,
    Unavailable,
    Unsupported,
    printable,
    without_folders,
)

SERVER: Final = "the model's server"
"""What callers are told: where it is concerns the operator alone."""
RETRY_AFTER: Final = 1.0
"""Seconds after which a caller may try again, where the other server does not say."""
MAX_RETRY_AFTER: Final = 3600.0


class Fate(Enum):
    """What is known of a failed attempt."""

    UNSENT = auto()
    """No connection: the server has not seen it."""
    REFUSED = auto()
    """The server itself says that it is not ready for it."""
    FULL = auto()
    """The server itself says that it has too much to do."""
    ABSENT = auto()
    """The server does not have the model (any more)."""
    UNKNOWN = auto()
    """The connection broke on the way: it may have been executed."""
    LATE = auto()
    """No answer within ``timeout_ms``: it may have been executed, or be executed yet."""
    EXPIRED = auto()
    """No answer before the caller's own deadline."""
    ANSWERED = auto()
    """The server's own, final word."""


class AttemptFailed(Exception):
    """One attempt failed: how, and the error for the caller if there is no other attempt.

    `cause` is for the operator, where addresses are in it that callers need not know.
    """

    def __init__(self, fate: Fate, error: SluiceError, cause: str = "") -> None:
        super().__init__(cause or str(error))
        self.fate = fate
        self.error = error

    @property
    def retryable(self) -> bool:
        """Whether the request was surely not executed."""
        return self.fate in _NOT_EXECUTED

    @property
    def elsewhere(self) -> bool:
        """Whether trying again makes sense on another replica alone."""
        return self.fate is Fate.FULL or self.fate is Fate.ABSENT

    @property
    def retryable_if_idempotent(self) -> bool:
        return self.retryable or self.fate is Fate.UNKNOWN

    @property
    def blames_server(self) -> bool:
        """Whether it speaks against the endpoint, and not against the request.

        An expired deadline may do either: that depends on how long the attempt took.
        """
        return self.fate not in (Fate.ANSWERED, Fate.FULL, Fate.EXPIRED)


_NOT_EXECUTED: Final = frozenset((Fate.UNSENT, Fate.REFUSED, Fate.FULL, Fate.ABSENT))


def said(text: object, otherwise: str = "no reason given") -> str:
    """The first line of another server's message, for one line of ours."""
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return printable(without_folders(lines[0]), 400) if lines else otherwise


# --- gRPC

_GRPC: Final[dict[int, type[SluiceError]]] = {
    3: InvalidInput,  # INVALID_ARGUMENT
    7: NotAllowed,  # PERMISSION_DENIED
    11: InvalidInput,  # OUT_OF_RANGE
    12: Unsupported,  # UNIMPLEMENTED
    16: NotAllowed,  # UNAUTHENTICATED
}
_MADE_UP: Final = re.compile(
    r"stream removed|socket closed|connection (reset|refused|aborted|timed out)|broken pipe|"
    r"(send|recv)msg|goaway|keepalive|ping timeout|transport (is )?clos|transport failed|"
    r"endpoint closed|cancelling all calls|disconnect/reset|upstream connect|channel (is )?clos|"
    r"connection termination|timed out|unexpected eof|no route to host|network is unreachable|"
    r"rst_stream|received http2 header|reset (reason|by peer)|"
    r"may (have been|be) execut",  # another gateway's word for the same
    re.IGNORECASE,
)
"""Texts of UNAVAILABLE (503) that grpc, a proxy or another gateway gives for a connection that
broke under a call."""
_TOO_LARGE: Final = re.compile(
    r"(message|payload|body|frame|request|response)\b.{0,60}"
    r"(larger than|exceed|too (large|big|long))",
    re.IGNORECASE,
)
"""Texts of RESOURCE_EXHAUSTED that are about one message, which is no better elsewhere."""
_UNSENT: Final = re.compile(
    r"failed to connect to all addresses|errors resolving|dns resolution failed|name resolution",
    re.IGNORECASE,
)


def grpc_failure(
    code: int, details: str, *, connected: bool, trailers: bool, limited: bool
) -> AttemptFailed:
    """The failure that a gRPC status means.

    `connected`: the connection was still there afterwards; `trailers`: metadata came with the
    status; `limited`: the attempt had ``timeout_ms`` rather than the caller's deadline.
    """
    text = said(details)
    if code == 14:  # UNAVAILABLE: from the server, or from grpc because there is none
        return _unavailable(text, connected=connected, trailers=trailers)
    if code == 8:  # RESOURCE_EXHAUSTED
        if _TOO_LARGE.search(text):
            return AttemptFailed(Fate.ANSWERED, RequestTooLarge(f"{SERVER}: {text}"))
        return full(text, RETRY_AFTER)
    if code == 4:  # DEADLINE_EXCEEDED
        return late(limited=limited)
    if code == 5:  # NOT_FOUND: our version exists, the one there does not
        return not_there(text)
    kind = _GRPC.get(code, InferenceFailed)
    if kind is InferenceFailed and code != 13:
        text = f"{text} (gRPC status {code})"
    return AttemptFailed(Fate.ANSWERED, kind(f"{SERVER}: {text}"))


def _unavailable(text: str, *, connected: bool, trailers: bool) -> AttemptFailed:
    # With metadata the text is another's: of a connection behind the one that we know.
    if not trailers and _UNSENT.search(text):
        return unreachable(text)
    if _MADE_UP.search(text) or not (trailers or connected):
        return broken(text)
    return refused(text)


# --- HTTP

_HTTP: Final[dict[int, type[SluiceError]]] = {
    400: InvalidInput,
    401: NotAllowed,
    403: NotAllowed,
    413: InvalidInput,
    415: Unsupported,
    422: InvalidInput,
    501: Unsupported,
}


def http_failure(status: int, text: str, *, retry_after: str | None = None) -> AttemptFailed:
    """The failure that an HTTP status other than 200 means. `retry_after` is the header."""
    text = said(text)
    if status == 503:
        if _MADE_UP.search(text):
            return broken(text)
        return refused(text, seconds(retry_after))
    if status == 429:
        return full(text, seconds(retry_after))
    if status == 502:  # a proxy, which knows no more than we do
        return broken(text)
    if status in (408, 504):
        return late(limited=False)
    if status == 404:
        return not_there(text)
    if 300 <= status < 400:
        text = f"it answers with a redirect ({status}), which is not followed; name the final url"
    elif status not in _HTTP and status != 500:
        text = f"{text} (HTTP status {status})"
    return AttemptFailed(Fate.ANSWERED, _HTTP.get(status, InferenceFailed)(f"{SERVER}: {text}"))


def seconds(retry_after: str | None) -> float:
    """The header ``Retry-After``, where it is a number of seconds."""
    if retry_after is None or not retry_after.isdigit() or len(retry_after) > 9:
        return RETRY_AFTER
    return min(float(retry_after), MAX_RETRY_AFTER)


# --- both


def unreachable(text: str) -> AttemptFailed:
    """There is no connection."""
    error = Unavailable(f"{SERVER} cannot be reached; try again later")
    return AttemptFailed(Fate.UNSENT, _again(error), f"it cannot be reached: {text}")


def refused(text: str, retry_after: float = RETRY_AFTER) -> AttemptFailed:
    """The server is there, but not ready."""
    return AttemptFailed(
        Fate.REFUSED, _again(ModelNotReady(f"{SERVER} is not ready: {text}"), retry_after)
    )


def full(text: str, retry_after: float) -> AttemptFailed:
    """The server has too much to do."""
    return AttemptFailed(Fate.FULL, QueueFull(f"{SERVER}: {text}", retry_after))


def broken(text: str) -> AttemptFailed:
    """The connection broke under the request.

    The error has no ``retry_after``, which would invite to send it again, and words by which
    a gateway in front of this one knows it.
    """
    error = Unavailable(
        f"the connection to {SERVER} broke before the answer came; the request may have been "
        "executed (idempotent: true in model.yaml would have it tried again)"
    )
    return AttemptFailed(Fate.UNKNOWN, error, f"the connection broke: {text}")


def late(*, limited: bool) -> AttemptFailed:
    """No answer in time; `limited`: within ``timeout_ms``, which is our own setting."""
    if limited:
        text = f"{SERVER} gave no answer within remote.timeout_ms; it may be executing the request"
        return AttemptFailed(Fate.LATE, DeadlineExceeded(text))
    text = f"the deadline passed while {SERVER} was at work; it may be executing the request"
    return AttemptFailed(Fate.EXPIRED, DeadlineExceeded(text), "no answer in time")


def not_there(text: str) -> AttemptFailed:
    """The server does not have the model (any more)."""
    return AttemptFailed(Fate.ABSENT, _again(ModelNotReady(f"{SERVER}: {text}")))


def _again(error: Unavailable, retry_after: float = RETRY_AFTER) -> Unavailable:
    error.retry_after = retry_after
    return error
