"""Frames between the gateway and its processes: what goes through, and what does not."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import struct
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.apart import wire
from gateway.codecs.oip_rest import BINARY_ANSWER, JSON_ANSWER, AnswerForm
from gateway.config import LimitsConfig
from gateway.contract import Contract
from gateway.tensors import BYTES, DATATYPES, InferenceRequest, Tensor, TensorSpec


def there(thing: object, package: str | None = None) -> Any:
    """`thing` as the other side has it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as thread:
        reading = thread.submit(wire.receive, theirs, 7)
        wire.send(ours, wire.packed(7, thing))
        return wire.load(reading.result(), package)


NUMBERS = st.sampled_from([each for each in DATATYPES.values() if each is not BYTES])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@settings(max_examples=30)
@given(kind=NUMBERS, shape=SHAPES, way=st.sampled_from(["plain", "turned", "big"]), data=st.data())
def test_arrays_go_through(kind: Any, shape: Any, way: str, data: st.DataObject) -> None:
    count = int(np.prod(shape)) * kind.itemsize
    raw = data.draw(st.binary(min_size=count, max_size=count))
    array = np.frombuffer(raw, np.uint8).view(kind.dtype).reshape(shape)
    if way == "turned":
        array = array.T
    elif way == "big" and kind.dtype.kind in "iuf":
        array = array.astype(array.dtype.newbyteorder(">"))
    found = there(array)
    assert (found.dtype, found.shape) == (kind.dtype, array.shape)
    assert found.tobytes() == array.astype(kind.dtype).tobytes()


@settings(max_examples=30)
@given(st.lists(st.text() | st.binary(), max_size=5))
def test_strings_go_through(elements: list[str | bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    assert there(array).tolist() == elements


def test_requests_and_settings_go_through() -> None:
    spec = TensorSpec("x", DATATYPES["FP32"], (-1,))
    form = AnswerForm(named={"y": True})
    tensor = Tensor("x", DATATYPES["FP32"], (100_000,), memoryview(bytes(400_000)))
    request = InferenceRequest("m", "1", (tensor,), parameters={"a": 1.5})
    sent = LimitsConfig(), Contract([spec], [], batched=True), form, request
    limits, contract, named, copy = there(sent)
    assert limits == LimitsConfig()
    assert (repr(contract.inputs), contract.batched) == ("(x FP32 [-1],)", True)
    assert named.is_binary("y")
    assert there((JSON_ANSWER, BINARY_ANSWER)) == (JSON_ANSWER, BINARY_ANSWER)
    assert bytes(copy.inputs[0].data) == bytes(400_000)
    assert (copy.signature, copy.parameters) == (request.signature, {"a": 1.5})


class Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.way = function, arguments

    def __reduce__(self) -> Any:
        return self.way


@pytest.mark.parametrize("package", [None, "gateway.codecs."])
def test_nothing_else_is_made_of_a_frame(tmp_path: Path, package: str | None) -> None:
    path = tmp_path / "made"
    for thing in (
        Hostile(os.mkdir, str(path)),
        Hostile(eval, f"__import__('os').mkdir({str(path)!r})"),
        Hostile(os.path.join, "a"),
        np.zeros(3),  # as numpy itself writes it
        LimitsConfig(),
        Hostile,
    ):
        with pytest.raises(pickle.UnpicklingError, match="cannot be sent"):
            wire.load(wire.Frame(pickle.dumps(thing), []), package)
    for module, name in (
        ("gateway.codecs.large", "suppress"),
        ("gateway.codecs.large", "RestCodec.decode"),
        ("gateway.codecs.large", "prod"),
        ("gateway.tensors", "InferenceRequest.check_data"),
        ("gateway.tensors", "to_wire"),
    ):
        text = pickle.PROTO + b"\4" + pickle.UNICODE + f"{module}\nV{name}\n".encode()
        text += pickle.STACK_GLOBAL + pickle.STOP
        with pytest.raises(pickle.UnpicklingError, match="cannot be sent"):
            wire.load(wire.Frame(text, []), package)
    assert not path.exists()


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<QQQI", 6, 1, 1, 0),
        struct.pack("<QQQI", 8, 1, 1, 0),
        struct.pack("<QQQI", 7, 1, 2, 0),
        struct.pack("<QQQI", 7, 2, 1, 0),
        struct.pack("<QQQI", 7, 2, 1, 2**31),
        struct.pack("<QQQIQ?", 7, 20, 1, 1, 2**40, True),
    ],
    ids=["earlier", "later", "long", "short", "many", "size"],
)
def test_a_frame_must_be_the_next_and_right(head: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(head + b"N" * 16)
        with pytest.raises(wire.OutOfStep):
            wire.receive(theirs, 7)


def test_what_was_sent_is_not_kept() -> None:
    array = np.ones(100_000)
    gone = weakref.ref(array)
    gc.disable()
    try:
        assert there([array])[0].sum() == 100_000
        del array
        assert gone() is None
    finally:
        gc.enable()
