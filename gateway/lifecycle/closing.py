"""Closes servables and models, each in a thread of its own: one that hangs holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Protocol

from gateway.lifecycle.loading import one_line
from gateway.telemetry.logs import log


class Closable(Protocol):
    """A servable or model; `close` blocks, for as long as the model likes."""

    def close(self) -> None: ...


class Closings:
    """What is being closed; for the event loop.

    The threads do not keep the process from ending: a model's `close` may never return.
    """

    def __init__(self) -> None:
        self._running: dict[int, tuple[str, Closable, asyncio.Future[None]]] = {}
        """By identity: models need not be hashable."""

    def start(self, label: str, servable: Closable) -> asyncio.Future[None]:
        """Closes it, unless that is under way; failures are logged. Done when it is closed."""
        key = id(servable)
        if key in self._running:
            return self._running[key][2]
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._running[key] = label, servable, future

        def ended() -> None:
            del self._running[key]
            future.set_result(None)

        def work() -> None:
            try:
                servable.close()
            except (Exception, SystemExit) as error:
                log.error(
                    "%s: closing failed: %s: %s", label, type(error).__name__, one_line(error)
                )
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(ended)

        threading.Thread(target=work, name=f"close {label}", daemon=True).start()
        return future

    async def close(self, label: str, servable: Closable) -> None:
        """As `start`, waited for; being cancelled stops the waiting alone."""
        await asyncio.shield(self.start(label, servable))

    async def wait(self, seconds: float) -> None:
        """Waits until all is closed, but not longer than `seconds`; what is not, is logged."""
        running = [future for _, _, future in self._running.values()]
        if running:
            await asyncio.wait(running, timeout=seconds)
        for label, _, _ in self._running.values():
            log.warning("%s did not close in %g s; it is left behind", label, seconds)
