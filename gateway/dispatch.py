"""What runs the calls of one servable; the request path does not know which of these it is.

| dispatcher | for |
|---|---|
| `batching.Batcher` | models in this process, and servers elsewhere for which the gateway batches |
| `batching.Streamer` | models that answer a request any number of times |
| `forwarding.Forwarder` | servers elsewhere that batch by themselves |
| `isolation.ChildDispatcher` | models in a child process, which has one of the above in it |
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from gateway.call import Call
from gateway.telemetry.stats import ServableStats
from gateway.tensors import InferenceResponse

__all__ = ["Dispatcher"]


class Dispatcher(Protocol):
    """Owned by the event loop. Whoever is its call's `owner` hears of its cancellation."""

    stats: ServableStats
    now: Callable[[], float]
    """The clock of `Call.arrived` and `Call.deadline`, in seconds."""
    elsewhere: bool
    """Whether another process does the work."""
    on_broken: Callable[[str], object] | None
    """Told once, with the cause, when nothing can be run here any more and every call has
    ended; the lifecycle then takes the version out of the routes."""

    @property
    def pending(self) -> int:
        """Calls that wait or run."""

    @property
    def waiting(self) -> int:
        """Calls that wait."""

    @property
    def waiting_rows(self) -> int: ...

    @property
    def instances(self) -> int:
        """How many batches (or streams) may run at the same time."""

    def submit(self, call: Call) -> None:
        """Takes a call, which ends later, exactly once, with one answer.

        Raises `SluiceError`, in which case nothing was kept.
        """

    def stream(self, call: Call) -> AsyncGenerator[InferenceResponse]:
        """The answers to a call of a decoupled model, as they come, none or more.

        Closing the iterator (or cancelling who waits for it) stops the model's work. Raises
        `SluiceError` while iterated over.
        """

    def status(self) -> dict[str, Any]:
        """What only this kind has to say, for `sluice models`: restarts, endpoints, ..."""

    def close(self) -> None:
        """Gives back threads, connections, processes; blocking. Nothing may be pending."""
