"""A call that is with a child, and the answers to one that has any number of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.batching.answers import Answers, Reading
from gateway.call import Call
from gateway.isolation.messages import CREDITS, Sent

_AT_ONCE: Final = CREDITS // 2
"""Credits given back in one message."""


class Pending:
    """What is kept of a call until the child has ended it and looks at its memory no more."""

    __slots__ = (
        "answers", "call", "forgotten", "over", "released", "retried", "rows", "sent", "size",
    )  # fmt: skip

    def __init__(self, call: Call, sent: Sent, answers: ChildAnswers | None) -> None:
        self.call = call
        self.sent = sent
        self.answers = answers
        self.rows = call.rows
        self.size = call.size
        self.over = False
        """Ended for its caller."""
        self.forgotten = False
        """Ended by the child."""
        self.released = False
        """The child looks at the memory no more."""
        self.retried = False

    @property
    def answered(self) -> bool:
        """Whether the caller has seen some of it already."""
        return self.answers is not None and self.answers.count > 0


class ChildAnswers(Answers):
    """The answers to one call of a decoupled model."""

    def __init__(self, call: Call, owner: Reading) -> None:
        super().__init__(call, owner)
        self.last = 0.0
        """When the last answer came."""

    def renew_credit(self) -> None:
        """A fresh child begins with full credit."""
        if isinstance(self.work, Credit):
            self.work.taken_since = 0


class Credit:
    """`Work` of `Answers`: lets the child send more once some were taken."""

    def __init__(self, give: Callable[[int], object]) -> None:
        self._give = give
        self.taken_since = 0

    def taken(self) -> None:
        """The reader took an answer."""
        self.taken_since += 1
        if self.taken_since >= _AT_ONCE:
            self._give(self.taken_since)
            self.taken_since = 0

    def stop(self) -> None:
        """The dispatcher cancels."""
