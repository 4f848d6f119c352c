"""Turns one aspired version into a servable; everything slow happens in a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.batching.clock import LoopClock
from gateway.errors import ModelLoadError
from gateway.lifecycle.dispatchers import contract_of, make_dispatcher
from gateway.lifecycle.loading import Loaded, inline_seconds, load_here
from gateway.model_settings import ModelSettings
from gateway.remote_document import REMOTE_RUNTIMES
from gateway.servable import Servable
from gateway.telemetry.logs import log
from gateway.trust import Trust
from runtimes.discovery import choose
from runtimes.interface import Artifact, Host, Runtime

if TYPE_CHECKING:
    from gateway.config import BatchingConfig
    from gateway.isolation.nursery import Nursery
    from gateway.registries.base import AspiredVersion


CHILD_BYTES: Final = 64 * 2**20
"""What a child process takes besides its model."""


class Loader:
    """Loads versions and makes servables of them.

    `nursery` starts the child processes of isolated models, `host` is what models see of the
    gateway; without them, models that need one do not load.
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        config: BatchingConfig,
        clock: LoopClock,
        trust: Trust,
        host: Host | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self._runtimes = runtimes
        self._config = config
        self._inline_seconds = inline_seconds(config.inline_us)
        self._clock = clock
        self._trust = trust
        self._host = host
        self._nursery = nursery

    def estimate(self, name: str, aspired: AspiredVersion, settings: ModelSettings) -> int:
        """Bytes of memory that loading it is thought to take, here or in a child; blocking, for a
        thread."""
        artifact = Artifact(name, aspired.version, aspired.path, settings, self._host)
        try:
            runtime = choose(artifact, self._runtimes)
            size = runtime.estimate(artifact)
            isolation = settings.isolation
            alone = (
                bool(runtime.executes_code(artifact))
                if isolation == "code"
                else (isolation != "none")
            )
        except Exception as error:  # loading it will say what is wrong
            log.debug("%s/%s: no estimate: %s", name, aspired.version, error)
            return 0
        return size + CHILD_BYTES if alone else size

    def load(
        self,
        name: str,
        aspired: AspiredVersion,
        settings: ModelSettings,
        warming: Callable[[str], object],
    ) -> Loaded:
        """Loads and warms up; blocking, for a thread. `warming` is told the runtime's name.

        Raises `SluiceError`, for whatever goes wrong.
        """
        artifact = Artifact(name, aspired.version, aspired.path, settings, self._host)
        runtime = choose(artifact, self._runtimes)
        code = runtime.executes_code(artifact)
        if aspired.source and runtime.name in REMOTE_RUNTIMES:
            self._trust.check_remote(aspired.path, aspired.source)
        if code:
            alone = self._trust.check(
                code,
                aspired.path,
                aspired.source,
                file=runtime.code_file(artifact),
                beside=runtime.code_folders(artifact),
            )
            artifact = replace(artifact, alone=alone)
        if settings.isolation == "code":
            settings = msgspec.structs.replace(settings, isolation="process" if code else "none")
            artifact = replace(artifact, settings=settings)
        if settings.isolation != "none":
            from gateway.isolation.limits import executes_code

            if what := executes_code(settings):
                self._trust.check(what, aspired.path, aspired.source)
            return self._load_in_child(artifact, runtime, warming)
        return load_here(artifact, runtime, self._config.max_batch_size, warming)

    def _load_in_child(
        self, artifact: Artifact, runtime: Runtime, warming: Callable[[str], object]
    ) -> Loaded:
        if self._nursery is None:
            raise ModelLoadError("isolation: there is no gateway to run a child process")
        model, findings = self._nursery.load(artifact, runtime, warming)
        return Loaded(model, runtime.name, findings)

    def servable(
        self, name: str, version: str, loaded: Loaded, settings: ModelSettings
    ) -> Servable:
        """The servable over a loaded model; on the event loop."""
        model, findings = loaded.model, loaded.findings
        contract = contract_of(model, findings)
        dispatcher = make_dispatcher(
            name, version, model, findings, contract, settings, self._clock, self._inline_seconds
        )
        return Servable(
            name,
            version,
            model,
            dispatcher,
            contract,
            settings,
            runtime=loaded.runtime,
            max_batch_size=findings.max_batch_size,
            close=model.close,
        )
