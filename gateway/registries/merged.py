"""Several registries as one: the first that names a model owns it, until it drops it."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.registries.base import AspiredModel, Registry, Snapshot
from gateway.telemetry.logs import log


class Merged:
    """Whose each model is. Owned by the event loop."""

    def __init__(self, registries: Sequence[Registry]) -> None:
        self._registries = registries
        self._snapshots: dict[Registry, Snapshot] = {}
        self._owner: dict[str, Registry] = {}
        self._told: set[tuple[Registry, str]] = set()

    def owner(self, model: str) -> Registry:
        """Where the model comes from. Raises `KeyError`."""
        return self._owner[model]

    def take(self, registry: Registry, snapshot: Snapshot) -> tuple[list[AspiredModel], list[str]]:
        """What a registry's new state changes: models wanted as given, and names that are gone."""
        self._snapshots[registry] = snapshot
        wanted: list[AspiredModel] = []
        gone: list[str] = []
        for name, model in snapshot.items():
            owner = self._owner.setdefault(name, registry)
            if owner is registry:
                wanted.append(model)
            elif (registry, name) not in self._told:
                self._told.add((registry, name))
                log.error(
                    "%s: model '%s' is in %s already and served from there; rename one",
                    registry.source, name, owner.source,
                )  # fmt: skip
        for name in [n for n, o in self._owner.items() if o is registry and n not in snapshot]:
            heir = next((r for r in self._registries if name in self._snapshots.get(r, {})), None)
            if heir is None:
                del self._owner[name]
                gone.append(name)
            else:
                log.info("%s: served from %s from now on", name, heir.source)
                self._owner[name] = heir
                self._told.discard((heir, name))
                wanted.append(self._snapshots[heir][name])
        return wanted, gone
