"""The blocks of ``config.pbtxt``, each turned into its part of `ModelSettings`.

All functions take the protobuf message and raise ``InvalidModelSettings`` naming the field.
"""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Any, Literal

from gateway.errors import InvalidModelSettings, printable
from gateway.model_settings import (
    BatchingSettings,
    PriorityQueueSettings,
    QueueSettings,
    TensorSettings,
    WarmupInput,
    WarmupSettings,
)

Device = Literal["auto", "cpu", "gpu"]
_DEVICES: dict[str, Device] = {"KIND_AUTO": "auto", "KIND_CPU": "cpu", "KIND_GPU": "gpu"}
_IMAGE_RANK = 3
_ACTIONS: tuple[Literal["reject", "delay"], ...] = ("reject", "delay")


def enum_name(message: Any, field: str) -> str:
    """Name of the value that the enum ``field`` has."""
    values = message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number
    return str(values[getattr(message, field)].name)


def relative_path(field: str, path: str) -> str | None:
    """``path`` if it stays inside the folder it is meant for; ``None`` if it is empty."""
    if not path:
        return None
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise InvalidModelSettings(f"{field} '{printable(path)}' leaves the model's folder")
    return path


def datatype(field: str, message: Any) -> str:
    """The protocol's name for Triton's ``data_type``."""
    name = enum_name(message, "data_type").removeprefix("TYPE_")
    if name == "INVALID":
        raise InvalidModelSettings(f"{field}: data_type is required, such as TYPE_FP32")
    return "BYTES" if name == "STRING" else name


def tensor_settings(field: str, tensors: Any) -> tuple[TensorSettings, ...]:
    """``input`` or ``output``."""
    found: dict[str, TensorSettings] = {}
    for index, tensor in enumerate(tensors):
        if not tensor.name:
            raise InvalidModelSettings(f"{field}[{index}] has no name")
        where = f"{field} '{printable(tensor.name)}'"
        if tensor.name in found:
            raise InvalidModelSettings(f"{where} is declared twice")
        found[tensor.name] = _tensor(where, tensor, is_input=field == "input")
    return tuple(found.values())


def _tensor(where: str, tensor: Any, *, is_input: bool) -> TensorSettings:
    kind = datatype(where, tensor)
    dims = tuple(tensor.dims)
    reshape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None
    if not dims:
        raise InvalidModelSettings(
            f"{where}: dims are required; one value a row is dims: [ 1 ] with reshape {{ }}"
        )
    for name, shape in (("dims", dims), ("reshape", reshape or ())):
        if any(size < 1 and size != -1 for size in shape):
            raise InvalidModelSettings(f"{where}: {name} {list(shape)} must be 1 or more, or -1")
    if reshape is not None and _elements(dims) != _elements(reshape):
        raise InvalidModelSettings(
            f"{where}: reshape {list(reshape)} has another number of elements than dims"
            f" {list(dims)}"
        )
    if is_input and tensor.format and len(dims) != _IMAGE_RANK:
        raise InvalidModelSettings(
            f"{where}: format {enum_name(tensor, 'format')} needs three dims, not {list(dims)}"
        )
    return TensorSettings(
        name=tensor.name,
        datatype=kind,
        dims=dims,
        reshape=reshape,
        optional=is_input and tensor.optional,
        labels=None
        if is_input
        else relative_path(f"{where}: label_filename", tensor.label_filename),
    )


def _elements(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many elements the known dimensions have, and how many are unknown."""
    return math.prod(size for size in shape if size > 0), shape.count(-1)


def placement(groups: Any, *, by_itself: bool = False) -> tuple[Device, tuple[int, ...], int]:
    """Device, GPUs and number of instances that ``instance_group`` asks for.

    `by_itself`: the model may choose its device itself, as KIND_MODEL says.
    """
    devices: set[Device] = set()
    per_gpu: dict[int, int] = {}
    total = 0
    for group in groups:
        kind = enum_name(group, "kind")
        if kind == "KIND_MODEL" and by_itself:
            kind = "KIND_AUTO"
        if kind not in _DEVICES:
            raise InvalidModelSettings(
                f"instance_group.kind {kind} is not supported: the gateway places the instances;"
                " use KIND_CPU, KIND_GPU or KIND_AUTO"
            )
        if group.count < 0 or any(gpu < 0 for gpu in group.gpus):
            raise InvalidModelSettings("instance_group: count and gpus must be 0 or more")
        if group.gpus and kind == "KIND_CPU":
            raise InvalidModelSettings("instance_group: gpus contradict KIND_CPU; use KIND_GPU")
        devices.add(_DEVICES[kind])
        count = group.count or 1
        total += count * max(1, len(set(group.gpus)))
        for gpu in set(group.gpus):
            per_gpu[gpu] = per_gpu.get(gpu, 0) + count
    if len(devices) > 1:
        raise InvalidModelSettings(
            "instance_group: one model runs on one kind of device here, but the groups name"
            f" {', '.join(sorted(devices))}; give all groups the same kind"
        )
    if len(set(per_gpu.values())) > 1 or (per_gpu and sum(per_gpu.values()) != total):
        raise InvalidModelSettings(
            "instance_group: instances are spread evenly over the GPUs, but the groups ask for"
            " more on some; give each GPU the same count"
        )
    return next(iter(devices), "auto"), tuple(sorted(per_gpu)), total


def batching_settings(config: Any, max_batch_size: int | None) -> BatchingSettings:
    """``dynamic_batching``; ``max_batch_size`` is ``None`` where the artifact decides it."""
    if not config.HasField("dynamic_batching"):
        return BatchingSettings(enabled=max_batch_size is None)
    block = config.dynamic_batching
    sizes = tuple(sorted(set(block.preferred_batch_size)))
    if sizes and (sizes[0] < 1 or (max_batch_size is not None and sizes[-1] > max_batch_size)):
        raise InvalidModelSettings(
            f"dynamic_batching.preferred_batch_size {list(sizes)} must be between 1 and"
            f" max_batch_size ({max_batch_size})"
        )
    levels, default = block.priority_levels, block.default_priority_level
    if default > levels or (levels and not default):
        raise InvalidModelSettings(
            f"dynamic_batching.default_priority_level is {default}; with priority_levels {levels}"
            + (f" it must be between 1 and {levels}" if levels else " it must be left out")
        )
    for level in block.priority_queue_policy:
        if not 1 <= level <= levels:
            raise InvalidModelSettings(
                f"dynamic_batching.priority_queue_policy has a policy for level {level}, but"
                f" priority_levels is {levels}"
            )
    return BatchingSettings(
        preferred_sizes=sizes,
        max_delay_us=block.max_queue_delay_microseconds,
        preserve_ordering=block.preserve_ordering,
        priority_levels=levels,
        default_priority=default,
        queue=_queue(block.default_queue_policy),
        priority_queues={
            level: _priority_queue(block.priority_queue_policy[level])
            for level in sorted(block.priority_queue_policy)
        },
    )


def _may_override(policy: Any) -> bool:
    return bool(policy.allow_timeout_override or not policy.default_timeout_microseconds)


def _queue(policy: Any) -> QueueSettings:
    return QueueSettings(
        max_requests=policy.max_queue_size,
        timeout_us=policy.default_timeout_microseconds,
        timeout_action=_ACTIONS[policy.timeout_action],
        allow_timeout_override=_may_override(policy),
    )


def _priority_queue(policy: Any) -> PriorityQueueSettings:
    # Complete, not only what is set: in Triton it stands in place of the default policy.
    return PriorityQueueSettings(
        max_requests=policy.max_queue_size,
        timeout_us=policy.default_timeout_microseconds,
        timeout_action=_ACTIONS[policy.timeout_action],
        allow_timeout_override=_may_override(policy),
    )


def warmup_settings(samples: Any) -> tuple[WarmupSettings, ...]:
    """``model_warmup``."""
    return tuple(
        WarmupSettings(
            name=sample.name,
            batch_size=sample.batch_size,
            count=sample.count or 1,
            inputs={
                name: _warmup_input(
                    f"model_warmup '{printable(sample.name)}' input '{printable(name)}'",
                    sample.inputs[name],
                )
                for name in sorted(sample.inputs)
            },
        )
        for sample in samples
    )


def _warmup_input(where: str, tensor: Any) -> WarmupInput:
    choice = tensor.WhichOneof("input_data_type")
    if choice is None:
        raise InvalidModelSettings(f"{where} needs zero_data, random_data or input_data_file")
    if choice != "input_data_file" and not getattr(tensor, choice):
        raise InvalidModelSettings(f"{where}: {choice} is false; choose what the data is")
    if any(size < 1 for size in tensor.dims):
        raise InvalidModelSettings(f"{where}: dims {list(tensor.dims)} must each be 1 or more")
    return WarmupInput(
        datatype=datatype(where, tensor),
        dims=tuple(tensor.dims),
        source="zero" if choice == "zero_data" else "random",
        file=relative_path(f"{where}: input_data_file", tensor.input_data_file),
    )
