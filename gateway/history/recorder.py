"""Writes down what changes: watches the routes, and hears from those who change them."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.config import HistoryConfig
from gateway.errors import RegistryError
from gateway.history.base import SERVED, START, STOP, Change, Past, Served
from gateway.history.served import cause, differs, served_by, without_secrets
from gateway.history.throttle import Held, Throttle
from gateway.lifecycle.manager import Manager
from gateway.routing import Router
from gateway.servable import Servable
from gateway.state import StateDir
from gateway.telemetry.logs import log

if TYPE_CHECKING:
    from gateway.history.writer import Writer

FILE: Final = "history.db"
FOLDER: Final = "history"
"""Of the state directory: the journals of the gateways that use it."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that is full; it may have room again later."""
READ_AFTER: Final = 2.0
"""Seconds that a reader waits for entries which are just being written."""

SPARE: Final = 100
"""Throttles that may be there beyond twice the models before those not needed are dropped."""

T = TypeVar("T")


@dataclass(eq=False)
class Asked:
    """Something that somebody changes right now."""

    action: str
    who: str
    message: str
    told: bool = False
    """Whether there is an entry of it."""


class Recorder:
    """See `History`.

    `source_of` gives the source that declares a model, or raises `KeyError`; `clock` gives Unix
    seconds.
    """

    def __init__(
        self,
        config: HistoryConfig,
        state: StateDir,
        manager: Manager,
        router: Router[Servable],
        source_of: Callable[[str], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.enabled = True
        self._config = config
        self._state = state
        self._manager = manager
        self._router = router
        self._source_of = source_of
        self._clock = clock
        self._sources: dict[str, str] = {}
        self._writer: Writer | None = None
        self._gateway = ""
        self._seq = 0
        self._latest = 0.0
        self._last: dict[str, Served] = {}
        self._asked: dict[str, list[Asked]] = {}
        """What people change right now, by model."""
        self._throttles: dict[str, Throttle] = {}
        self._held: dict[str, Held] = {}

    # --- from start to stop

    async def start(self, gateway: str) -> None:
        """See `History.start`. Without a place to write to there is no history, and a warning."""
        self._gateway = gateway
        started = self._now()
        try:
            self._writer = await asyncio.to_thread(self._open, started)
        except OSError as error:
            self.enabled = False
            log.warning(
                "there is no history: '%s' cannot be written (%s); give another place with "
                "--state-dir or history.url",
                self._state.path, error.strerror or error,
            )  # fmt: skip
            return
        self._manager.on_change.append(self.changed)
        self._put(Change("", START, gateway, "", Served(), Served(), started))
        for name in list(self._manager.models):
            self.changed(name)

    def _open(self, started: float) -> Writer:
        """Raises `OSError` where there is no place for it, and `ConfigError` for a bad URL."""
        from gateway.history.store import open_file, open_store
        from gateway.history.writer import Writer

        url = self._config.url
        store = open_store(url) if url else open_file(self._state.path / FILE)
        folder = self._state.path / FOLDER
        own = None if url else self._state.path / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return Writer(store, self._gateway, folder, own, started)
        except OSError as error:
            if not url and error.errno not in FULL:
                raise
            log.warning(
                "history: '%s' cannot be written (%s); while the database is away, entries are in "
                "memory alone",
                self._state.path, error.strerror or error,
            )  # fmt: skip
            return Writer(store, self._gateway, None, own, started)

    async def close(self) -> None:
        """See `History.close`."""
        writer = self._writer
        if writer is None:
            return
        with suppress(ValueError):
            self._manager.on_change.remove(self.changed)
        for name in list(self._held):
            self._release(name)
        self._put(Change("", STOP, self._gateway, "", Served(), Served(), self._now()))
        self._writer = None
        await asyncio.to_thread(writer.close)

    # --- what changes

    @contextmanager
    def because(self, model: str, action: str, who: str, message: str) -> Iterator[None]:
        """See `History.because`."""
        asked = Asked(action, who, message)
        # What was before it is not its doing.
        self.changed(model)
        self._asked.setdefault(model, []).append(asked)
        try:
            yield
        except BaseException:
            self._done(model, asked)
            self.changed(model)
            raise
        before, after = self._last.get(model, Served()), self._served(model)
        if not asked.told or differs(before, after):
            self._tell(model, asked, before, after)
        self._done(model, asked)

    def _tell(self, model: str, asked: Asked, before: Served, after: Served) -> None:
        """An entry of what somebody changes."""
        self._release(model)
        asked.told = True
        self._last[model] = after
        now = self._now()
        self._put(Change(model, asked.action, asked.who, asked.message, before, after, now))

    def _done(self, model: str, asked: Asked) -> None:
        under_way = self._asked[model]
        under_way.remove(asked)
        if not under_way:
            del self._asked[model]
        self._forget_soon(model)

    def changed(self, model: str) -> None:
        """Hears that a model's route may have changed."""
        before, after = self._last.get(model, Served()), self._served(model)
        self._forget_soon(model)
        if not differs(before, after) or self._only_put_away(model, after):
            return
        asked = self._asked.get(model)
        if asked:
            # The one that began last made it; what comes too fast is told at its end.
            if self._throttle(model).allow(self._now()):
                self._tell(model, asked[-1], before, after)
            return
        self._last[model] = after
        why = cause(before, after, self._manager.models.get(model))
        who, now = self._source(model), self._now()
        held = self._held.get(model)
        if held is None:
            throttle = self._throttle(model)
            if throttle.allow(now):
                self._put(Change(model, SERVED, who, why, before, after, now))
                return
            held = self._held[model] = Held(before, after, now, now)
            loop = asyncio.get_running_loop()
            loop.call_later(throttle.wait(), self._release, model, held)
        held.take(after, now, who, why)

    def _release(self, model: str, expected: Held | None = None) -> None:
        """Makes one entry of the changes that were held."""
        held = self._held.get(model)
        if held is None or (expected is not None and held is not expected):
            return
        del self._held[model]
        self._throttle(model).allow(self._now())
        many = Change(model, SERVED, held.who, held.message(), held.before, held.after, held.at)
        self._put(replace(many, since=held.since, count=held.count))

    def _throttle(self, model: str) -> Throttle:
        found = self._throttles.get(model)
        if found is None:
            if len(self._throttles) > 2 * len(self._manager.models) + SPARE:
                now = self._now()
                self._throttles = {k: t for k, t in self._throttles.items() if not t.full(now)}
            found = self._throttles[model] = Throttle(self._now())
        return found

    def _forget_soon(self, model: str) -> None:
        """Forgets a model that is about to go, once it has."""
        managed = self._manager.models.get(model)
        if managed is None or not managed.records:
            with suppress(RuntimeError):
                asyncio.get_running_loop().call_soon(self._forget, model)

    def _forget(self, model: str) -> None:
        if model in self._manager.models or model in self._asked or model in self._held:
            return
        if not self._last.get(model, Served()).shares:
            self._last.pop(model, None)
            self._sources.pop(model, None)

    def _served(self, model: str) -> Served:
        return served_by(self._router.table.get(model), self._manager.models.get(model))

    def _only_put_away(self, model: str, after: Served) -> bool:
        """Whether a model answers as before, but has to be loaded again for it."""
        managed = self._manager.models.get(model)
        if managed is None or not managed.on_demand:
            return False
        return not after.shares and managed.available

    def _source(self, model: str) -> str:
        """Where a model is declared, or was."""
        with suppress(KeyError):
            self._sources[model] = without_secrets(self._source_of(model))
        return self._sources.get(model, "")

    def _now(self) -> float:
        """Never before the last entry, whatever happens to the system's clock; in whole
        microseconds, so that an entry's time as it is told finds the entry."""
        self._latest = max(self._latest, round(self._clock(), 6))
        return self._latest

    def _put(self, change: Change) -> None:
        writer = self._writer
        if writer is None:
            return
        self._seq += 1
        writer.add(replace(change, gateway=self._gateway, run=writer.run, seq=self._seq))

    # --- what was

    async def changes(
        self, model: str, *, limit: int = 50, until: float | None = None
    ) -> Sequence[Change]:
        """See `History.changes`."""
        return await self._ask(lambda writer: writer.store.changes(model, limit, until))

    async def past(self, model: str, at: float) -> Past:
        """See `History.past`."""
        return await self._ask(lambda writer: writer.store.past(model, at))

    async def _ask(self, question: Callable[[Writer], T]) -> T:
        writer = self._writer
        if writer is None:
            raise RegistryError("there is no history: it has not begun, or cannot be written")

        def ask() -> T:
            writer.wait_written(READ_AFTER)
            return question(writer)

        return await asyncio.to_thread(ask)
