"""What must hold before a change of a model begins."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.control.controls import Controls
from gateway.errors import Conflict, UnknownVersion
from gateway.facts import Facts
from gateway.lifecycle.routes import refused_versions
from gateway.lifecycle.states import State
from gateway.registries.traffic import Traffic
from gateway.times import local_time


class Checks:
    """Questions to what is served and what was decided. Each raises `UnknownModel`."""

    def __init__(self, facts: Facts, controls: Controls) -> None:
        self._facts = facts
        self._controls = controls

    def known(self, model: str) -> tuple[str, ...]:
        """The versions that are there, the oldest first."""
        return tuple(self._facts.managed(model).aspired.on_disk)

    def check_known(self, model: str, versions: Iterable[str]) -> None:
        """Raises `UnknownVersion`."""
        known = self.known(model)
        for version in versions:
            if version not in known:
                raise UnknownVersion(model, version, known)

    def check_not_paused(self, model: str) -> None:
        """Raises `Conflict`."""
        pause = self._controls.of(model).pause
        if pause is not None:
            why = f": {pause.message}" if pause.message else ""
            raise Conflict(
                f"'{model}' is paused since {local_time(pause.at)} by {pause.who}{why}; "
                f"'sluice resume {model}' ends that"
            )

    def is_ready(self, model: str, version: str) -> bool:
        records = self._facts.managed(model).records
        return any(r.version == version and r.state == State.READY for r in records)

    def check_spare(self, model: str, version: str) -> None:
        """Raises `Conflict` for a version that callers would miss."""
        managed = self._facts.managed(model)
        traffic = managed.traffic
        total = sum(traffic.weights.values()) or 1.0
        share = traffic.weights.get(version, 0.0) / total * 100
        if share or traffic.stable_version() == version:
            what = f"has {share:.4g} % of the traffic" if share else "is the stable one"
            raise Conflict(
                f"version {version} of '{model}' {what}; give it to others first, with "
                f"'sluice split' or 'sluice promote', or unload the whole model"
            )
        left_out = self._controls.of(model).without_versions
        if {v for v in managed.servables() if v not in left_out} == {version}:
            raise Conflict(
                f"version {version} is the only one of '{model}' that is ready; unload the whole "
                f"model: 'sluice unload {model}'"
            )

    def check_declarable(self, model: str, traffic: Traffic) -> None:
        """Raises `Conflict` where the registry's split does not count, and for a version whose
        inputs or outputs differ from the stable one's, as far as they are loaded; the others are
        compared when they are, before they get anything."""
        if self._controls.of(model).files:
            raise Conflict(
                f"'{model}' is served from the files of a load request, whose newest version "
                f"takes everything; 'sluice load {model}' goes back to its registry"
            )
        managed = self._facts.managed(model)
        weights = {version: weight for version, weight in traffic.weights.items() if weight}
        loaded = managed.servables()
        refused = refused_versions(managed, loaded, weights, traffic.stable_version())
        for version, why in refused.items():
            raise Conflict(f"version {version} of '{model}' {why}")
