"""Loads by hand: lets a document take effect and waits for what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from gateway.control.controls import Controls
from gateway.control.documents import Control
from gateway.control.outcome import load_now, wait
from gateway.control.turns import DOCUMENT, Turns
from gateway.errors import (
    InvalidRequest,
    ModelLoadError,
    ModelNotReady,
    without_folders,
)
from gateway.lifecycle.manager import Manager
from gateway.registries.base import Registry
from gateway.routing import unknown_model

PINNED_SECONDS = 30.0
"""Longest time for a registry to tell of a version that was pinned."""
FIND_SECONDS = 2.0
"""Longest time for a registry to tell of what it was not known to have."""
LOADED = frozenset({DOCUMENT})
"""What a load touches."""


class Look(Protocol):
    """Looks at a registry (`None`: at all of them) for what is new; with `settled`, until what
    was just written there is believed, as far as the registry can be asked so."""

    async def __call__(self, registry: Registry | None, *, settled: bool = False) -> bool:
        """Whether it has looked; else it will as soon as it can."""


class Loading:
    """For the event loop; who calls sees to it that only one change of a model is under way."""

    def __init__(
        self,
        manager: Manager,
        controls: Controls,
        turns: Turns,
        registry_of: Callable[[str], Registry],
        look: Look,
        seconds: float,
    ) -> None:
        self._manager = manager
        self._controls = controls
        self._turns = turns
        self._registry_of = registry_of
        self._look = look
        self._seconds = seconds

    def apply(self, model: str, control: Control) -> None:
        """Lets a document take effect."""
        self._controls.put(control)
        self._manager.apply(*self._controls.now(model))

    async def look(self, model: str, *, settled: bool = True) -> None:
        """Has the model's registry looked at now."""
        try:
            registry = self._registry_of(model)
        except KeyError:
            return  # it exists by the files of a load alone
        await self._look(registry, settled=settled)

    async def find(self, model: str, version: str = "") -> None:
        """Looks at the registries once more for a model or version that is not known yet."""

        def known() -> bool:
            raw = self._controls.raw.get(model)
            return raw is not None and (not version or version in raw.on_disk)

        if known() or self._controls.of(model).files:
            return
        if not await self._look(None, settled=True):
            await wait(known, FIND_SECONDS)

    async def load(self, model: str, control: Control, versions: Sequence[str]) -> None:
        """Applies `control`, waits until these versions are ready, then stores it."""
        before = self._controls.of(model)
        await self.until_ready(model, "load", control, versions)
        await self._store(model, control, before)

    async def load_model(self, model: str, config: str, files: Mapping[str, bytes] | None) -> None:
        """Loads what is wanted of a model, as its registry says or as the request does."""
        before = self._controls.of(model)
        if model not in self._controls.raw and not files:
            if not before.files:
                raise unknown_model(model, self._controls.raw)
            if config:
                raise InvalidRequest(f"'{model}' has no registry; send its files with the config")
            await self.until_ready(model, "load", before, None)
            return
        name = ""
        if files:
            name = await asyncio.to_thread(self._controls.uploads.write, model, files)
        control = msgspec.structs.replace(
            before,
            loaded=None if self._controls.at_once(model) else True,
            config=config,
            files=name,
            without_versions=(),
        )
        try:
            await self.until_ready(model, "load", control, None)
            await self._store(model, control, before)
        finally:
            await self.tidy(model, before.files)

    def unloaded(self, model: str) -> Control:
        """The document of a model that was unloaded: its own files and configuration go too."""
        control = Control(model=model, loaded=None)
        if model in self._controls.raw and self._controls.at_once(model):
            control = msgspec.structs.replace(control, loaded=False)
        return control

    async def tidy(self, model: str, *more: str) -> None:
        """Deletes files of loads before, but those of the document and `more`, which may be in
        use yet."""
        names = {self._controls.of(model).files, *more} - {""}
        await asyncio.to_thread(self._controls.uploads.keep, model, names)

    async def until_ready(
        self,
        model: str,
        what: str,
        control: Control,
        versions: Sequence[str] | None,
        *,
        touches: frozenset[str] = LOADED,
    ) -> None:
        """Applies `control` and waits until these versions (`None`: all wanted) are ready; other
        changes go ahead meanwhile.

        Where one fails, or another change comes that touches the same, what was before applies
        again. Raises `ModelLoadError`, `ModelNotReady`, `Conflict`.
        """
        before = self._controls.of(model)
        self.apply(model, control)
        await self._turns.beside(
            model,
            what,
            self._loaded(model, versions),
            lambda: self.apply(model, before),
            touches=touches,
        )

    async def _loaded(self, model: str, versions: Sequence[str] | None) -> None:
        await self.look(model)
        await self._pinned(model, versions)
        why = await load_now(self._manager, model, versions, self._seconds)
        if why:
            raise ModelLoadError(f"failed to load '{model}': {without_folders(why)}")

    async def _pinned(self, model: str, versions: Sequence[str] | None) -> None:
        """Waits until the registry tells of versions that it did not before."""

        def there() -> bool:
            managed = self._manager.models.get(model)
            wanted = managed.aspired.versions if managed is not None else {}
            return all(version in wanted for version in versions or ())

        if not await wait(there, PINNED_SECONDS):
            raise ModelNotReady(
                f"version {', '.join(versions or ())} of '{model}' was not found in its source "
                f"within {PINNED_SECONDS:g} s"
            )

    async def _store(self, model: str, control: Control, before: Control) -> None:
        try:
            await asyncio.to_thread(self._controls.documents.write, control)
        except BaseException:
            self.apply(model, before)
            raise
