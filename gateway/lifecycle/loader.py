"""Turns one aspired version into a servable; everything slow happens in a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.batching.clock import LoopClock
from gateway.errors import ModelLoadError, SluiceError
from gateway.lifecycle.dispatchers import contract_of, make_dispatcher
from gateway.lifecycle.probe import Findings, examine
from gateway.model_settings import ModelSettings
from gateway.servable import Servable
from gateway.trust import Trust
from runtimes.cpus import usable_cores
from runtimes.discovery import choose
from runtimes.interface import Artifact, Host, Model, Runtime

if TYPE_CHECKING:  # a child process imports this module, with few packages at hand
    from gateway.config import BatchingConfig
    from gateway.isolation.nursery import Nursery
    from gateway.registries.base import AspiredVersion


@dataclass
class Loaded:
    """A model that is loaded and warm, not yet part of anything."""

    model: Model
    runtime: str
    findings: Findings


INLINE_US = 500
INLINE_US_FEW_CORES = 2500


def inline_seconds(configured: int | None) -> float:
    """Seconds up to which a batch runs on the loop; `configured` in microseconds.

    Measured on two cores, a thread for batches of 1 to 2 ms cost a fifth of the throughput.
    """
    if configured is None:
        configured = INLINE_US_FEW_CORES if usable_cores() <= 2 else INLINE_US
    return configured / 1e6


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
        if code:
            self._trust.check(code, aspired.path, aspired.source)
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


def load_here(
    artifact: Artifact, runtime: Runtime, max_batch_size: int, warming: Callable[[str], object]
) -> Loaded:
    """Loads and warms up in this process; blocking. Raises `SluiceError`."""
    try:
        model = runtime.load(artifact)
    except SluiceError:
        raise
    except Exception as error:
        raise ModelLoadError(f"{type(error).__name__}: {one_line(error)}") from error
    if artifact.settings.decoupled and not model.decoupled:
        model.close()
        raise ModelLoadError(
            f"decoupled is set, but this model of runtime '{runtime.name}' answers every request "
            "once; leave it out"
        )
    warming(runtime.name)
    try:
        findings = examine(model, artifact.settings, max_batch_size, artifact.path.parent)
    except BaseException:
        model.close()
        raise
    return Loaded(model, runtime.name, findings)


def one_line(error: BaseException, limit: int = 300) -> str:
    """The last line of an error's text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
