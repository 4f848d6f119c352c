"""The memory that versions hold, and the line of loads that wait for some.

What has to happen is decided in `budget`. The line is first come, first served, but for small
loads, which may pass a larger one that waits for models in use; a few times at most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from gateway.errors import ModelLoadError
from gateway.lifecycle.budget import (
    MIB,
    Evict,
    Fits,
    Holding,
    Never,
    Stay,
    Sums,
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
LOOK_AHEAD: Final = 16
"""Most loads of a line that a look considers: those behind them wait for their turn."""

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


class Survey:
    """All that holds memory, looked at once for all who wait."""

    def __init__(self) -> None:
        self.sums = Sums()
        self._models: dict[str, list[Holding]] = {}
        self._yielding: list[Holding] = []

    def add(self, model: str, holding: Holding) -> None:
        self.sums.add(holding)
        self._models.setdefault(model, []).append(holding)
        if holding.yields:
            self._yielding.append(holding)

    def depending(self, model: str) -> list[Holding]:
        """What may look different from where a version of this model stands."""
        mine = self._models.get(model, [])
        return mine + [each for each in self._yielding if each not in mine]


class Memory:
    """Owned by the event loop. `budget` in bytes, 0 = none; `patience` in seconds.

    `look` says what becomes of the memory of a record, `evict` unloads one that is idle, and what
    is of no use without it: the number of versions.
    """

    def __init__(
        self,
        budget: int,
        patience: float,
        look: Look,
        evict: Callable[[Record], int],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget
        self.used = 0
        """Bytes held by all."""
        self.evictions = 0
        self._held: dict[Record, int] = {}
        self._patience = patience
        self._look = look
        self._evict = evict
        self._now = now
        self._line: dict[Record, Waiting] = {}
        self._places = 0
        self._blocked = False
        """Whether what there is, or will be, is promised to one in the line."""
        self._timer: asyncio.TimerHandle | None = None
        self._moving = False

    @property
    def held(self) -> Mapping[Record, int]:
        """Bytes that each version has, or that are set aside for it."""
        return self._held

    @property
    def waiting(self) -> int:
        """Loads in the line."""
        return len(self._line)

    async def reserve(self, record: Record, need: int) -> None:
        """Sets `need` bytes aside, as soon as there is room.

        Raises `ModelLoadError` where there never will be, or was not in time.
        """
        if not self.budget or (not self._line and need + self.used <= self.budget):
            self._hold(record, need)
            return
        waiting = Waiting(record, need, self._now())
        self._places += 1
        record.place = self._places
        self._line[record] = waiting
        self._joined(waiting)
        if not waiting.granted.done():
            record.progress = f"waiting for {mib(need)} of memory"
        try:
            await waiting.granted
        finally:
            record.progress = ""
            if record in self._line:
                self._leave_line(record)
                self.move()

    def settle(self, record: Record, size: int) -> None:
        """What a loaded version really takes; the idle make room if that is more than thought."""
        self._hold(record, size)
        if self.budget:
            over = self.used - self.budget
            if over > 0:
                self._shrink(over)
            self.move()

    def leave(self, record: Record, error: Exception) -> None:
        """The load is not wanted any more, in case it waits in the line."""
        waiting = self._line.get(record)
        if waiting is not None and not waiting.granted.done():
            waiting.granted.set_exception(error)

    def release(self, record: Record) -> None:
        """The version is gone."""
        size = self._held.pop(record, None)
        if size is not None:
            self.used -= size
            self.move()

    def _hold(self, record: Record, size: int) -> None:
        self.used += size - self._held.get(record, 0)
        self._held[record] = size

    def _shrink(self, over: int) -> None:
        sums = Sums(self._look(record, size, None) for record, size in self._held.items())
        over -= sums.leaving
        if over <= 0:
            return
        idle = list(sums.idle.values())
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
        if self._moving or not self._line:
            return  # what is going on will look at it
        self._moving = True
        try:
            self._move()
        finally:
            self._moving = False
        self._look_again()

    def _look_again(self) -> None:
        if self._line and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._again)

    def _again(self) -> None:
        self._timer = None
        self.move()

    def _joined(self, waiting: Waiting) -> None:
        """Looks at the last of the line alone, where nothing changes for those before it."""
        if len(self._line) > 1:
            verdict = self._verdict(waiting, self._survey([]))
            if isinstance(verdict, Never):
                self._end(waiting, self._no_room(waiting, verdict))
            if self._blocked or isinstance(verdict, Never | Wait):
                self._look_again()
                return
        self.move()

    def _move(self) -> None:
        promised: list[Waiting] = []
        survey = self._survey(promised)
        looked = 0
        for waiting in list(self._line.values()):
            if waiting.granted.done():
                self._leave_line(waiting.record)
                continue
            if looked >= LOOK_AHEAD:
                break
            verdict = self._verdict(waiting, survey)
            if isinstance(verdict, Fits):
                self._grant(waiting)
                holding = self._look(waiting.record, waiting.need, None)
                survey.add(waiting.record.model, holding)
                continue
            if isinstance(verdict, Never):
                self._end(waiting, self._no_room(waiting, verdict))
                continue
            if self._now() - waiting.since >= self._patience:
                self._end(waiting, self._too_long(waiting))
                continue
            looked += 1
            if not isinstance(verdict, Wait) or verdict.sure or waiting.passed >= MOST_PASSED:
                # What is on its way to this one is not for those behind it.
                promised.append(waiting)
                survey.sums.add(promise(waiting))
            if isinstance(verdict, Evict):
                for key in verdict.keys:
                    self._unload(key)
                survey = self._survey(promised)
        self._blocked = bool(promised)

    def _survey(self, promised: list[Waiting]) -> Survey:
        survey = Survey()
        for record, size in self._held.items():
            survey.add(record.model, self._look(record, size, None))
        for waiting in promised:
            survey.sums.add(promise(waiting))
        return survey

    def _verdict(self, waiting: Waiting, survey: Survey) -> Fits | Evict | Wait | Never:
        """What has to happen for this one, seen from where it stands."""
        sums = survey.sums
        changed: list[tuple[Holding, Holding]] = []
        for there in survey.depending(waiting.record.model):
            assert isinstance(there.key, Record)
            mine = self._look(there.key, there.size, waiting.record)
            if mine.stay is not there.stay:
                sums.remove(there)
                sums.add(mine)
                changed.append((there, mine))
        verdict = decide(waiting.need, self.budget, sums)
        for there, mine in changed:
            sums.remove(mine)
            sums.add(there)
        return verdict

    def _grant(self, waiting: Waiting) -> None:
        for other in self._line.values():
            if other is waiting:
                break
            other.passed += 1
        self._hold(waiting.record, waiting.need)
        self._leave_line(waiting.record)
        waiting.granted.set_result(None)

    def _end(self, waiting: Waiting, why: str) -> None:
        self._leave_line(waiting.record)
        waiting.granted.set_exception(ModelLoadError(why))

    def _leave_line(self, record: Record) -> None:
        del self._line[record]
        record.place = 0

    def _unload(self, key: object) -> None:
        assert isinstance(key, Record)
        self.evictions += self._evict(key)

    def _no_room(self, waiting: Waiting, verdict: Never) -> str:
        """Why it does not fit, and what to set."""
        record, need = waiting.record, waiting.need
        text = f"it needs about {mib(need)} of memory; lifecycle.memory_budget_mb is "
        text += f"{self.budget // MIB}"
        if need > self.budget:
            return f"{text}: set it to at least {-(-need // MIB)}, or memory_mb in model.yaml"
        text += f", of which {mib(verdict.lasting)} are taken for good"
        mine = [each for each in self._held if each.model == record.model and each is not record]
        twice = sum(self._held[each] for each in mine)
        if twice and need + verdict.lasting - twice <= self.budget:
            versions = ", ".join(sorted({each.version for each in mine}))
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


def promise(waiting: Waiting) -> Holding:
    """Memory that one in the line will have."""
    return Holding(waiting, waiting.need, Stay.BUSY)
