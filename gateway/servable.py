"""One loaded version, able to infer: a runtime's model and what runs its calls."""

from __future__ import annotations

from collections.abc import Callable

from gateway.contract import Contract
from gateway.dispatch import Dispatcher
from gateway.model_settings import ModelSettings
from gateway.telemetry.stats import ServableStats
from runtimes.interface import Model


class Servable:
    """What the routing table points at.

    Whoever holds a call in the dispatcher keeps it alive: the lifecycle closes it only after
    the last call has ended.
    """

    __slots__ = (
        "_close", "_retired", "contract", "decoupled", "dispatcher", "max_batch_size", "model",
        "name", "runtime", "settings", "stats", "version",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        version: str,
        model: Model,
        dispatcher: Dispatcher,
        contract: Contract,
        settings: ModelSettings,
        *,
        runtime: str,
        max_batch_size: int,
        close: Callable[[], None],
    ) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.decoupled = model.decoupled
        """Whether a request may have any number of answers."""
        self.dispatcher = dispatcher
        self.contract = contract
        self.settings = settings
        self.runtime = runtime
        self.max_batch_size = max_batch_size
        self.stats: ServableStats = dispatcher.stats
        self._close = close
        self._retired = False

    @property
    def idle(self) -> bool:
        """Whether no call waits or runs."""
        return self.dispatcher.pending == 0

    def close(self) -> None:
        """Gives everything back; the lifecycle calls it once, when idle."""
        if not self._retired:
            self._retired = True
            self.dispatcher.close()
            self._close()
