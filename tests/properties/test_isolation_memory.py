"""Shared memory: blocks never overlap, come back, and hold what was written while looked at."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.isolation import messages as m
from gateway.isolation.arena import ALIGN, FIRST, Arena, ArenaFull, Ranges, place
from gateway.isolation.channel import Channel
from gateway.isolation.memory import Segment
from gateway.tensors import DATATYPES, Tensor, objects

LIMIT = 8 * FIRST


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> Iterator[None]:
    """What earlier tests left behind need not be looked through by every collection here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Bytes:
    """Memory of this process in a segment's place."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.view = memoryview(bytearray(0))
        self.closed = self.forgotten = False

    def forget(self) -> None:
        self.forgotten = True

    def close(self) -> None:
        self.closed = True


class ArenaMachine(RuleBasedStateMachine):
    """Compares an arena with what it has given away."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Bytes] = []
        self.arena = Arena(self.make, LIMIT)
        self.blocks: dict[int, int] = {}
        self.random = random.Random(7)

    def make(self, size: int) -> Bytes:
        self.made.append(Bytes(size))
        return self.made[-1]

    @rule(size=st.one_of(st.integers(0, 4096), st.integers(0, 3 * FIRST)))
    def take(self, size: int) -> None:
        room = (max(size, 1) + ALIGN - 1) & -ALIGN
        try:
            block = self.arena.take(size)
        except ArenaFull:
            assert self.blocks
            assert sum(self.blocks.values()) + room > LIMIT
            return
        assert block not in self.blocks
        self.blocks[block] = room

    @precondition(lambda self: self.blocks)
    @rule(count=st.integers(1, 5))
    def give(self, count: int) -> None:
        for block in self.random.sample(sorted(self.blocks), min(count, len(self.blocks))):
            self.arena.give(block)
            del self.blocks[block]

    @rule()
    def trim(self) -> None:
        gone = self.arena.trim()
        used = {place(block)[0] for block in self.blocks}
        assert not used & set(gone)
        # What is left is in use, but for one segment that is kept when nothing is.
        assert set(self.arena.segments) == used or (not used and len(self.arena.segments) <= 1)

    @invariant()
    def apart(self) -> None:
        ranges = sorted((*place(block), size) for block, size in self.blocks.items())
        for (one, start, size), (other, after, _) in itertools.pairwise(ranges):
            assert one != other or start + size <= after
        for number, start, size in ranges:
            assert start % ALIGN == 0
            assert start + size <= self.arena.segments[number].size
        assert self.arena.taken == sum(self.blocks.values())
        assert len(self.arena) == len(self.blocks)

    def teardown(self) -> None:
        for block in list(self.blocks):
            self.arena.give(block)
        self.arena.trim()
        assert self.arena.taken == 0
        assert sum(not segment.closed for segment in self.made) <= 1


ArenaMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestArena = ArenaMachine.TestCase


@given(st.lists(st.integers(1, 100), max_size=30), st.randoms(use_true_random=False))
def test_ranges_join_again(sizes: list[int], chance: random.Random) -> None:
    ranges = Ranges(4096)
    taken = [(start, size) for size in sizes if (start := ranges.take(size)) is not None]
    chance.shuffle(taken)
    for start, size in taken:
        ranges.give(start, size)
    assert ranges.free == 4096
    assert ranges.take(4096) == 0


def test_one_block_may_be_larger_than_all() -> None:
    arena = Arena(Bytes, 100)
    block = arena.take(10_000_000)
    with pytest.raises(ArenaFull, match="shared memory are in use"):
        arena.take(1)
    arena.give(block)
    arena.take(1)


class End:
    """One end of a channel, which sends numbered blocks and checks those that it gets."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop = asyncio.get_running_loop()
        self.channel = Channel(self.loop, sock, self.heard, self.lost)
        self.arena = Arena(Segment, 1 << 40)
        self.arena.on_segment = lambda number, segment: self.channel.send(
            (m.SEGMENT, number, segment.size),
            segment.fd,  # type: ignore[attr-defined]
        )
        self.kept: list[tuple[int, Any]] = []
        self.sent = self.got = 0
        self.why: str | None = None

    def heard(self, released: list[int], messages: list[Any]) -> None:
        for block in released:
            self.arena.give(block)
        for kind, *rest in messages:
            if kind == m.SEGMENT:
                self.channel.incoming.add(rest[0], self.channel.fds.popleft(), rest[1])
            elif kind == m.DROP:
                self.channel.incoming.drop(rest[0])
            else:
                number, block, size, told = rest
                view = self.channel.incoming.lease(block, size)
                self.kept.append((number, m.tensors_of(view, told)[0].array))
                self.got += 1
        self.channel.release_later()

    def lost(self, why: str) -> None:
        self.why = why

    def send(self, size: int) -> None:
        number = self.sent
        self.sent += 1
        data = bytes([number % 251]) * size
        tensor = Tensor("t", DATATYPES["UINT8"], (size,), data)
        self.channel.send((99, number, *m.put(self.arena, [tensor])))

    def check_some(self, chance: random.Random, share: float) -> None:
        """Everything kept holds what was written; some of it is let go."""
        for number, array in self.kept:
            assert not array.flags.writeable
            assert (array == number % 251).all()
        self.kept = [each for each in self.kept if chance.random() > share]

    def trim(self) -> None:
        for number in self.arena.trim():
            self.channel.send((m.DROP, number))

    def close(self) -> None:
        self.channel.close()
        self.arena.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.one_of(st.integers(0, 300), st.integers(0, 2_000_000))),
        st.tuples(st.just("check"), st.integers(0, 10)),
        st.tuples(st.just("trim"), st.just(0)),
        st.tuples(st.just("wait"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=40)
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_what_is_looked_at_is_never_written_over(steps: list[Any], seed: int) -> None:
    chance = random.Random(seed)

    async def main() -> None:
        one, other = map(End, socket.socketpair())
        try:
            for kind, value in steps:
                end = chance.choice((one, other))
                if kind == "send":
                    end.send(value)
                elif kind == "check":
                    end.check_some(chance, value / 10)
                elif kind == "trim":
                    end.trim()
                else:
                    await asyncio.sleep(0)
            while (one.got, other.got) != (other.sent, one.sent):
                await asyncio.sleep(0.001)
            for end in (one, other):
                end.check_some(chance, 2.0)
            gc.collect()
            while len(one.arena) or len(other.arena):
                await asyncio.sleep(0.001)
            assert one.why is other.why is None
        finally:
            one.close()
            other.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_slow_reader_gets_everything_in_order() -> None:
    async def main() -> None:
        one, two = socket.socketpair()
        got: list[Any] = []
        writer = Channel(asyncio.get_running_loop(), one, lambda r, m: None, lambda why: None)
        fds = [os.memfd_create("t") for _ in range(40)]
        for number in range(2000):
            writer.send((number, "x" * 500), fds[number // 50] if number % 50 == 0 else None)
            writer.flush()
        assert writer.blocked
        reader = Channel(
            asyncio.get_running_loop(), two, lambda r, m: got.extend(m), lambda why: None
        )
        while len(got) < 2000:
            await asyncio.sleep(0)
        assert [each[0] for each in got] == list(range(2000))
        assert [os.fstat(fd).st_ino for fd in reader.fds] == [os.fstat(fd).st_ino for fd in fds]
        assert not writer.blocked
        writer.close()
        reader.close()
        for fd in fds:
            os.close(fd)

    asyncio.run(main())


@pytest.mark.parametrize(
    "frame", [b"\xff\xff\xff\xff", b"\x04\0\0\0what", b"\x03\0\0\0\x92\x90\x05"]
)
def test_nonsense_closes_the_channel(frame: bytes) -> None:
    async def main() -> str:
        one, two = socket.socketpair()
        end = asyncio.get_running_loop().create_future()
        Channel(asyncio.get_running_loop(), one, lambda r, m: list(m), end.set_result)
        two.sendall(frame)
        try:
            return str(await asyncio.wait_for(end, 30))
        finally:
            two.close()

    assert asyncio.run(main())


def test_what_cannot_be_said_harms_nothing_else() -> None:
    async def main() -> list[Any]:
        one, two = socket.socketpair()
        got: list[Any] = []
        loop = asyncio.get_running_loop()
        writer = Channel(loop, one, lambda r, m: None, lambda why: None)
        reader = Channel(loop, two, lambda r, m: got.extend(m), lambda why: None)
        writer.send((1,))
        for bad in (2**70, "\ud800", object()):
            with pytest.raises((OverflowError, UnicodeEncodeError, TypeError)):
                writer.send((2, bad))
        writer.send((3,))
        while len(got) < 2:
            await asyncio.sleep(0)
        writer.close()
        reader.close()
        return got

    assert asyncio.run(main()) == [[1], [3]]


@pytest.mark.parametrize("kind", sorted(DATATYPES))
def test_every_datatype_crosses(kind: str) -> None:
    datatype = DATATYPES[kind]
    if kind == "BYTES":
        array: Any = objects([b"", b"a", b"\xff" * 300], (3, 1))
    else:
        array = np.arange(6).reshape(2, 3).astype(datatype.dtype)
    arena = Arena(Segment, 1 << 30)
    empty = Tensor("empty", DATATYPES["FP32"], (0, 4), b"")
    tensor = Tensor("t", datatype, array.shape, array=array)
    block, size, told = m.put(arena, [empty, tensor])
    back = m.tensors_of(arena.view(block)[:size], told)
    assert back[0].array.shape == (0, 4)
    assert back[1].array.tolist() == array.tolist()
    assert back[1].array.dtype == array.dtype
    del back
    gc.collect()
    arena.close()
