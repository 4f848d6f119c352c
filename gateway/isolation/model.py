"""A model in a child process, as the rest of the gateway sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.errors import InferenceFailed
from gateway.isolation.messages import PLAIN_FACTS, specs_of
from gateway.tensors import Array, Parameter
from runtimes.interface import Model

if TYPE_CHECKING:
    from gateway.isolation.arena import Arena
    from gateway.isolation.memory import Table
    from gateway.isolation.process import ChildProcess

Curve = list[tuple[int, float]]
"""Rows of a batch and the seconds that it takes."""


class ChildModel(Model):
    """What the model in the child declares, and how to come by another child with it.

    Its memory is the gateway's own, so that requests outlive a child: see `ChildDispatcher`.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        child: ChildProcess,
        arena: Arena,
        table: Table,
        curve: Curve,
        renew: Callable[[Curve], Awaitable[ChildProcess]],
        loop: asyncio.AbstractEventLoop,
        forget: Callable[[], object],
    ) -> None:
        for name in PLAIN_FACTS:
            setattr(self, name, facts[name])
        self.inputs = specs_of(facts["inputs"])
        self.outputs = specs_of(facts["outputs"])
        self.facts = facts
        self.child = child
        self.arena = arena
        self.table = table
        self.curve = curve
        self.renew = renew
        self.closed = False
        self._loop = loop
        self._forget = forget

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """Nobody calls it: requests go through the dispatcher."""
        raise InferenceFailed("a model in another process is reached by its dispatcher alone")

    def close(self) -> None:
        """Ends the child in order, or with force if it does not end soon; blocking."""
        if self.closed:
            return
        self.closed = True
        self.on_loop(self.child.ask_to_close)
        self.child.wait_closed()
        self.on_loop(self._give_back)

    def _give_back(self) -> None:
        self.child.channel.close()
        if self.child.errands is not None:
            self.child.errands.close()
        self.arena.close()
        self.table.close()
        self._forget()

    def on_loop(self, action: Callable[[], object]) -> None:
        """Does something on the event loop: at once where we are on it."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            action()
            return
        try:
            self._loop.call_soon_threadsafe(action)
        except RuntimeError:  # the loop is closed, and everything ends with the process
            self.child.kill("the gateway has ended")
