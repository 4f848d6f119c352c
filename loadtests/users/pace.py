"""When a user asks again. Knows nothing of locust."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.errors import BenchError
from loadtests.payloads.base import Wire

KINDS = ("closed", "constant", "poisson", "recorded")


@dataclass(frozen=True)
class Pace:
    """``closed``: as soon as the last answer is there. ``constant`` and ``poisson``: ``rate``
    requests a second, as long as the answers come faster than that. ``recorded``: at the times of
    a recording."""

    kind: str = "closed"
    rate: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Pace:
        """``closed``, ``constant:2``, ``poisson:0.5``, ``recorded``. Raises `BenchError`."""
        kind, colon, rate = text.strip().partition(":")
        paced = kind in ("constant", "poisson")
        try:
            number = float(rate) if colon else 0.0
        except ValueError:
            number = -1.0
        if kind not in KINDS or paced != bool(colon) or (paced and not 0 < number < float("inf")):
            raise BenchError(
                f"--pace '{text}' is none of closed, constant:R, poisson:R (R requests a second "
                "and user) and recorded"
            )
        return cls(kind, number)

    def first_wait(self) -> float:
        """Seconds before the first request, so that users do not ask in step."""
        return random.uniform(0, 1 / self.rate) if self.rate else 0.0

    def wait(self, since_last: float) -> float:
        """Seconds to the next request, ``since_last`` after the last one left."""
        if self.kind == "constant":
            return max(1 / self.rate - since_last, 0.0)
        if self.kind == "poisson":
            return max(random.expovariate(self.rate) - since_last, 0.0)
        return 0.0


class Replay:
    """A recording that several users play together, each request at its time, again and again.

    One of ``parts`` processes plays each ``parts``-th request, from the ``part``-th on.
    """

    def __init__(self, wires: Sequence[Wire], part: int = 0, parts: int = 1) -> None:
        times = [wire.at_s for wire in wires]
        if any(at is None for at in times):
            raise BenchError(
                "--pace recorded needs requests with their times; give --data a .jsonl with "
                "'at_s', or a .har"
            )
        self._wires = wires
        last = times[-1] or 0.0
        # The recording begins again as long after its last request as they are apart on average.
        self.period = last + (last / (len(wires) - 1) if len(wires) > 1 else 1.0)
        if not self.period:
            raise BenchError("--pace recorded: all requests of the recording have the same time")
        self._next = part
        self._parts = parts

    def take(self) -> tuple[Wire, float]:
        """The next request, and its time in seconds from the beginning of the run."""
        rounds, place = divmod(self._next, len(self._wires))
        self._next += self._parts
        wire = self._wires[place]
        return wire, rounds * self.period + (wire.at_s or 0.0)
