"""What is refused before it costs anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.config import LimitsConfig
from gateway.errors import Draining, InvalidRequest, QueueFull, RequestTooLarge, Unsupported
from gateway.tensors import InferenceRequest, Parameter

LARGE: Final = 262_144
"""Bytes from which a message is a large one."""


class Admission:
    """Counts what is in the gateway and refuses what does not fit. Owned by the event loop."""

    __slots__ = ("_limits", "draining", "in_flight", "inner", "large")

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self.draining = False
        self.in_flight = 0
        """Calls admitted and not ended."""
        self.inner = 0
        """Those of them that models made; they take nobody's place in `limits.max_in_flight`."""
        self.large = 0
        """Large messages, ever: they leave memory behind that is kept for a while."""

    def check_size(self, size: int) -> None:
        """Raises `RequestTooLarge` for a message above the limit, before it is decoded."""
        if size >= LARGE:
            self.large += 1
        if size > self._limits.max_message_bytes:
            raise RequestTooLarge(
                f"the message has {size} bytes, more than limits.max_message_bytes = "
                f"{self._limits.max_message_bytes}"
            )

    def admit(self, request: InferenceRequest, *, inner: bool = False) -> None:
        """Raises `Draining`, `QueueFull` or `InvalidRequest`.

        `inner`: a model asks, for a call that was admitted; refusing it would lose that one.
        """
        if not inner:
            self.check_room()
        if not request.inputs:
            raise InvalidRequest("the request has no inputs; send at least one tensor")

    def check_room(self) -> None:
        """Raises `Draining` or `QueueFull`; the request itself is counted already."""
        if self.draining:
            raise Draining
        outer = self.in_flight - self.inner
        if outer > self._limits.max_in_flight:
            raise QueueFull(
                f"{outer - 1} requests are in flight, the most that limits.max_in_flight "
                "allows; try again later"
            )


def refuse_sequences(parameters: Mapping[str, Parameter]) -> None:
    """Raises `Unsupported` for the parameters of sequences, which only a server that keeps their
    state can take."""
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        # Triton's client sends the defaults along with any one of the three.
        if parameters.get(name) not in (None, 0, "", False):
            raise Unsupported(
                f"parameter '{name}': sequences are not supported; send the whole sequence in one "
                "request, or keep the state in the client"
            )
