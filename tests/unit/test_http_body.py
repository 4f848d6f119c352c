"""Where large bodies go, and what may be sent from where it lies."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batching.assembly import Splitter
from gateway.codecs.oip_rest import BINARY_ANSWER, JSON_ANSWER, LARGE_ANSWER, Parts, RestCodec
from gateway.config import LimitsConfig
from gateway.servers.http_body import ALIGNED, MAPPED, Room
from gateway.tensors import DATATYPES, InferenceRequest, InferenceResponse, Tensor, TensorSpec

FP32 = DATATYPES["FP32"]


@given(
    st.integers(1, 5000),
    st.integers(0, 300),
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=6),
)
def test_a_room_holds_the_body_with_its_tensors_aligned(
    length: int, head: int, pieces: list[tuple[float, bool]]
) -> None:
    sent = np.random.default_rng(length).bytes(length)
    room = Room(length, head)
    for share, parsed in [*sorted(pieces), (1.0, False)]:
        piece = sent[room.filled : int(share * length)]
        if parsed:
            room.add(piece)
        else:
            room.rest()[: len(piece)] = piece
            room.filled += len(piece)
        assert room.full == (room.filled == length)
        assert room.filled <= room.held <= length
    whole = room.whole()
    assert whole == sent
    assert whole.readonly
    assert not np.frombuffer(whole, np.uint8).flags.writeable
    if head < length:
        assert np.frombuffer(whole[head:], np.uint8).ctypes.data % ALIGNED == 0


def test_a_mapped_room_lives_as_long_as_a_tensor_of_it() -> None:
    room = Room(MAPPED, 3)
    room.rest()[:] = b"\x07" * MAPPED
    tensor = np.frombuffer(room.whole()[MAPPED // 2 :], np.uint8)
    del room
    gc.collect()
    assert (tensor == 7).all()


def response(numbers: int, *, fresh: bool, id: str = "") -> tuple[InferenceResponse, Any]:
    array = np.arange(numbers, dtype=np.float32)
    tensor = Tensor("y", FP32, array.shape, array=array)
    return InferenceResponse("m", "1", [tensor], id=id, fresh=fresh), array


@pytest.mark.parametrize("id", ["", "7"])
def test_parts_are_what_encode_gives(id: str) -> None:
    codec = RestCodec(LimitsConfig())
    found, array = response(LARGE_ANSWER // 4, fresh=True, id=id)
    for _ in range(2):  # the second time from a known head
        parts, length = codec.encode_parts(found, BINARY_ANSWER)
        assert isinstance(parts, Parts)
        assert (bytes(parts), length) == codec.encode(found, BINARY_ANSWER)
        assert len(parts) == len(bytes(parts))
        assert np.shares_memory(np.frombuffer(parts.pieces[1], np.float32), array)


def test_what_may_still_change_is_copied() -> None:
    codec = RestCodec(LimitsConfig())
    found, array = response(LARGE_ANSWER // 4, fresh=False)
    body, _ = codec.encode_parts(found, BINARY_ANSWER)
    before = bytes(body)
    array[:] = -1
    assert bytes(body) == before
    for small in (response(8, fresh=True)[0], response(LARGE_ANSWER // 4 - 1, fresh=True)[0]):
        assert type(codec.encode_parts(small, BINARY_ANSWER)[0]) is bytes
    assert type(codec.encode_parts(response(8, fresh=True)[0], JSON_ANSWER)[0]) is bytes


def test_only_a_batch_of_one_is_sent_from_the_models_memory() -> None:
    """Rows of a shared batch would keep all of it for as long as the slowest caller reads."""

    def call() -> Any:
        return SimpleNamespace(request=InferenceRequest("m", "1", ()), rows=1)

    outputs = {"y": np.zeros((2, 4), np.float32)}
    specs = [TensorSpec("y", FP32, (-1, 4))]
    for fresh in (False, True):
        splitter = Splitter("m", "1", specs, fresh=fresh)
        assert [r.fresh for r in splitter.split([call()], outputs)] == [fresh]
        assert [r.fresh for r in splitter.split([call(), call()], outputs)] == [False, False]
