"""The dispatcher that a loaded model wants, here and in child processes alike."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from gateway.batching.assembly import Splitter
from gateway.batching.batcher import Batcher
from gateway.batching.clock import LoopClock
from gateway.batching.policy import BatchPolicy
from gateway.batching.runner import AsyncRunner, ModelRunner, Runner
from gateway.contract import Contract
from gateway.dispatch import Dispatcher
from gateway.isolation.model import ChildModel
from gateway.lifecycle.probe import Findings
from gateway.model_settings import BatchingSettings, ModelSettings
from gateway.telemetry.stats import ServableStats
from runtimes.interface import AsyncModel, ForwardingModel, Model


def contract_of(model: Model, findings: Findings) -> Contract:
    """What requests are held against."""
    return Contract(
        model.inputs,
        model.outputs,
        batched=findings.max_batch_size > 0,
        parameters_matter=model.parameters_matter,
    )


def make_dispatcher(
    name: str,
    version: str,
    model: Model,
    findings: Findings,
    contract: Contract,
    settings: ModelSettings,
    clock: LoopClock,
    inline_seconds: float,
    stats: ServableStats | None = None,
    wrap: Callable[[Runner], Runner] | None = None,
) -> Dispatcher:
    """On the event loop that will own it; `wrap` puts something around what runs batches."""
    stats = ServableStats() if stats is None else stats
    label = f"{name}/{version}"
    batching = settings.batching
    if not contract.batched:
        # One request at a time; everything else about waiting stays as it was set.
        batching = without_batching(batching)
    elif model.joined is not None:
        batching = replace(batching, enabled=model.joined)
    policy = BatchPolicy(
        batching,
        max_rows=max(findings.max_batch_size, 1),
        instances=1 if model.stateful else max(model.instances, 1),
        inline_seconds=inline_seconds if model.inline else 0.0,
        limits=settings.limits,
    )
    if isinstance(model, ChildModel):
        from gateway.isolation.dispatcher import ChildDispatcher

        return ChildDispatcher(label, model, contract, policy, clock, stats, settings)
    if isinstance(model, ForwardingModel) and model.batches_itself and not model.decoupled:
        from gateway.forwarding import Forwarder

        return Forwarder(label, model, contract, policy, clock, stats)
    splitter = Splitter(name, version, model.outputs, fresh=model.fresh)
    if model.decoupled:
        from gateway.batching.streamer import Streamer

        return Streamer(label, model, contract, policy, splitter, clock, stats)
    runner: Runner
    if isinstance(model, AsyncModel):
        runner = AsyncRunner(model, batched=contract.batched)
    else:
        runner = ModelRunner(
            model,
            batched=contract.batched,
            instances=policy.instances,
            name=label,
            call_soon_threadsafe=clock.call_soon_threadsafe,
        )
    if wrap is not None:
        runner = wrap(runner)
    return Batcher(
        label, contract, policy, runner, splitter, clock, stats, findings.curve,
        elsewhere=model.elsewhere,
    )  # fmt: skip


def without_batching(batching: BatchingSettings) -> BatchingSettings:
    return replace(batching, enabled=False, preferred_sizes=(), max_delay_us=0)
