"""A whole lifecycle over made-up models: real manager, budget, demand and pipeline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway.admission import Admission
from gateway.call import ENDED, RUNNING, Call
from gateway.config import LifecycleConfig, LimitsConfig
from gateway.errors import ModelLoadError, SluiceError
from gateway.lifecycle.loading import Loaded
from gateway.lifecycle.manager import Manager
from gateway.lifecycle.probe import Findings
from gateway.lifecycle.states import State
from gateway.model_settings import ModelSettings
from gateway.pipeline import AwaitableCall, Pipeline
from gateway.registries.base import AspiredModel, AspiredVersion
from gateway.registries.traffic import Traffic
from gateway.routing import Router
from gateway.tensors import DATATYPES, InferenceRequest, InferenceResponse, Tensor

PATIENCE = 60.0
MIB = 2**20
ONE = (Tensor("x", DATATYPES["FP32"], (1, 1), bytes(4)),)


class CountedCall(AwaitableCall):
    """Counts its ends."""

    __slots__ = ("ends", "error", "served_by")
    protocol = "grpc"

    def __init__(self, model: str, version: str = "", deadline: float | None = None) -> None:
        now = time.perf_counter()
        super().__init__(
            InferenceRequest(model, version, ONE), now, None if deadline is None else now + deadline
        )
        self.ends = 0
        self.error: SluiceError | None = None
        self.served_by = ""

    def _replied(self, response: InferenceResponse) -> None:
        self.ends += 1
        self.served_by = response.version
        super()._replied(response)

    def _failed(self, error: SluiceError) -> None:
        self.ends += 1
        self.error = error
        super()._failed(error)
        self.future.exception()

    def _cancelled(self) -> None:
        self.ends += 1
        super()._cancelled()


class FakeDispatcher:
    """Keeps calls until `finish`; has no more than it is given."""

    elsewhere = False

    def __init__(self, version: str) -> None:
        self.version = version
        self.calls: list[Call] = []
        self.on_broken: Any = None
        self.now = time.perf_counter
        self.closed = False

    @property
    def pending(self) -> int:
        return len(self.calls)

    def submit(self, call: Call) -> None:
        assert not self.closed, "a call came to a version that is closed"
        call.owner = self  # type: ignore[assignment]
        call.state = RUNNING
        self.calls.append(call)

    def cancelled(self, call: Call, *, waiting: bool) -> None:
        self.calls.remove(call)

    def finish(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            assert call.state != ENDED
            call.reply(InferenceResponse(call.request.model, self.version, ()))


class FakeServable:
    decoupled = False

    def __init__(self, name: str, version: str, model: Any) -> None:
        self.name = name
        self.version = version
        self.model = model
        self.dispatcher = FakeDispatcher(version)
        self.stats = SimpleNamespace(last_inference=0, failed=lambda *args: None)
        self.contract = SimpleNamespace(inputs=(), outputs=())

    @property
    def idle(self) -> bool:
        return self.dispatcher.pending == 0

    def close(self) -> None:
        assert self.idle, "closed while a request held it"
        self.dispatcher.closed = True


class FakeLoader:
    """Loads at once, unless a gate is shut. Files called ``broken`` do not load."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.sizes: dict[str, int] = {}
        """Model → MiB."""
        self.broken: set[str] = set()
        """Models that fail to load, whatever their files."""
        self.gates: dict[str, threading.Event] = {}
        self.servables: list[FakeServable] = []

    def shut(self, model: str) -> threading.Event:
        gate = self.gates[model] = threading.Event()
        return gate

    def estimate(self, name: str, aspired: AspiredVersion, settings: Any) -> int:
        return self.sizes.get(name, 10) * MIB

    def load(self, name: str, aspired: AspiredVersion, settings: Any, warming: Any) -> Loaded:
        self.loads.append(f"{name}/{aspired.version}")
        gate = self.gates.get(name)
        if gate is not None:
            assert gate.wait(PATIENCE)
        if name in self.broken or aspired.fingerprint == "broken":
            raise ModelLoadError(f"{name}/{aspired.version} is broken")
        model: Any = SimpleNamespace(
            close=lambda: None, elsewhere=False, sequences=False, decoupled=False
        )
        return Loaded(model, "fake", Findings(0))

    def servable(self, name: str, version: str, loaded: Loaded, settings: object) -> Any:
        made = FakeServable(name, version, loaded.model)
        self.servables.append(made)
        return made


class World:
    """Everything wired together; made on a running event loop."""

    def __init__(self, fetcher: Any = None, **config: Any) -> None:
        self.loader = FakeLoader()
        self.router: Router[Any] = Router()
        loader: Any = self.loader
        settings = {"retry_seconds": 100.0, "on_demand_wait": PATIENCE, **config}
        self.manager = Manager(loader, self.router, LifecycleConfig(**settings), fetcher)
        self.pipeline = Pipeline(self.router, Admission(LimitsConfig()))
        self.pipeline.demand = self.manager.demand
        self.calls: list[CountedCall] = []

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        for gate in self.loader.gates.values():
            gate.set()
        await self.manager.close()

    def apply(self, *models: AspiredModel, gone: tuple[str, ...] = ()) -> None:
        self.manager.apply(models, gone)

    def ask(self, model: str, version: str = "", deadline: float | None = None) -> CountedCall:
        call = CountedCall(model, version, deadline)
        self.calls.append(call)
        self.pipeline.serve(call)
        return call

    async def answer(self, call: CountedCall) -> str:
        """The version that answers it, or its error's text."""

        def done() -> bool:
            self.finish()
            return call.state == ENDED

        await self.until(done)
        return call.served_by or str(call.error)

    def finish(self) -> None:
        """Answers all calls that are with a model."""
        for servable in self.loader.servables:
            servable.dispatcher.finish()

    def loaded(self) -> set[str]:
        return {
            f"{record.model}/{record.version}"
            for model in self.manager.models.values()
            for record in model.records
            if record.state == State.READY
        }

    async def until(self, condition: Callable[[], object], what: str = "it") -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}"
            await asyncio.sleep(0.002)


def aspired(
    name: str,
    *versions: str,
    on_demand: bool = True,
    files: str = "good",
    weights: dict[str, float] | None = None,
    stand_ins: tuple[str, ...] = (),
    **settings: Any,
) -> AspiredModel:
    """A model with these versions."""
    return AspiredModel(
        name,
        {v: AspiredVersion(v, Path(v), files) for v in versions or ("1",)},
        ModelSettings(on_demand=on_demand, **settings),
        Traffic(weights=weights or {}),
        versions or ("1",),
        stand_ins={v: AspiredVersion(v, Path(v), "good") for v in stand_ins},
    )
