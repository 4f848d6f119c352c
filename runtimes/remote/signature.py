"""What a model on another server takes and gives, and which of our settings it can honour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gateway.codecs.client_grpc import ModelMetadata
from gateway.errors import ModelLoadError, printable
from gateway.model_settings import (
    BatchingSettings,
    ModelSettings,
    QueueSettings,
    RemoteSettings,
    TensorSettings,
)
from gateway.tensors import TensorSpec, datatype


@dataclass(frozen=True)
class Signature:
    """Shapes have every dimension, -1 for any size."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str

    @property
    def batch_dimension(self) -> bool:
        """Whether every tensor has a first dimension of any size."""
        specs = (*self.inputs, *self.outputs)
        return bool(specs) and all(spec.shape[:1] == (-1,) for spec in specs)


def signature_of(metadata: ModelMetadata, settings: ModelSettings) -> Signature:
    """The server's metadata, completed by what the settings declare.

    Raises `ModelLoadError` where the two disagree, and where neither says anything.
    """
    batched = bool(settings.max_batch_size)
    return Signature(
        _agreed("input", metadata.inputs, settings.inputs, batched=batched),
        _agreed("output", metadata.outputs, settings.outputs, batched=batched),
        metadata.platform,
    )


def _agreed(
    kind: str, found: Sequence[TensorSpec], declared: Sequence[TensorSettings], *, batched: bool
) -> tuple[TensorSpec, ...]:
    specs = tuple(_spec(kind, each, batched=batched) for each in declared)
    if not found:
        if not specs:
            raise ModelLoadError(
                f"the server's metadata of the model names no {kind}s; declare them in model.yaml: "
                f"{kind}s: [{{name: x, datatype: FP32, dims: [-1, 4]}}]"
            )
        return specs
    if not specs:
        return tuple(found)
    ours, theirs = {spec.name: spec for spec in specs}, {spec.name: spec for spec in found}
    if ours.keys() != theirs.keys():
        odd = next(iter(ours.keys() ^ theirs.keys()))
        where = "not declared, but on the server" if odd in theirs else "declared, but not there"
        raise ModelLoadError(
            f"{kind} '{printable(odd)}' is {where}; the server has: "
            f"{printable(', '.join(map(repr, found)), 300)}"
        )
    return tuple(_merged(kind, ours[spec.name], spec) for spec in found)


def _spec(kind: str, settings: TensorSettings, *, batched: bool) -> TensorSpec:
    if settings.reshape is not None:
        raise ModelLoadError(
            f"{kind} '{settings.name}': 'reshape' is not done for models on other servers; remove "
            "it"
        )
    shape = ((-1,) if batched else ()) + settings.dims
    return TensorSpec(settings.name, datatype(settings.datatype), shape, optional=settings.optional)


def _merged(kind: str, ours: TensorSpec, theirs: TensorSpec) -> TensorSpec:
    fits = ours.datatype is theirs.datatype and len(ours.shape) == len(theirs.shape)
    fits = fits and all(
        -1 in (a, b) or a == b for a, b in zip(ours.shape, theirs.shape, strict=True)
    )
    if not fits:
        raise ModelLoadError(
            f"{kind} '{theirs.name}' is declared {ours.datatype} {list(ours.shape)}, but the "
            f"server has {theirs.datatype} {list(theirs.shape)}"
        )
    shape = tuple(max(a, b) for a, b in zip(ours.shape, theirs.shape, strict=True))
    return TensorSpec(theirs.name, theirs.datatype, shape, optional=ours.optional)


# --- settings


def check_settings(settings: ModelSettings, remote: RemoteSettings) -> None:
    """Raises `ModelLoadError` for a setting that nothing here can honour."""
    elsewhere = "is set for a model on another server, which decides that itself; remove it"
    if settings.options:
        raise ModelLoadError(f"'options.{printable(next(iter(settings.options)))}' {elsewhere}")
    for key in ("file", "version_files", "gpus"):
        if getattr(settings, key):
            raise ModelLoadError(f"'{key}' {elsewhere}")
    if settings.device != "auto":
        raise ModelLoadError(f"'device' {elsewhere}")
    if settings.isolation != "none":
        raise ModelLoadError(
            "'isolation' is set for a model on another server, where there is nothing to isolate; "
            "remove it"
        )
    if remote.batching == "gateway" and settings.decoupled:
        raise ModelLoadError(
            "remote.batching is 'gateway', but a decoupled model is never batched; remove it"
        )


def check_unbatched(settings: ModelSettings, remote: RemoteSettings, *, decoupled: bool) -> None:
    """Raises `ModelLoadError` for settings of batches where the server forms them. Models that
    stream (`decoupled`) have a queue, and `instances` streams at a time."""
    if remote.batching == "gateway" or decoupled:
        return
    where = "or set remote.batching: gateway"
    if settings.instances:
        raise ModelLoadError(
            f"'instances' is how many batches of the gateway's run at a time; remove it, {where}"
        )
    if without_bounds(settings.batching) != BatchingSettings():
        raise ModelLoadError(
            "'batching' has settings for batches, but the server forms them; keep "
            f"batching.queue.max_requests, max_rows and max_bytes alone, {where}"
        )


def without_bounds(batching: BatchingSettings) -> BatchingSettings:
    """The settings without those that bound what is under way, which always count."""
    plain = QueueSettings()
    queue = msgspec.structs.replace(
        batching.queue,
        max_requests=plain.max_requests,
        max_rows=plain.max_rows,
        max_bytes=plain.max_bytes,
    )
    return msgspec.structs.replace(batching, queue=queue)


def check_batching(
    signature: Signature, remote: RemoteSettings, max_batch_size: int | None
) -> None:
    """Raises `ModelLoadError` where the gateway is to form batches, but cannot, and where
    nothing is a batch that is said to be one."""
    gateway = remote.batching == "gateway"
    if gateway and not max_batch_size:
        raise ModelLoadError(
            "remote.batching is 'gateway', but nothing says how many rows a batch may have; set "
            "max_batch_size: 64 in model.yaml if rows are independent"
        )
    if not max_batch_size:
        return
    for spec in (*signature.inputs, *signature.outputs):
        if spec.shape[:1] != (-1,):
            why, what = f"max_batch_size is {max_batch_size}", "remove it"
            if gateway:
                why, what = "remote.batching is 'gateway'", "let the server batch"
            raise ModelLoadError(
                f"{why}, but tensor '{spec.name}' has shape {list(spec.shape)}, whose first "
                f"dimension is no batch; {what}"
            )
