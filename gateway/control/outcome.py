"""What comes of loads that somebody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gateway.errors import ModelNotReady
from gateway.lifecycle.manager import Manager
from gateway.lifecycle.model import ManagedModel
from gateway.lifecycle.policy import is_current
from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredVersion

POLL: Final = 0.02
ENDED: Final = (State.DRAINING, State.UNLOADED)


async def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition holds before so many seconds are over."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(POLL)
    except TimeoutError:
        return condition()
    return True


async def load_now(
    manager: Manager, model: str, versions: Iterable[str] | None, seconds: float
) -> str:
    """Has these versions of a model (`None`: all that it needs) loaded, and waits until each is
    ready or has failed; why they are not ready, or empty. Raises `ModelNotReady`."""
    outcome = Outcome(manager, model, versions)
    manager.load_now(model, versions)
    return await outcome.why_not(seconds)


class Outcome:
    """Of loads. Made just before they are asked for, so that failures of before are told from
    theirs; `versions` is `None` for all that the model needs."""

    def __init__(self, manager: Manager, model: str, versions: Iterable[str] | None) -> None:
        self._manager = manager
        self._model = model
        self._versions = None if versions is None else tuple(versions)
        self._ready: set[str] = set()
        """What was ready once: on-demand versions may be put away again at once."""
        managed = manager.models.get(model)
        records = managed.records if managed is not None else ()
        self._before = {r for r in records if r.state == State.FAILED}

    async def why_not(self, seconds: float) -> str:
        """Waits until every version is ready or failed; why they are not ready, or empty.

        Raises `ModelNotReady` when that takes too long.
        """

        def changed(model: str) -> None:
            # What fails on demand is no longer wanted a moment later, and what is ready may go.
            if model == self._model:
                self._look()

        self._manager.on_change.append(changed)
        try:
            if not await wait(self._ended, seconds):
                raise ModelNotReady(
                    f"'{self._model}' is not ready after {seconds:g} s (control.load_seconds), "
                    "and its load is given up"
                )
        finally:
            self._manager.on_change.remove(changed)
        return self._cause()

    def _ended(self) -> bool:
        self._look()
        managed = self._manager.models.get(self._model)
        if managed is None or managed.aspired.error:
            return True
        return all(
            version in self._ready or (record is not None and self._failed(managed, record))
            for version, record in self._records(managed).items()
        )

    def _look(self) -> None:
        managed = self._manager.models.get(self._model)
        if managed is None:
            return
        for version, record in self._records(managed).items():
            if record is not None and record.state == State.READY:
                self._ready.add(version)

    def _failed(self, managed: ManagedModel, record: Record) -> bool:
        if record.state != State.FAILED:
            return False
        # One of before is tried again as soon as may be, while it is wanted.
        return record not in self._before or record.version not in managed.desired

    def _records(self, managed: ManagedModel) -> Mapping[str, Record | None]:
        """Version → its load with the files and settings wanted now, `None` before there is one."""
        aspired = managed.aspired
        possible: dict[str, AspiredVersion] = {**aspired.stand_ins, **aspired.versions}
        names: Iterable[str] = aspired.versions
        if self._versions is not None:
            names = self._versions
        elif managed.on_demand:
            names = managed.default_versions()
        found: dict[str, Record | None] = dict.fromkeys(names)
        for record in managed.records:
            ended = record.state in ENDED
            if record.version in found and is_current(record, possible) and not ended:
                found[record.version] = record
        return found

    def _cause(self) -> str:
        managed = self._manager.models.get(self._model)
        if managed is None:
            return "there is no version to load"
        records = self._records(managed)
        causes = [
            f"version {version}: {record.cause}"
            for version, record in records.items()
            if record is not None and record.state == State.FAILED and version not in self._ready
        ]
        none = "" if records else "there is no version to load"
        return managed.aspired.error or "; ".join(causes) or none
