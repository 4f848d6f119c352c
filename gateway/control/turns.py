"""One change of a model at a time, and who may go ahead of one that waits for a load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from gateway.errors import Conflict, Draining

DOCUMENT: Final = "document"
"""What a change touches: what is decided beside the split."""
TRAFFIC: Final = "traffic"
EVERYTHING: Final = frozenset({DOCUMENT, TRAFFIC})

T = TypeVar("T")


@dataclass
class Waiting:
    """A change that has given its turn back until something is loaded."""

    what: str
    touches: frozenset[str]
    undo: Callable[[], None]
    task: asyncio.Task[None]
    ended_by: str = ""
    """The change that went ahead of it and ended it."""


@dataclass
class Line:
    """The changes of one model."""

    turn: asyncio.Condition = field(default_factory=asyncio.Condition)
    waiting: Waiting | None = None
    users: int = 0


class Turns:
    """For the event loop. A change goes on when its caller goes away."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def close(self) -> None:
        """Gives up what has not ended; its callers hear `Draining`, and so do later ones."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def one(
        self,
        model: str,
        work: Callable[[], Awaitable[T]],
        *,
        patient: bool = False,
    ) -> T:
        """`work` as the one change of a model that is under way, but for one that waits for a
        load (see `beside`), for which a `patient` change waits, and others see `go_ahead`.
        Raises `Draining`, and what `work` does."""
        if self._closed:
            raise Draining
        task = asyncio.get_running_loop().create_task(self._run(model, work, patient))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._closed and task.cancelled():
                raise Draining from None
            raise

    async def _run(self, model: str, work: Callable[[], Awaitable[T]], patient: bool) -> T:
        line = self._lines.setdefault(model, Line())
        line.users += 1
        try:
            async with line.turn:
                if patient:
                    await line.turn.wait_for(lambda: line.waiting is None)
                return await work()
        finally:
            line.users -= 1
            if not line.users:
                del self._lines[model]

    def go_ahead(self, model: str, what: str, touches: frozenset[str] = EVERYTHING) -> None:
        """For the change whose turn it is: undoes one that waits for a load and touches the same;
        its caller hears `Conflict`."""
        line = self._lines[model]
        waiting = line.waiting
        if waiting is None or not waiting.touches & touches:
            return
        waiting.ended_by = what
        waiting.task.cancel()
        self._no_longer(line)
        waiting.undo()

    def _no_longer(self, line: Line) -> None:
        line.waiting = None
        line.turn.notify_all()

    async def beside(
        self,
        model: str,
        what: str,
        work: Coroutine[Any, Any, None],
        undo: Callable[[], None],
        *,
        touches: frozenset[str],
    ) -> None:
        """Gives the turn of the change that calls this back until `work` has ended.

        `undo`, which must not wait, is called where `work` fails and where another change ends
        it. Raises `Conflict` then, and what `work` does.
        """
        line = self._lines[model]
        task = asyncio.get_running_loop().create_task(work)
        waiting = line.waiting = Waiting(what, touches, undo, task)
        line.turn.release()
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            await acquired(line.turn)
            failed = task.cancelled() or not task.done() or task.exception() is not None
            if line.waiting is waiting:
                self._no_longer(line)
                if failed:
                    undo()
        if waiting.ended_by:
            raise Conflict(
                f"the {what} of '{model}' is given up: '{waiting.ended_by}' came before it was done"
            )
        task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody has to be there to hear it


async def acquired(turn: asyncio.Condition) -> None:
    """Waits for the turn, which its holder gives back at its end: also when cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            await turn.acquire()
            break
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
