"""Warms up a model that was loaded and examined before, in the process that takes over."""

from __future__ import annotations

from pathlib import Path

from gateway.lifecycle.probe import WARMUP_SECONDS, Findings, attempts, run_warmup
from gateway.model_settings import ModelSettings
from runtimes.interface import MADE_UP, Model


def warm_again(model: Model, findings: Findings, settings: ModelSettings, folder: Path) -> None:
    """The declared warm-up, or else one run of made-up rows at each size that is known to run.

    Whether rows are independent and what they cost is known already. Raises `ModelLoadError`
    when a declared warm-up fails.
    """
    token = MADE_UP.set(True)
    try:
        for each in settings.warmup:
            run_warmup(model, each, folder)
        plain = not (model.decoupled or model.stateful) and model.probed
        if plain and not settings.warmup:
            _run_sizes(model, findings)
    finally:
        MADE_UP.reset(token)


def _run_sizes(model: Model, findings: Findings) -> None:
    largest = findings.max_batch_size
    for rows in sorted({1, min(8, largest), largest}) if largest else [0]:
        expected = findings.curve.predict(rows or 1)
        if expected is None or expected > WARMUP_SECONDS:
            break
        for inputs in attempts(model, rows):
            try:
                model.infer(inputs, (), {})
            except Exception:  # a kind of values that it does not take
                continue
            break
