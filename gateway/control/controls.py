"""Between the registries and the lifecycle: lays people's decisions over the wanted state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gateway.config import ControlConfig
from gateway.control.documents import Control, Documents
from gateway.control.files import Uploads
from gateway.control.overlay import overlaid, pins
from gateway.errors import InvalidModelSettings, RegistryError
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredModel, Registry
from gateway.registries.traffic import Traffic
from gateway.state import StateDir
from gateway.telemetry.logs import log

EVERYTHING: Final = "*"

Changed = tuple[list[AspiredModel], list[str]]
"""Models wanted as given, and names of those that are gone: for `Manager.apply`."""


class Controls:
    """The documents of all models, and what their registries last said. For the event loop."""

    def __init__(
        self,
        config: ControlConfig,
        state: StateDir,
        registry_of: Callable[[str], Registry],
    ) -> None:
        self.documents = Documents(state)
        self.uploads = Uploads(state)
        self.raw: dict[str, AspiredModel] = {}
        """What the registries want, before anything is laid over it."""
        self._explicit = config.explicit
        self._at_start = frozenset(config.load)
        self._registry_of = registry_of
        self._controls: dict[str, Control] = {}
        self._files: dict[str, dict[str, Path]] = {}
        self._held: dict[str, AspiredModel] = {}
        """Paused models as they are held."""
        self._pinned: dict[str, frozenset[str]] = {}
        self._not_pinned: set[str] = set()
        """Models whose registry could not be told of versions; it is, at its next look."""
        self._moment = 0
        self._written: dict[str, tuple[int, Traffic]] = {}
        """The latest splits that were stored here, and when."""

    def start(self, registries: Sequence[Registry]) -> None:
        """Reads the documents, before the registries are looked at for the first time; blocking."""
        self._controls = self.documents.read()
        named = {name: c.files for name, c in self._controls.items() if c.files}
        self.uploads.keep_all(named)
        for name, load in named.items():
            self._files[name] = self.uploads.versions(name, load)
        for name, control in self._controls.items():
            pinned = pins(AspiredModel(name, {}), control) if not control.config else frozenset(
                control.with_versions
            )  # fmt: skip
            if pinned:
                self._pinned[name] = pinned
                for registry in registries:
                    with suppress(RegistryError):
                        registry.pin(name, pinned)

    def of(self, model: str) -> Control:
        """A model's document; the empty one where nobody has decided anything."""
        return self._controls.get(model) or Control(model=model)

    def is_loaded(self, model: str) -> bool:
        """Whether it is to be loaded, as far as people decide that."""
        loaded = self.of(model).loaded
        return self.at_once(model) if loaded is None else loaded

    def at_once(self, model: str) -> bool:
        return not self._explicit or bool({model, EVERYTHING} & self._at_start)

    # --- from the registries

    @property
    def moment(self) -> int:
        """Now, for `take`: to be asked before a registry is looked at."""
        return self._moment

    def take(
        self, wanted: Iterable[AspiredModel], gone: Iterable[str], began: int | None = None
    ) -> Changed:
        """What a registry's new state means, with the documents laid over it: of the models of
        which it says something new.

        `began` is the moment at which the look began: a split that was stored since still counts.
        """
        changed: list[AspiredModel] = []
        dropped: list[str] = []
        for aspired in wanted:
            name = aspired.name
            if self._written:
                aspired = self._with_written(aspired, began)
            before = self.raw.get(name)
            if (before is aspired or before == aspired) and name not in self._not_pinned:
                continue
            self.raw[name] = aspired
            changed += self.now(name)[0]
        for name in gone:
            self.raw.pop(name, None)
            self._pinned.pop(name, None)
            self._not_pinned.discard(name)
            self._written.pop(name, None)
            still, away = self.now(name)
            changed += still
            dropped += away
        return changed, dropped

    def _with_written(self, aspired: AspiredModel, began: int | None) -> AspiredModel:
        written = self._written.get(aspired.name)
        if written is None:
            return aspired
        moment, traffic = written
        if began is None or began >= moment:
            return aspired
        return replace(aspired, traffic=traffic)

    def uploaded_alone(self) -> Changed:
        """Models that exist only by the files of a load, for the start."""
        return [m for name in self._files if name not in self.raw for m in self.now(name)[0]], []

    def now(self, model: str) -> Changed:
        """The state that is wanted of one model now."""
        control = self.of(model)
        held = self._held.get(model)
        if control.pause is not None and held is not None:
            return [held], []
        raw = self.raw.get(model)
        files = self._files.get(model)
        if raw is None:
            if files is None:
                return [], [model]
            raw = AspiredModel(model, {})
        self._pin(raw, control)
        try:
            wanted = overlaid(raw, control, explicit=not self.at_once(model), files=files)
        except InvalidModelSettings as error:  # it was accepted by another release
            wanted = replace(raw, error=str(error))
        if control.pause is not None:
            self._held[model] = wanted
        return [wanted], []

    def _pin(self, raw: AspiredModel, control: Control) -> None:
        try:
            wanted = pins(raw, control)
        except InvalidModelSettings:
            return
        if wanted == self._pinned.get(raw.name, frozenset()):
            self._not_pinned.discard(raw.name)
            return
        try:
            registry = self._registry_of(raw.name)
            registry.pin(raw.name, wanted)
        except (KeyError, RegistryError) as error:
            log.error("%s: versions cannot be loaded by hand: %s", raw.name, error)
            self._not_pinned.add(raw.name)
            return
        self._not_pinned.discard(raw.name)
        self._pinned[raw.name] = wanted
        registry.hint()

    # --- from people

    def put(self, control: Control) -> None:
        """From now on this document counts; see `now` for what it means."""
        name = control.model
        before = self._controls.pop(name, None)
        if not control.empty:
            self._controls[name] = control
        if control.files != (before.files if before is not None else ""):
            self._files.pop(name, None)
            if control.files:
                self._files[name] = self.uploads.versions(name, control.files)
        if control.pause is None:
            self._held.pop(name, None)

    def hold(self, aspired: AspiredModel) -> None:
        """A paused model stays as given."""
        self._held[aspired.name] = aspired

    def set_traffic(self, model: str, traffic: Traffic) -> None:
        """The registry has stored a split; until it is looked at again this counts."""
        self._moment += 1
        raw = self.raw.get(model)
        if raw is not None:
            self.raw[model] = replace(raw, traffic=traffic)
            self._written[model] = (self._moment, traffic)

    def settings(self, model: str) -> ModelSettings:
        """The registry's settings of a model; the default where it has none."""
        raw = self.raw.get(model)
        return raw.settings if raw is not None else ModelSettings()

    def status(self, model: str) -> Mapping[str, Any]:
        """What ``sluice models`` says of the document."""
        control = self.of(model)
        pause = control.pause
        return {
            "paused": None
            if pause is None
            else {"who": pause.who, "message": pause.message, "at": pause.at},
            "control": {
                "loaded": self.is_loaded(model),
                "with_versions": list(control.with_versions),
                "without_versions": list(control.without_versions),
                "config": bool(control.config),
                "files": bool(control.files),
            },
        }
