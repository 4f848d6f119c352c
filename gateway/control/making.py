"""How a change is made: in its turn, checked, stored, in effect, recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from gateway.config import ControlConfig
from gateway.control.checks import Checks
from gateway.control.controls import Controls
from gateway.control.documents import Control
from gateway.control.loading import Loading, Look
from gateway.control.turns import TRAFFIC, Turns
from gateway.errors import RegistryError, UnknownModel
from gateway.facts import Facts
from gateway.history.base import History
from gateway.lifecycle.manager import Manager
from gateway.registries.base import Registry
from gateway.registries.traffic import Traffic
from gateway.telemetry.logs import log
from gateway.threads import in_thread

T = TypeVar("T")


class Making:
    """What all changes share. For the event loop."""

    def __init__(
        self,
        config: ControlConfig,
        controls: Controls,
        facts: Facts,
        manager: Manager,
        history: History,
        registry_of: Callable[[str], Registry],
        look: Look,
    ) -> None:
        self._controls = controls
        self._facts = facts
        self._manager = manager
        self._history = history
        self._registry_of = registry_of
        self._checks = Checks(facts, controls)
        self._turns = Turns()
        self._loading = Loading(
            manager, controls, self._turns, registry_of, look, config.load_seconds
        )

    async def close(self) -> None:
        """Gives up what has not ended; what is stored stays. Later changes raise `Draining`."""
        await self._turns.close()

    async def _one(
        self,
        model: str,
        work: Callable[[], Awaitable[T]],
        *,
        paused: bool = False,
        known: bool = True,
        patient: bool = False,
    ) -> T:
        """See `Turns.one`; what has to hold is checked when it is the change's turn."""

        async def checked() -> T:
            if known:
                self._facts.managed(model)
            if not paused:
                self._checks.check_not_paused(model)
            return await work()

        if known:
            self._facts.managed(model)
        return await self._turns.one(model, checked, patient=patient)

    async def _declare(self, model: str, what: str, traffic: Traffic) -> None:
        """Stores new traffic in the registry, then lets it take effect."""
        self._checks.check_declarable(model, traffic)
        # A load may go on beside it, not a rollback.
        self._turns.go_ahead(model, what, frozenset({TRAFFIC}))
        try:
            registry = self._registry_of(model)
        except KeyError:  # gone from its registry, and still draining
            raise UnknownModel(model) from None
        traffic = await in_thread(registry.write_traffic, model, traffic)
        self._controls.set_traffic(model, traffic)
        self._manager.set_traffic(model, traffic)
        # Versions may be named now that are not loaded.
        await self._look_again(model, settled=False)

    async def _look_again(self, model: str, *, settled: bool) -> None:
        """Has the registry looked at after a change that is stored: it is made, come what may."""
        try:
            await self._loading.look(model, settled=settled)
        except RegistryError as error:
            log.error(
                "%s: the change is made, but its source cannot be looked at: %s", model, error
            )

    @contextmanager
    def _because(self, model: str, action: str, who: str, message: str) -> Iterator[None]:
        """What changes in the block is in the history with who and why, and in the log."""
        with self._history.because(model, action, who, message):
            yield
        log.info("%s: %s by %s%s", model, action, who, f": {message}" if message else "")

    async def _store(self, control: Control) -> None:
        await asyncio.to_thread(self._controls.documents.write, control)
