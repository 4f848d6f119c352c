"""MLflow's registry as a source of models."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from gateway.artifacts.mlflow import MlflowOrigin
from gateway.config import Config
from gateway.errors import InvalidModelSettings, RegistryError
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredModel, AspiredVersion, Snapshot
from gateway.registries.choice import loading_key
from gateway.registries.mlflow.client import Client
from gateway.registries.mlflow.documents import Registered, Version
from gateway.registries.mlflow.notes import Notes
from gateway.registries.mlflow.opening import open_client, rules
from gateway.registries.mlflow.reading import Reader
from gateway.registries.mlflow.selection import (
    bad_name,
    choose,
    in_order,
    is_selected,
    parse_selector,
)
from gateway.registries.mlflow.settings import DEFAULTS, settings_of
from gateway.registries.mlflow.traffic import Read, Roles, traffic_of
from gateway.registries.mlflow.uri import Source, is_version, parse_source
from gateway.registries.mlflow.watching import Watching
from gateway.registries.mlflow.writing import write
from gateway.registries.remembered import Remembered, when
from gateway.registries.traffic import Traffic
from gateway.state import StateDir
from gateway.telemetry.logs import log

WRITE_WAIT: Final = 10.0
"""Seconds for which a split waits while the registry is being read."""


class MlflowRegistry:
    """See `gateway.registries.base.Registry`."""

    def __init__(
        self,
        source: str,
        config: Config,
        state: StateDir | None,
        client: Client | None = None,
    ) -> None:
        self._what: Source = parse_source(source)
        self.source = self._what.name
        self.ignored: dict[str, str] = {}
        """Registered models that are not served, and why."""
        self.trouble = ""
        """Why the registry cannot be read now, and what is served instead; empty: it can."""
        own = config.mlflow
        self._patterns = own.models
        self._tags = own.tags
        chosen = (self._what.version,) if self._what.model else own.versions
        self._selectors = [parse_selector(text) for text in chosen]
        self._chosen = ", ".join(map(str, self._selectors))
        self._roles = Roles(own.stable, own.canary)
        if not own.stable or not own.canary or own.stable == own.canary:
            raise RegistryError(
                f"mlflow.stable '{own.stable}' and mlflow.canary '{own.canary}' must be two "
                "aliases, such as champion and challenger"
            )
        self._client = client or open_client(self._what.place)
        self._rules = rules(self._what.place, own.local_artifacts)
        self._reader = Reader(self._client, self._what.place.name)
        self._remembered = Remembered(state, self.source)
        self._lock = threading.Lock()  # scanning and writing are for different threads
        self._state = threading.Lock()
        """Held for what a look has found; `_lock` is held while it asks, too."""
        self._watching = Watching(self, config.registry.poll_seconds)
        self._snapshot: Snapshot | None = None
        self._good: dict[str, AspiredModel] = {}
        self._notes = Notes(self.source)
        self._pinned: dict[str, frozenset[str]] = {}
        self._pins_changed = False
        self._outdated = False
        self._saved = False
        self._written: dict[str, Registered] = {}

    # --- reading

    def scan(self) -> Snapshot:
        """See `Registry.scan`. At the first look, what is remembered stands in for a registry
        that cannot be read."""
        with self._lock:
            try:
                new = self._reader.read(
                    lambda model: self._is_ours(model) and not bad_name(model.name)
                )
            except RegistryError as error:
                with self._state:
                    if self._snapshot is not None:
                        raise
                    return self._stand_in(error)
            with self._state:
                if self.trouble:
                    self.trouble = ""
                    log.info("%s can be read again", self.source)
                self._written.clear()
                self._outdated |= new
                if self._outdated or self._snapshot is None or self._pins_changed:
                    self._pins_changed = False
                    self._snapshot = self._build()
                    self._outdated = False
                if new or not self._saved:
                    self._saved = True
                    self._remembered.save(self._reader.remembered())
                else:
                    self._remembered.confirm()
                return self._snapshot

    def stand_in(self, why: str) -> Snapshot | None:
        """See `Elsewhere.stand_in`."""
        with self._state:
            if self._snapshot is None and self._remembered.load() is not None:
                try:
                    return self._stand_in(RegistryError(why))
                except RegistryError:
                    return None  # the look that goes on says what is wrong
            return self._snapshot

    def close(self) -> None:
        """See `Elsewhere.close`."""
        self._remembered.flush()

    def _stand_in(self, error: RegistryError) -> Snapshot:
        """What the registry said before this gateway was started. Raises `error` without it."""
        kept = self._remembered.load()
        if kept is None:
            raise RegistryError(
                f"{error}; nothing is remembered of it here, so it must be there for the first "
                "start"
            ) from None
        content, seen = kept
        try:
            self._reader.restore(content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise RegistryError(f"{error}; what is remembered of it cannot be read") from None
        self.trouble = f"{error}; serving what it said at {when(seen)}, from the cache"
        log.warning("%s", self.trouble)
        self._snapshot = self._build()
        return self._snapshot

    def _is_ours(self, model: Registered) -> bool:
        if self._what.model:
            return model.name == self._what.model
        return is_selected(model, self._patterns, self._tags)

    def _build(self) -> Snapshot:
        known = self._reader.known
        snapshot: dict[str, AspiredModel] = {}
        ignored: dict[str, str] = {}
        for name, registered in known.models.items():
            if not self._is_ours(registered):
                continue
            if why := bad_name(name):
                ignored[name] = why
            else:
                model = self._model(registered, known.versions.get(name, ()))
                if model.versions or model.error:
                    snapshot[name] = model
                else:
                    ignored[name] = f"it has no version that is {self._chosen}"
        if self._what.model and self._what.model not in known.models:
            ignored[self._what.model] = "no such model is registered"
        self.ignored = ignored
        self._notes.ignored(ignored)
        self._good = {
            name: replace(model, error="")
            if not model.error
            else self._good.get(name, replace(model, error=""))
            for name, model in snapshot.items()
        }
        return snapshot

    def _model(self, registered: Registered, versions: tuple[Version, ...]) -> AspiredModel:
        """The model as its aliases and tags want it; where one cannot be read, as it was."""
        name = registered.name
        good = self._good.get(name)
        errors: list[str] = []
        try:
            read = traffic_of(registered, self._roles)
        except InvalidModelSettings as error:
            errors.append(str(error))
            labels = {a: v for a, v in registered.by_alias.items() if not is_version(a)}
            read = Read(good.traffic if good else Traffic(labels=labels))
        for lost in read.lost:
            self._notes.once(
                name,
                f"the tag sluice.traffic names '{lost}', which is no alias or version; its part "
                "goes to the others",
            )
        settings: ModelSettings | None
        try:
            settings = settings_of(registered)
        except InvalidModelSettings as error:
            errors.append(str(error))
            settings = good.settings if good else None
        traffic = read.traffic
        if self._what.model:
            # The one choice takes everything, whatever the split of the model is.
            traffic = Traffic(labels=traffic.labels, sticky=traffic.sticky)
        named = set(self._pinned.get(name, ()))
        named |= set(traffic.weights) | ({traffic.stable} if traffic.stable else set())
        choice = choose(registered, versions, self._selectors, named)
        key = loading_key(settings) if settings is not None else ""
        aspired: dict[str, AspiredVersion] = {}
        for each in choice.usable if settings is not None else ():
            aspired[each.version] = self._version(registered, each, key)
        if choice.unready or choice.missing:
            errors += [
                f"version {each.version} is {each.status} in MLflow" for each in choice.unready
            ]
            errors += [
                f"version {version}, which the alias '{alias}' names, is not in MLflow's list"
                for version, alias in choice.missing.items()
            ]
            if good is not None:
                # What an alias moved away from stays until the other one can be had.
                there = {each.version for each in versions} | choice.missing.keys()
                aspired = {**{v: a for v, a in good.versions.items() if v in there}, **aspired}
                aspired = dict(sorted(aspired.items(), key=lambda item: int(item[0])))
                traffic = good.traffic
        if self._what.model:
            here = {label: v for label, v in traffic.labels.items() if v in aspired}
            traffic = msgspec.structs.replace(traffic, labels=here)
        return AspiredModel(
            name,
            aspired,
            settings if settings is not None else DEFAULTS,
            traffic,
            tuple(each.version for each in in_order(versions)),
            "; ".join(errors),
        )

    def _version(self, registered: Registered, version: Version, key: Hashable) -> AspiredVersion:
        created = (version.creation_timestamp, registered.creation_timestamp)
        return AspiredVersion(
            version.version,
            Path(),
            (key, version.source, *created),
            f"{self._what.place.name}/models:/{version.name}/{version.version}",
            self._origin(version),
        )

    def _origin(self, version: Version) -> MlflowOrigin:
        return MlflowOrigin(
            self._what.place.name,
            version.source,
            str(version.creation_timestamp),
            version.name,
            version.version,
            self._client,
            self._rules,
        )

    # --- watching

    async def watch(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """See `Registry.watch`: asks every `registry.poll_seconds`, and at each hint."""
        await self._watching.run(changed)

    def hint(self) -> None:
        """See `Registry.hint`."""
        self._watching.hint()

    def pin(self, model: str, versions: frozenset[str]) -> None:
        """See `Registry.pin`."""
        if self._pinned.get(model, frozenset()) != versions:
            self._pins_changed = True
        if versions:
            self._pinned[model] = versions
        else:
            self._pinned.pop(model, None)

    # --- writing

    def write_traffic(self, model: str, traffic: Traffic) -> Traffic:
        """See `Registry.write_traffic`: aliases and tags in MLflow, which stays the only truth."""
        if self._what.model:
            raise RegistryError(
                f"{self.source} is one version and has no split; serve {self._what.place.name} "
                "to split or promote"
            )
        if not self._lock.acquire(timeout=WRITE_WAIT):
            raise RegistryError(
                f"{self.source} is being read, and answers slowly; nothing was written: try again"
            )
        try:
            try:
                # What was written since the last look holds, too.
                seen = self._written.get(model) or self._reader.known.models.get(model)
                after = write(self._client, seen, traffic, self._roles)
                self._written[model] = after
            finally:
                self._watching.wrote()
        finally:
            self._lock.release()
        try:
            return traffic_of(after, self._roles).traffic  # the aliases are labels, and have moved
        except InvalidModelSettings:
            return traffic
