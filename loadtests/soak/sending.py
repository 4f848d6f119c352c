"""Requests on their way: sent at random moments, and in the ledger however they end."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass

from loadtests.soak.ledger import End, Ledger

PATIENCE_S = 30.0
"""A request without an answer for so long is lost."""
DIED = "died while it ran this"
"""What callers of an isolated model are told when its process is killed under them."""
PLUS = "plus (isolated)"
"""How the names of its callers begin."""
BEGAN: ContextVar[float] = ContextVar("began", default=0.0)
"""When the request that this task makes began (monotonic)."""

Outcome = tuple[End, str]
Ask = Callable[[], Awaitable[Outcome]]


@dataclass
class Caller:
    """Sends ``rate`` requests a second, on average."""

    name: str
    rate: float
    ask: Ask


@dataclass
class Kill:
    """The process of the isolated model was ended at ``at`` (monotonic)."""

    at: float
    excuses: int
    """Requests that may still fail for it: what one batch can hold."""


class Sending:
    """Sends what callers ask, and knows what may have happened to it."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()
        self._withdrawn: dict[tuple[str, str], float] = {}
        self.kills: deque[Kill] = deque(maxlen=100)
        """The last ones."""
        self.ended = False

    async def drive(self, caller: Caller) -> None:
        """Sends until it is ended; what is under way then goes on."""
        due = time.monotonic()
        while not self.ended:
            due += self._random.expovariate(caller.rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._one(caller))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, caller: Caller) -> None:
        """One request. However it ends, even if this task is cancelled, the ledger has it."""
        began = time.monotonic()
        BEGAN.set(began)
        self.ledger.sent += 1
        end, why = End.LOST, "given up"
        try:
            async with asyncio.timeout(PATIENCE_S):
                end, why = await caller.ask()
        except TimeoutError:
            why = f"no answer in {PATIENCE_S:g} s"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            why = "cancelled, by none of us"
        except Exception as error:  # an answer can be broken in any way
            why = f"{type(error).__name__}: {error}"
        finally:
            now = time.monotonic()
            if end is End.FAILED and self._excused(caller.name, why, began):
                end = End.KILLED
            self.ledger.ended(caller.name, end, why, now - began, now - self._began)

    def killed(self, most: int) -> None:
        """The isolated model was killed now; ``most`` requests may have been running in it."""
        self.kills.append(Kill(time.monotonic(), most))

    def _excused(self, caller: str, why: str, began: float) -> bool:
        """Whether a request failed because its process was killed, which counts once for each."""
        if not caller.startswith(PLUS) or DIED not in why:
            return False
        for kill in reversed(self.kills):
            if kill.excuses and began <= kill.at:
                kill.excuses -= 1
                return True
        return False

    def withdrawn(self, model: str, version: int) -> None:
        """A version is gone: nobody who asks from now on may be answered by it."""
        self._withdrawn[model, str(version)] = time.monotonic()

    def gone(self, model: str, version: str, began: float) -> bool:
        """Whether a version had been withdrawn when a request began."""
        return self._withdrawn.get((model, version), math.inf) < began

    async def close(self) -> None:
        """Waits for what is under way; what still is after its time is lost."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE_S + 10)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
