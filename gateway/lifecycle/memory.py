"""The memory that versions hold, and the line of loads that wait for some.

What has to happen is decided in `budget`. The line is first come, first served, but for small
loads, which may pass a larger one that waits for models in use; a few times at most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from gateway.errors import ModelLoadError
from gateway.lifecycle.budget import (
    MIB,
    Evict,
    Fits,
    Holding,
    Never,
    Stay,
    Wait,
    decide,
    least_recent,
    mib,
)
from gateway.lifecycle.states import Record
from gateway.telemetry.logs import log

MOST_PASSED: Final = 8
"""How often a load that waits may be passed by later, smaller ones."""
LOOK_SECONDS: Final = 0.05
"""How often a line looks whether a model in use has become idle."""

Look = Callable[[Record, int, Record | None], Holding]
"""What becomes of a record's memory, seen from another one that needs some."""


class Waiting:
    """One load in the line."""

    __slots__ = ("granted", "need", "passed", "record", "since")

    def __init__(self, record: Record, need: int, since: float) -> None:
        self.record = record
        self.need = need
        self.since = since
        self.passed = 0
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Memory:
    """Owned by the event loop. `budget` in bytes, 0 = none; `patience` in seconds.

    `look` says what becomes of the memory of a record, `evict` unloads one that is idle.
    """

    def __init__(
        self,
        budget: int,
        patience: float,
        look: Look,
        evict: Callable[[Record], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget
        self.held: dict[Record, int] = {}
        """Bytes that each version has, or that are set aside for it."""
        self.evictions = 0
        self._patience = patience
        self._look = look
        self._evict = evict
        self._now = now
        self._line: list[Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._moving = False

    @property
    def used(self) -> int:
        """Bytes held by all."""
        return sum(self.held.values())

    @property
    def waiting(self) -> int:
        """Loads in the line."""
        return len(self._line)

    async def reserve(self, record: Record, need: int) -> None:
        """Sets `need` bytes aside, as soon as there is room.

        Raises `ModelLoadError` where there never will be, or was not in time.
        """
        if not self.budget:
            self.held[record] = need
            return
        waiting = Waiting(record, need, self._now())
        self._line.append(waiting)
        self.move()
        if not waiting.granted.done():
            record.progress = f"waiting for {mib(need)} of memory"
        try:
            await waiting.granted
        finally:
            record.progress = ""
            if waiting in self._line:
                self._line.remove(waiting)
                self.move()

    def settle(self, record: Record, size: int) -> None:
        """What a loaded version really takes; the idle make room if that is more than thought."""
        self.held[record] = size
        if self.budget:
            over = self.used - self.budget
            if over > 0:
                self._shrink(over)
            self.move()

    def leave(self, record: Record, error: Exception) -> None:
        """The load is not wanted any more, in case it waits in the line."""
        for waiting in self._line:
            if waiting.record is record and not waiting.granted.done():
                waiting.granted.set_exception(error)

    def release(self, record: Record) -> None:
        """The version is gone."""
        if self.held.pop(record, None) is not None and self._line:
            self.move()

    def _shrink(self, over: int) -> None:
        holdings = [self._look(record, size, None) for record, size in self.held.items()]
        over -= sum(holding.size for holding in holdings if holding.stay is Stay.LEAVING)
        if over <= 0:
            return
        idle = [holding for holding in holdings if holding.stay is Stay.IDLE]
        chosen = least_recent(idle, over)
        if chosen is None:
            chosen = idle
            log.warning(
                "the loaded models take %s, more than lifecycle.memory_budget_mb = %d",
                mib(self.used), self.budget // MIB,
            )  # fmt: skip
        for holding in chosen:
            self._unload(holding.key)

    # --- the line

    def move(self) -> None:
        """Lets those go ahead for whom there is room, and makes room."""
        if self._moving:
            return  # what is going on will look at it
        self._moving = True
        try:
            self._move()
        finally:
            self._moving = False
        if self._line and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._again)

    def _again(self) -> None:
        self._timer = None
        self.move()

    def _move(self) -> None:
        promised: list[Holding] = []
        for place, waiting in enumerate(list(self._line)):
            if waiting.granted.done():
                continue
            held = [self._look(record, size, waiting.record) for record, size in self.held.items()]
            verdict = decide(waiting.need, self.budget, [*held, *promised])
            if isinstance(verdict, Fits):
                for other in self._line[:place]:
                    other.passed += 1
                self.held[waiting.record] = waiting.need
                waiting.granted.set_result(None)
                continue
            if isinstance(verdict, Never):
                waiting.granted.set_exception(ModelLoadError(self._no_room(waiting, verdict)))
                continue
            if self._now() - waiting.since >= self._patience:
                waiting.granted.set_exception(ModelLoadError(self._too_long(waiting)))
                continue
            if isinstance(verdict, Evict):
                for key in verdict.keys:
                    self._unload(key)
            if not isinstance(verdict, Wait) or verdict.sure or waiting.passed >= MOST_PASSED:
                # What is on its way to this one is not for those behind it.
                promised.append(Holding(waiting, waiting.need, Stay.BUSY))
        self._line = [waiting for waiting in self._line if not waiting.granted.done()]

    def _unload(self, key: object) -> None:
        assert isinstance(key, Record)
        self.evictions += 1
        self._evict(key)

    def _no_room(self, waiting: Waiting, verdict: Never) -> str:
        """Why it does not fit, and what to set."""
        record, need = waiting.record, waiting.need
        text = f"it needs about {mib(need)} of memory; lifecycle.memory_budget_mb is "
        text += f"{self.budget // MIB}"
        if need > self.budget:
            return f"{text}: set it to at least {-(-need // MIB)}, or memory_mb in model.yaml"
        text += f", of which {mib(verdict.lasting)} are taken for good"
        mine = [other for other in self.held if other.model == record.model and other is not record]
        twice = sum(self.held[other] for other in mine)
        if twice and need + verdict.lasting - twice <= self.budget:
            versions = ", ".join(sorted({other.version for other in mine}))
            return (
                f"{text}, {mib(twice)} by version {versions}, which stays until this one is "
                "ready: set lifecycle.policy to resource to unload it first, or raise "
                f"lifecycle.memory_budget_mb to {-(-(need + verdict.lasting) // MIB)}"
            )
        return (
            f"{text}: raise it to {-(-(need + verdict.lasting) // MIB)}, or set on_demand in "
            "model.yaml of models that are seldom used"
        )

    def _too_long(self, waiting: Waiting) -> str:
        return (
            f"it waited {self._patience:g} s (lifecycle.memory_wait) for {mib(waiting.need)} of "
            f"memory; {mib(self.used)} of the {self.budget // MIB} MiB of "
            "lifecycle.memory_budget_mb are in use"
        )
