"""When each model was first as it should be: what a rollback has to know of starts."""

from __future__ import annotations

import asyncio
import time

from gateway.control.rollback import Start
from gateway.lifecycle.manager import Manager


class Starts:
    """Listens to the manager. For the event loop."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._at = time.time()
        self._settled: dict[str, float] = {}
        manager.on_change.append(self._changed)

    def of(self, model: str) -> Start:
        """Of a model that is not settled yet it is now."""
        return Start(self._at, self._settled.get(model, time.time()))

    def _changed(self, model: str) -> None:
        managed = self._manager.models.get(model)
        if model in self._settled:
            if managed is None or not managed.records:
                # It may leave: then its return is a start.
                asyncio.get_running_loop().call_soon(self._look_after, model)
        elif managed is not None and managed.settled:
            self._settled[model] = 0.0
            # Once the history has heard of it as well.
            asyncio.get_running_loop().call_soon(self._settle, model)

    def _settle(self, model: str) -> None:
        self._settled[model] = time.time()
        self._look_after(model)

    def _look_after(self, model: str) -> None:
        if model not in self._manager.models:
            self._settled.pop(model, None)
