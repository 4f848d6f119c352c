"""Models that change without a gateway, for tests of the record."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway.config import HistoryConfig
from gateway.history.recorder import Recorder
from gateway.lifecycle.model import ManagedModel
from gateway.lifecycle.routes import route_of
from gateway.lifecycle.states import Record, State
from gateway.registries.base import AspiredModel, AspiredVersion
from gateway.registries.traffic import Traffic
from gateway.routing import Router
from gateway.state import StateDir

SOURCE = "s3://models"


class World:
    """What a manager and a router hold, changed by hand."""

    def __init__(self) -> None:
        self.models: dict[str, ManagedModel] = {}
        self.on_change: list[Any] = []
        self.router: Router[Any] = Router()

    def recorder(self, state: Path, clock: Any = None, **config: Any) -> Recorder:
        more = {} if clock is None else {"clock": clock}
        manager: Any = self
        return Recorder(
            HistoryConfig(**config), StateDir(state), manager, self.router, lambda _: SOURCE, **more
        )

    def model(self, name: str) -> ManagedModel:
        if name not in self.models:
            self.models[name] = ManagedModel(AspiredModel(name, {}))
        return self.models[name]

    def ready(self, name: str, version: str, files: Hashable = "a", *, tell: bool = True) -> None:
        """A version is loaded; an earlier load of it goes."""
        model = self.model(name)
        self._drop(model, version)
        aspired = AspiredVersion(version, Path("/m") / version, files, f"{SOURCE}/{name}/{version}")
        record = Record(aspired)
        contract = SimpleNamespace(inputs=(), outputs=())
        servable: Any = SimpleNamespace(version=version, contract=contract)
        record.servable, record.runtime = servable, "onnx"
        record.move(State.READY)
        model.records.append(record)
        self._aspire(model, {**model.aspired.versions, version: aspired})
        self.tell(name, tell=tell)

    def failed(self, name: str, version: str, cause: str = "no memory") -> None:
        """A version breaks."""
        model = self.model(name)
        for record in model.records:
            if record.version == version:
                record.servable = None
                record.move(State.FAILED, cause)
        self.tell(name)

    def gone(self, name: str, version: str) -> None:
        """A version is not wanted any more."""
        model = self.model(name)
        self._drop(model, version)
        kept = {v: a for v, a in model.aspired.versions.items() if v != version}
        self._aspire(model, kept)
        self.tell(name)

    def split(self, name: str, **traffic: Any) -> None:
        model = self.model(name)
        self._aspire(model, model.aspired.versions, Traffic(**traffic))
        self.tell(name)

    def tell(self, name: str, *, tell: bool = True) -> None:
        self.router.publish(route_of(self.models[name]))
        for listener in self.on_change if tell else ():
            listener(name)

    def shares(self, name: str) -> dict[str, float]:
        """What the table says itself."""
        route = self.router.table.get(name)
        weights = dict(route.effective) if route is not None else {}
        total = sum(weights.values()) or 1.0
        return {version: round(weight / total * 100, 6) for version, weight in weights.items()}

    def _drop(self, model: ManagedModel, version: str) -> None:
        model.records = [record for record in model.records if record.version != version]

    def _aspire(
        self,
        model: ManagedModel,
        versions: Mapping[str, AspiredVersion],
        traffic: Traffic | None = None,
    ) -> None:
        ordered: Iterable[str] = sorted(versions, key=int)
        model.aspired = AspiredModel(
            model.name,
            {v: versions[v] for v in ordered},
            model.aspired.settings,
            model.traffic if traffic is None else traffic,
            tuple(ordered),
        )
