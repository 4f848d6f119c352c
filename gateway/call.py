"""One request on its way through the gateway. It ends exactly once."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Protocol

from gateway.errors import InferenceFailed, SluiceError
from gateway.telemetry.logs import log
from gateway.tensors import InferenceRequest, InferenceResponse

NEW: Final = 0
QUEUED: Final = 1
RUNNING: Final = 2
ENDED: Final = 3


class Owner(Protocol):
    """Whoever has the call in its queue or in its runtime."""

    elsewhere: bool
    """Whether another process does the work, so that this one has nothing to do but wait."""

    def cancelled(self, call: Call, *, waiting: bool) -> None: ...


class Call:
    """A request and what becomes of it; each front end has a subclass that knows its socket.

    Owned by the event loop. `arrived` and `deadline` are seconds of the batcher's clock;
    `order` is the place in the waiting line (smaller goes first). A subclass says how to
    `decode` and what to do in `_replied` and `_failed`; they are called once at most (but
    `_failed` after a `_replied` that raised), and never after `cancel`.
    """

    __slots__ = (
        "arrived", "caller_deadline", "chosen", "deadline", "order", "owner", "request", "route",
        "rows", "size", "state",
    )  # fmt: skip

    protocol: ClassVar[str] = ""
    """As in the metrics: http, grpc, ... Empty for calls that are part of another."""
    inner: ClassVar[bool] = False
    """Whether a model makes it for a call that was admitted already."""
    request: InferenceRequest
    owner: Owner | None
    caller_deadline: float | None
    """`deadline` without the queue's time limit; set only where a queue has one."""
    chosen: tuple[Any, str] | None
    """The servable and why it, where decoding had to know it already."""

    def __init__(self, arrived: float, deadline: float | None = None) -> None:
        self.arrived = arrived
        self.deadline = deadline
        self.state = NEW
        self.order = 0.0
        self.rows = 1
        self.size = 0
        self.owner = None
        self.chosen = None
        self.route = ""

    def decode(self) -> InferenceRequest:
        """The request, from the bytes. Raises `RequestError`."""
        return self.request

    def header(self, name: str) -> str | None:
        """The value of a header or metadata key (lower case), the first where there are several."""
        return None

    def reply(self, response: InferenceResponse) -> None:
        """Ends the call with an answer, or with an error where that cannot be given; does nothing
        if it has ended."""
        if self.state != ENDED:
            self.state = ENDED
            try:
                self._replied(response)
            except Exception as error:
                log.exception("unexpected error while answering")
                self._failed(InferenceFailed(f"cannot answer: {type(error).__name__}"))

    def fail(self, error: SluiceError) -> None:
        """Ends the call with an error; does nothing if it has ended."""
        if self.state != ENDED:
            self.state = ENDED
            self._failed(error)

    def cancel(self) -> None:
        """The caller is gone: leave the line if still waiting, and drop the answer if not."""
        if self.state == ENDED:
            return
        waiting = self.state == QUEUED
        started = self.state in (QUEUED, RUNNING)
        self.state = ENDED
        if started and self.owner is not None:
            self.owner.cancelled(self, waiting=waiting)
        self._cancelled()

    def _replied(self, response: InferenceResponse) -> None:
        raise NotImplementedError

    def _failed(self, error: SluiceError) -> None:
        raise NotImplementedError

    def _cancelled(self) -> None:
        """Hook for subclasses that hold something."""
