"""Every change that a person makes, whichever edge it came in by.

One change of a model at a time: checked, stored (registry or state directory) first, then in
effect, and recorded with who made it and why. A change goes on when its caller goes away.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from gateway.config import ControlConfig
from gateway.control import rollback
from gateway.control.controls import Controls
from gateway.control.documents import Pause
from gateway.control.loading import Look
from gateway.control.making import Making
from gateway.control.starts import Starts
from gateway.control.turns import EVERYTHING
from gateway.errors import (
    Conflict,
    InvalidRequest,
    ModelNotReady,
    printable,
)
from gateway.facts import Facts
from gateway.history.base import History
from gateway.lifecycle.manager import Manager
from gateway.lifecycle.routes import by_age
from gateway.lifecycle.states import State
from gateway.registries.base import Registry
from gateway.registries.traffic import Traffic

LONGEST_MESSAGE = 1000
HISTORY = 1000
"""Entries among which a rollback looks."""

T = TypeVar("T")


class Changes(Making):
    """The service behind admin API, repository API and command line. For the event loop.

    Every method raises `Conflict` while the model is paused, `UnknownModel`, and what its own
    text names; who and message are recorded.
    """

    def __init__(
        self,
        config: ControlConfig,
        controls: Controls,
        facts: Facts,
        manager: Manager,
        history: History,
        registry_of: Callable[[str], Registry],
        look: Look,
    ) -> None:
        super().__init__(config, controls, facts, manager, history, registry_of, look)
        self._starts = Starts(manager)

    # --- traffic

    async def split(self, model: str, asked: Traffic, who: str, message: str) -> None:
        """Sets weights, and stable version and sticky key where given. Raises `UnknownVersion`,
        `RegistryError`, and `Conflict` for a version whose signature differs."""

        async def work() -> None:
            self._checks.check_known(model, asked.weights)
            if asked.stable is not None:
                self._checks.check_known(model, [asked.stable])
            old = self._facts.managed(model).traffic
            stable = asked.stable
            if stable is None and old.stable in asked.weights:
                stable = old.stable
            traffic = msgspec.structs.replace(
                old, weights=asked.weights, stable=stable, sticky=asked.sticky or old.sticky
            )
            with self._because(model, "split", who, message):
                await self._declare(model, "split", traffic)

        await self._one(model, work)

    async def promote(self, model: str, version: str, who: str, message: str) -> None:
        """Gives a version, or what a label stands for, everything, and makes it stable. Raises
        `UnknownVersion`, `ModelNotReady`, `RegistryError`."""

        async def work() -> None:
            found = self._facts.status(model)["labels"].get(version, version)
            self._checks.check_known(model, [found])
            if not self._checks.is_ready(model, found):
                raise ModelNotReady(
                    f"version {found} of '{model}' is not ready; promote it when `sluice models` "
                    "shows it ready"
                )
            old = self._facts.managed(model).traffic
            traffic = msgspec.structs.replace(old, weights={found: 100.0}, stable=found)
            with self._because(model, "promote", who, message):
                await self._declare(model, "promote", traffic)

        await self._one(model, work)

    async def labels(
        self, model: str, change: Callable[[Mapping[str, str]], dict[str, str]], who: str,
        message: str,
    ) -> None:  # fmt: skip
        """Sets the labels that were set this way, given as a function of those before. Raises
        `InvalidRequest`, `UnknownVersion`, `RegistryError`."""

        async def work() -> None:
            old = self._facts.managed(model).traffic
            labels = change(old.labels)
            self._checks.check_known(model, labels.values())
            for label in labels:
                if label.isdigit() or not label:
                    raise InvalidRequest(
                        f"label '{printable(label)}' looks like a version; use a word"
                    )
            with self._because(model, "labels", who, message):
                await self._declare(model, "labels", msgspec.structs.replace(old, labels=labels))

        await self._one(model, work)

    async def rollback(self, model: str, to: int | None, who: str, message: str) -> None:
        """Declares again what was declared before the latest change of split or labels, or what
        was after entry `to` of the history. Waits until every version that it needs is ready, so
        that its answer means that they answer. Raises `NotFound`, `Conflict`, `ModelLoadError`
        for a version that cannot be loaded, `RegistryError`."""

        async def work() -> None:
            if not self._history.enabled:
                raise Conflict(
                    "there is no history to roll back by: history.enabled is false; use "
                    "'sluice split' or 'sluice promote'"
                )
            changes = await self._history.changes(model, limit=HISTORY)
            start = self._starts.of(model)
            traffic = rollback.target(model, changes, self._checks.known(model), to, start)
            if traffic == self._facts.managed(model).traffic:
                raise Conflict(f"there is nothing to roll back: '{model}' is declared that way now")
            self._turns.go_ahead(model, "rollback")
            control = self._controls.of(model)
            needed = {v for v, weight in traffic.weights.items() if weight}
            needed |= {traffic.stable} if traffic.stable is not None else set()
            if not needed:  # the newest of those wanted takes everything
                needed = set(list(self._facts.managed(model).aspired.versions)[-1:])
            left_out = sorted(needed & set(control.without_versions))
            if left_out or not self._controls.is_loaded(model):
                raise Conflict(
                    f"cannot roll '{model}' back to what is unloaded; first "
                    f"'sluice load {' '.join([model, *left_out[:1]])}'"
                )
            with self._because(model, "rollback", who, message):
                more = msgspec.structs.replace(
                    control, with_versions=tuple(sorted({*control.with_versions, *needed}))
                )
                await self._loading.until_ready(
                    model, "rollback", more, sorted(needed), touches=EVERYTHING
                )
                try:
                    await self._declare(model, "rollback", traffic)
                finally:  # the split names them now
                    self._loading.apply(model, control)

        await self._one(model, work)

    # --- pause

    async def pause(self, model: str, who: str, message: str) -> None:
        """From now on nothing changes this model but `resume`: neither its registry nor people.
        Raises `ConfigError` where the state directory cannot be written."""

        async def work() -> None:
            self._turns.go_ahead(model, "pause")
            managed = self._facts.managed(model)
            aspired = managed.aspired
            ready = {r.version for r in managed.records if r.state == State.READY}
            others = {*managed.desired, *ready} - aspired.versions.keys()
            pause = Pause(
                who=who,
                message=message,
                at=time.time(),
                versions=tuple(aspired.versions),
                stand_ins=tuple(sorted(others, key=by_age, reverse=True)),
                settings=aspired.settings,
                traffic=aspired.traffic,
            )
            control = msgspec.structs.replace(self._controls.of(model), pause=pause)
            with self._because(model, "pause", who, message):
                await self._store(control)
                self._controls.hold(aspired)
                self._controls.put(control)

        await self._one(model, work)

    async def resume(self, model: str, who: str, message: str) -> None:
        """Ends a pause; what the registry wants by now is applied. Raises `Conflict` for a model
        that is not paused."""

        async def work() -> None:
            control = self._controls.of(model)
            if control.pause is None:
                raise Conflict(f"'{model}' is not paused")
            control = msgspec.structs.replace(control, pause=None)
            with self._because(model, "resume", who, message):
                await self._store(control)
                self._loading.apply(model, control)
            await self._look_again(model, settled=True)

        await self._one(model, work, paused=True)

    # --- loading by hand

    async def load(
        self,
        model: str,
        version: str,
        who: str,
        message: str,
        *,
        config: str = "",
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Loads a model, or one more version of it, and waits until it is ready.

        `config` is a ``ModelConfig`` in text form, in the place of the registry's settings;
        `files`, checked, take the place of its versions. Without them a load of the model goes
        back to what the registry says. A load that fails changes nothing. Raises
        `ModelLoadError`, `UnknownVersion`, `ModelNotReady` when it takes too long.
        """

        async def work() -> None:
            await self._loading.find(model, version)
            before = self._controls.of(model)
            if not files:
                self._facts.managed(model)
            with self._because(model, "load", who, message):
                if version:
                    self._checks.check_known(model, [version])
                    control = msgspec.structs.replace(
                        before,
                        loaded=True if not self._controls.is_loaded(model) else before.loaded,
                        with_versions=with_one(before.with_versions, version),
                        without_versions=without_one(before.without_versions, version),
                    )
                    await self._loading.load(model, control, [version])
                else:
                    await self._loading.load_model(model, config, files)

        await self._one(model, work, known=False, patient=True)

    async def unload(self, model: str, version: str, who: str, message: str) -> None:
        """Takes a model, or one version of it, out of the routes; what it has begun it finishes.
        Raises `UnknownVersion`, and `Conflict` for a version that has traffic."""

        async def work() -> None:
            if version:
                self._checks.check_known(model, [version])
                self._checks.check_spare(model, version)
            self._turns.go_ahead(model, "unload")
            before = self._controls.of(model)
            if version:
                control = msgspec.structs.replace(
                    before,
                    with_versions=without_one(before.with_versions, version),
                    without_versions=with_one(before.without_versions, version),
                )
            else:
                control = self._loading.unloaded(model)
            with self._because(model, "unload", who, message):
                await self._store(control)
                self._loading.apply(model, control)
            await self._loading.tidy(model)

        await self._one(model, work)

    # --- for others that change models

    async def exclusively(self, model: str, work: Callable[[], Awaitable[T]]) -> T:
        """`work` as one change of a model, which need not exist. Raises `Conflict` while the
        model is paused, and what `work` does."""
        return await self._one(model, work, known=False, patient=True)


def message_of(text: object) -> str:
    """A message as it is recorded. Raises `InvalidRequest`."""
    if text is None:
        return ""
    if type(text) is not str:
        raise InvalidRequest("'message' must be text")
    if len(text) > LONGEST_MESSAGE:
        raise InvalidRequest(f"'message' is longer than {LONGEST_MESSAGE} characters")
    return printable(" ".join(text.split()), LONGEST_MESSAGE)


def with_one(versions: tuple[str, ...], version: str) -> tuple[str, ...]:
    return versions if version in versions else (*versions, version)


def without_one(versions: tuple[str, ...], version: str) -> tuple[str, ...]:
    return tuple(each for each in versions if each != version)
