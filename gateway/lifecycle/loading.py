"""Loads and warms up one model in this process, the gateway's or a child's.

Children import this module, perhaps with few packages at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import ModelLoadError, SluiceError
from gateway.lifecycle.probe import Findings, examine
from runtimes.cpus import usable_cores
from runtimes.interface import Artifact, Model, Runtime


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
    if model.decoupled and artifact.settings.batching.queue.overload_wait_us is not None:
        model.close()
        raise ModelLoadError(
            "batching.queue.overload_wait_us is for models that answer each request once, whose "
            "batches tell what a request costs; bound this one's queue by max_requests"
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
