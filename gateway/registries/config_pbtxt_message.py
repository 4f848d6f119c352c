"""The other direction: a served model described as Triton's ``ModelConfig``, for its clients.

What a ``config.pbtxt`` said is kept, so that labels, formats and parameters can be read back;
what the gateway found out from the artifact is filled in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from gateway.codecs.messages import ModelConfig
from gateway.model_settings import (
    BatchingSettings,
    ModelSettings,
    PriorityQueueSettings,
    QueueSettings,
    TensorSettings,
    VersionPolicy,
)
from gateway.registries.config_pbtxt import BACKENDS, PLATFORMS, is_map, parse_message

Tensor = tuple[str, str, Sequence[int]]
"""Name, datatype and shape, including the batch dimension where there is one."""

_BACKEND_OF: Final = {runtime: name for name, runtime in BACKENDS.items()}
_PLATFORM_OF: Final = {runtime: name for name, runtime in PLATFORMS.items()}
_KINDS: Final = {"auto": 0, "gpu": 1, "cpu": 2}


def model_config_message(
    name: str,
    settings: ModelSettings,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    *,
    max_batch_size: int,
    runtime: str,
    instances: int = 1,
    decoupled: bool = False,
) -> Any:
    """The ``ModelConfig`` of a loaded model.

    ``max_batch_size`` is the one in effect (0 = the model is not batched); if it is above 0
    the first dimension of every shape is the batch dimension and is left out. Raises
    ``InvalidModelSettings`` only if ``settings.triton_config`` was never parsed before.
    """
    config = parse_message(settings.triton_config) if settings.triton_config else ModelConfig()
    config.name = name
    config.backend = _BACKEND_OF.get(runtime, runtime)
    config.platform = _PLATFORM_OF.get(runtime, "")
    config.max_batch_size = max_batch_size
    _tensors(config.input, inputs, settings.inputs, batched=max_batch_size > 0)
    _tensors(config.output, outputs, settings.outputs, batched=max_batch_size > 0)
    _versions(config.version_policy, settings.versions)
    if settings.batching.enabled and (max_batch_size or config.HasField("dynamic_batching")):
        _batching(config.dynamic_batching, settings.batching)
    else:
        config.ClearField("dynamic_batching")
    if decoupled:
        config.model_transaction_policy.decoupled = True
    if settings.file:
        config.default_model_filename = settings.file
    if not config.instance_group:
        config.instance_group.add(
            name=name, kind=_KINDS[settings.device], count=instances, gpus=settings.gpus
        )
    return config


def _tensors(
    target: Any, tensors: Iterable[Tensor], declared: tuple[TensorSettings, ...], *, batched: bool
) -> None:
    """Replaces the list ``target`` by ``tensors``, in their order."""
    from_text = {entry.name: entry for entry in list(target)}
    said = {tensor.name: tensor for tensor in declared}
    entries = []
    for name, datatype, shape in tensors:
        entry = target.add()
        if name in from_text:
            entry.CopyFrom(from_text[name])
        entry.name = name
        entry.data_type = _data_type(entry, datatype)
        entry.dims[:] = shape[1:] if batched else shape
        if (tensor := said.get(name)) is not None:
            if tensor.reshape is not None:
                entry.reshape.shape[:] = tensor.reshape
            if tensor.optional:
                entry.optional = True
            if tensor.labels:
                entry.label_filename = tensor.labels
        entries.append(entry)
    del target[: len(target) - len(entries)]


def _data_type(entry: Any, datatype: str) -> int:
    values = entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    return int(values["TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"].number)


def _versions(target: Any, policy: VersionPolicy) -> None:
    target.Clear()
    if policy.specific:
        target.specific.versions[:] = policy.specific
    elif policy.all:
        target.all.SetInParent()
    else:
        target.latest.num_versions = policy.latest or 1


def _batching(target: Any, batching: BatchingSettings) -> None:
    target.Clear()
    target.SetInParent()
    target.preferred_batch_size[:] = batching.preferred_sizes
    target.max_queue_delay_microseconds = batching.max_delay_us
    target.preserve_ordering = batching.preserve_ordering
    if batching.priority_levels:
        middle = (batching.priority_levels + 1) // 2
        target.priority_levels = batching.priority_levels
        target.default_priority_level = batching.default_priority or middle
    if batching.queue != QueueSettings():
        _queue(target.default_queue_policy, batching.queue, PriorityQueueSettings())
    for level, policy in batching.priority_queues.items():
        _queue(target.priority_queue_policy[level], batching.queue, policy)


def _queue(target: Any, queue: QueueSettings, level: PriorityQueueSettings) -> None:
    def either(ours: Any, inherited: Any) -> Any:
        return inherited if ours is None else ours

    target.SetInParent()
    target.timeout_action = ("reject", "delay").index(
        either(level.timeout_action, queue.timeout_action)
    )
    target.default_timeout_microseconds = either(level.timeout_us, queue.timeout_us)
    target.allow_timeout_override = either(
        level.allow_timeout_override, queue.allow_timeout_override
    )
    target.max_queue_size = either(level.max_requests, queue.max_requests)


def to_json(message: Any) -> dict[str, Any]:
    """``message`` in the form that Triton's HTTP endpoints give.

    Like protobuf's own JSON, but names as in the definition, fields at their default included
    (messages and alternatives only if they are set), and 64-bit integers as numbers.
    """
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if is_map(field):
            of = field.message_type.fields_by_name["value"]
            found[field.name] = {str(key): _json_value(of, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            found[field.name] = [_json_value(field, item) for item in value]
        else:
            found[field.name] = _json_value(field, value)
    return found


def _json_value(field: Any, value: Any) -> Any:
    if field.message_type:
        return to_json(value)
    if field.enum_type:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value
