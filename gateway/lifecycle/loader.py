"""Turns one aspired version into a servable; everything slow happens in a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.batching.assembly import Splitter
from gateway.batching.batcher import Batcher
from gateway.batching.clock import LoopClock
from gateway.batching.policy import BatchPolicy
from gateway.batching.runner import ModelRunner
from gateway.config import BatchingConfig
from gateway.contract import Contract
from gateway.errors import ModelLoadError, SluiceError
from gateway.lifecycle.probe import Findings, examine
from gateway.model_settings import BatchingSettings, ModelSettings
from gateway.registries.base import AspiredVersion
from gateway.servable import Servable
from gateway.telemetry.stats import ServableStats
from runtimes.cpus import usable_cores
from runtimes.discovery import choose
from runtimes.interface import Artifact, Model, Runtime


@dataclass
class Loaded:
    """A model that is loaded and warm, not yet part of anything."""

    model: Model
    runtime: str
    findings: Findings


INLINE_US = 500
INLINE_US_FEW_CORES = 2500


def inline_us(config: BatchingConfig) -> int:
    """Microseconds up to which a batch runs on the loop.

    Measured on two cores, a thread for batches of 1 to 2 ms cost a fifth of the throughput.
    """
    if config.inline_us is not None:
        return config.inline_us
    return INLINE_US_FEW_CORES if usable_cores() <= 2 else INLINE_US


class Loader:
    """Loads versions and makes servables of them."""

    def __init__(
        self, runtimes: Mapping[str, Runtime], config: BatchingConfig, clock: LoopClock
    ) -> None:
        self._runtimes = runtimes
        self._config = config
        self._inline_seconds = inline_us(config) / 1e6
        self._clock = clock

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
        artifact = Artifact(name, aspired.version, aspired.path, settings)
        runtime = choose(artifact, self._runtimes)
        try:
            model = runtime.load(artifact)
        except SluiceError:
            raise
        except Exception as error:
            raise ModelLoadError(f"{type(error).__name__}: {one_line(error)}") from error
        warming(runtime.name)
        try:
            findings = examine(model, settings, self._config.max_batch_size, aspired.path.parent)
        except BaseException:
            model.close()
            raise
        return Loaded(model, runtime.name, findings)

    def servable(
        self, name: str, version: str, loaded: Loaded, settings: ModelSettings
    ) -> Servable:
        """The servable over a loaded model; on the event loop."""
        model = loaded.model
        batched = loaded.findings.max_batch_size > 0
        contract = Contract(
            model.inputs,
            model.outputs,
            batched=batched,
            parameters_matter=model.parameters_matter,
        )
        batching = settings.batching
        if not batched:
            # One request at a time; everything else about waiting stays as it was set.
            batching = without_batching(batching)
        policy = BatchPolicy(
            batching,
            max_rows=max(loaded.findings.max_batch_size, 1),
            instances=max(model.instances, 1),
            inline_seconds=self._inline_seconds,
            limits=settings.limits,
        )
        label = f"{name}/{version}"
        runner = ModelRunner(
            model,
            batched=batched,
            instances=policy.instances,
            name=label,
            call_soon_threadsafe=self._clock.call_soon_threadsafe,
        )
        batcher = Batcher(
            label,
            contract,
            policy,
            runner,
            Splitter(name, version, model.outputs),
            self._clock,
            ServableStats(),
            loaded.findings.curve,
        )
        return Servable(
            name,
            version,
            model,
            batcher,
            contract,
            settings,
            runtime=loaded.runtime,
            max_batch_size=loaded.findings.max_batch_size,
            close=model.close,
        )


def without_batching(batching: BatchingSettings) -> BatchingSettings:
    from msgspec.structs import replace

    return replace(batching, enabled=False, preferred_sizes=(), max_delay_us=0)


def one_line(error: BaseException, limit: int = 300) -> str:
    """The last line of an error's text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
