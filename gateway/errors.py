"""What can go wrong, as one tree without status codes.

    SluiceError
    ├── RequestError             the sender can mend it
    │   ├── InvalidRequest
    │   ├── RequestTooLarge
    │   ├── NotFound
    │   │   ├── UnknownModel
    │   │   └── UnknownVersion
    │   ├── Unsupported
    │   ├── NotAllowed
    │   └── Conflict
    ├── Unavailable              the sender may try again
    │   ├── ModelNotReady
    │   │   └── NotLoaded
    │   ├── Draining
    │   ├── Overloaded
    │   │   ├── QueueFull
    │   │   │   └── Saturated
    │   │   └── DeadlineUnmeetable
    │   ├── DeadlineExceeded
    │   └── Cancelled
    ├── InferenceFailed          the runtime could not answer
    │   ├── WrongRows
    │   └── InvalidInput         the runtime says that the input is at fault
    └── SetupError               the operator can mend it
        ├── ConfigError
        ├── InvalidModelSettings
        ├── ModelLoadError
        ├── FetchError
        └── RegistryError
            └── NotWritable

Every edge has one table that maps these to its own codes (``codecs/statuses.py``); a test
fails when a class is missing from a table or from the documentation.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST_TEXT: Final = 2000
"""Most characters of an error that a caller is told."""


class SluiceError(Exception):
    """Base of all errors that the gateway raises on purpose. ``str(error)`` is for the user."""


class RequestError(SluiceError):
    """The request is at fault; sending it again unchanged will not help."""


class InvalidRequest(RequestError):
    """A value in the request is wrong or missing."""


class RequestTooLarge(RequestError):
    """A body or message is above the configured limit."""


class NotFound(RequestError):
    """Nothing has that name."""


class UnknownModel(NotFound):
    """No model has that name."""

    def __init__(self, model: str, known: tuple[str, ...] = ()) -> None:
        # Triton's example clients look for a message that starts with these words.
        text = f"Request for unknown model: '{printable(model)}' is not found"
        if known:
            text += f"; did you mean '{known[0]}'?"
        super().__init__(text)


class UnknownVersion(NotFound):
    """The model has no such version or label."""

    def __init__(self, model: str, version: str, known: tuple[str, ...]) -> None:
        names = ", ".join(known) or "none"
        super().__init__(
            f"model '{model}' has no version or label '{printable(version)}'; it has: {names}"
        )


class Unsupported(RequestError):
    """The request asks for something that this gateway does not do."""


class NotAllowed(RequestError):
    """The caller may not do this."""


class Conflict(RequestError):
    """The request does not fit the state that something is in, such as a model that is paused."""


class Unavailable(SluiceError):
    """It could not be answered now."""

    retry_after: float | None = None
    """Seconds after which trying again makes sense, where that is known."""


class ModelNotReady(Unavailable):
    """The model is known but no version of it can answer yet."""


class NotLoaded(ModelNotReady):
    """The model is loaded on demand, and is not loaded now.

    `version` is the one that was asked for; empty: whichever answers those who name none.
    """

    def __init__(self, text: str, model: str = "", version: str = "") -> None:
        super().__init__(text)
        self.model = model
        self.version = version


class Draining(Unavailable):
    """The gateway is shutting down."""

    def __init__(self) -> None:
        super().__init__("the gateway is draining and takes no new requests; use another replica")


class Overloaded(Unavailable):
    """There is more work than can be done in time."""

    def __init__(self, text: str, retry_after: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class QueueFull(Overloaded):
    """The servable's queue is at one of its bounds."""


class Saturated(QueueFull):
    """For some time more has come than the servable can do; waiting would not help."""


class DeadlineUnmeetable(Overloaded):
    """The learned cost of the work ahead says that the deadline cannot be met."""


class DeadlineExceeded(Unavailable):
    """The deadline passed. The text says where the request was: while it waited it was not
    executed; on another server, or while its answers come as a stream, it may be running yet."""


class Cancelled(Unavailable):
    """The caller went away."""


class InferenceFailed(SluiceError):
    """The runtime failed on this request."""


class WrongRows(InferenceFailed):
    """The runtime returned another number of rows than it was given."""


class InvalidInput(InferenceFailed):
    """The runtime refused the input itself: the sender can mend it."""


class SetupError(SluiceError):
    """Configuration, model or registry is at fault."""


class ConfigError(SetupError):
    """The gateway's configuration is wrong."""


class InvalidModelSettings(SetupError):
    """``model.yaml``, ``config.pbtxt`` or ``traffic.yaml`` is wrong."""


class ModelLoadError(SetupError):
    """A version could not be loaded."""


class FetchError(SetupError):
    """The files of a version could not be fetched.

    `final`: trying again soon is useless. `changed`: the file is not the one that was listed.
    `denied`: the credentials do not allow it.
    """

    def __init__(
        self, text: str, *, final: bool = False, changed: bool = False, denied: bool = False
    ) -> None:
        super().__init__(text)
        self.final = final or denied
        self.changed = changed
        self.denied = denied


class RegistryError(SetupError):
    """The registry cannot be read or written."""


class NotWritable(RegistryError):
    """The registry may be read only."""


def printable(text: object, limit: int = 80) -> str:
    """``text`` made safe for one line of a message or a log: short, without control characters."""
    line = str(text)
    if len(line) > limit:
        line = line[: limit - 1] + "…"
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)


def text_of(error: BaseException) -> str:
    """What an error says, as one line that can be sent; never raises, whatever its class does."""
    try:
        text = str(error)
    except Exception:
        text = type(error).__name__
    if not text.isprintable():
        text = " ".join(text.split())
    # Longer ones would not fit into the trailers that gRPC clients take.
    return printable(text, LONGEST_TEXT)


_FOLDERS = re.compile(r"(?<![\w/.:-])/(?:[^\s/'\":]+/)+|\b[A-Za-z]:\\(?:[^\s\\'\":]+\\)+")


def without_folders(text: str) -> str:
    """``text`` with paths cut down to their last part: callers need not know our folders."""
    return _FOLDERS.sub("", text)
