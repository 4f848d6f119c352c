"""What gateway and child say to each other, and how tensors, errors and facts are written down.

A message is a list that starts with its kind. Every request that the gateway sends ends with
exactly one of `ANSWERS`, `FAILED` or `END` for its slot; only then is the slot used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from gateway import errors
from gateway.errors import InferenceFailed, SluiceError, text_of
from gateway.isolation.arena import ALIGN, Arena
from gateway.tensors import DATATYPES, Buffer, Tensor, TensorSpec
from runtimes.interface import Model

RELEASED: Final = 0  # blocks; never sent: every frame has them in front
# both ways
SEGMENT: Final = 1  # number, size (+ descriptor)
DROP: Final = 2  # number
PING: Final = 3
PONG: Final = 4
# gateway → child
TABLE: Final = 10  # (+ descriptor)
PRELOAD: Final = 11  # modules
LOAD: Final = 12  # LoadOrder as a mapping
REQUEST: Final = 13  # see Sent
CANCEL: Final = 14  # slot
CREDIT: Final = 15  # slot, how many more answers of a stream may be sent
CLOSE: Final = 16
HOME_ANSWER: Final = 17  # id, response | None, error | None, whether it was the last
# child → gateway
PRELOADED: Final = 30  # the modules are imported, or cannot be
WARMING: Final = 31
LOADED: Final = 32  # facts
LOAD_FAILED: Final = 33  # error, traceback
ANSWERS: Final = 34  # batches, block, size, [slot, tensors, parameters]...
FAILED: Final = 35  # slot, error
ITEM: Final = 36  # slot, block, size, tensors, parameters
END: Final = 37  # slot
BATCHES: Final = 43  # [requests, rows, reason, waited, assembled, ran] or [requests, rows, split]
HOME_CALL: Final = 39  # id, stream?, model, version, outputs, parameters, timeout, priority, body
HOME_CANCEL: Final = 40  # id
HOME_CREDIT: Final = 41  # id, count
HOME_DESCRIBE: Final = 42  # id, model, version; answered by HOME_ANSWER with specs
METRICS: Final = 44  # [name, description, kind, [labels, value]...]: all of a model's own numbers

CREDITS: Final = 8
"""Answers of a stream that may be under way unseen."""


class Sent(NamedTuple):
    """A `REQUEST`. Times in seconds of the monotonic clock, which all processes share."""

    kind: int
    slot: int
    block: int
    size: int
    tensors: list[Any]
    arrived: float
    deadline: float | None
    outputs: tuple[str, ...]
    parameters: dict[str, Any] | None
    timeout_us: int
    priority: int
    unchecked: bool
    alone: bool
    """Not together with others: one of those that ran when the last child died."""
    stream: bool
    headers: dict[str, str] | None
    id: str
    inner: bool = False
    """`Call.inner`."""
    away: int = 0
    """Rows refused for lack of room since the last `REQUEST`; the child judges overload."""


# --- tensors in a block


def measure(tensors: Sequence[Tensor], at: int = 0) -> tuple[list[Any], list[Buffer], int]:
    """What is said of the tensors, their bytes, and where the next one may start."""
    told: list[Any] = []
    data: list[Buffer] = []
    for tensor in tensors:
        raw = tensor.data
        size = len(raw)
        told.append((tensor.name, tensor.datatype.name, tensor.shape, at, size))
        data.append(raw)
        at = (at + size + ALIGN - 1) & -ALIGN
    return told, data, at


def fill(view: memoryview, told: Sequence[Any], data: Sequence[Buffer]) -> None:
    """Writes the bytes where `measure` has put them."""
    for (_, _, _, at, size), raw in zip(told, data, strict=True):
        view[at : at + size] = raw


def put(arena: Arena, tensors: Sequence[Tensor]) -> tuple[int, int, list[Any]]:
    """Block, size and description of tensors that are now in shared memory.

    Raises `ArenaFull` or `OSError`.
    """
    told, data, size = measure(tensors)
    block = arena.take(size)
    try:
        fill(arena.view(block), told, data)
    except BaseException:
        arena.give(block)
        raise
    return block, size, told


def tensors_of(view: memoryview, told: Sequence[Sequence[Any]]) -> tuple[Tensor, ...]:
    """The tensors of a leased block, as views."""
    return tuple(
        [
            Tensor(name, DATATYPES[kind], tuple(shape), view[at : at + size])
            for name, kind, shape, at, size in told
        ]
    )


# --- errors


def tell_error(error: SluiceError) -> tuple[str, str, float | None]:
    return type(error).__name__, text_of(error), getattr(error, "retry_after", None)


def error_of(told: Sequence[Any]) -> SluiceError:
    """The error as the other side raised it."""
    name, text, retry_after = told
    kind = getattr(errors, name, InferenceFailed)
    error: SluiceError = kind.__new__(kind)
    Exception.__init__(error, text)
    if retry_after is not None and isinstance(error, errors.Unavailable):
        error.retry_after = retry_after
    return error


# --- what is known of a model


def tell_specs(specs: Sequence[TensorSpec]) -> list[Any]:
    return [(s.name, s.datatype.name, s.shape, s.optional, s.content) for s in specs]


def specs_of(told: Sequence[Sequence[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, DATATYPES[kind], tuple(shape), optional=optional, content=content)
        for name, kind, shape, optional, content in told
    )


PLAIN_FACTS: Final = (
    "platform", "instances", "batch_dimension", "parameters_matter", "stateful", "decoupled",
    "max_batch_size",
)  # fmt: skip


def tell_facts(model: Model) -> dict[str, Any]:
    """Everything declared by a model, for `ChildModel`."""
    facts = {name: getattr(model, name) for name in PLAIN_FACTS}
    return {**facts, "inputs": tell_specs(model.inputs), "outputs": tell_specs(model.outputs)}
