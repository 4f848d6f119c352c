"""Which bytes of the shared segments are taken: first fit, so that hot memory is used again.

Only the side that writes allocates; the other one says when it no longer looks at a block.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final, Protocol

ALIGN: Final = 64
FIRST: Final = 1 << 20
LARGEST: Final = 1 << 28
"""Segments double up to this size; a larger block gets a segment of its own size."""
_OFFSET_BITS: Final = 44


class ArenaFull(Exception):
    """All that may be taken is taken."""


class SegmentLike(Protocol):
    """Memory of `size` bytes."""

    size: int
    view: memoryview

    def forget(self) -> None: ...

    def close(self) -> None: ...


class Ranges:
    """The free ranges of one segment, in order and never adjacent."""

    __slots__ = ("_sizes", "_starts", "free", "size")

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self._starts = [0]
        self._sizes = [size]

    def take(self, size: int) -> int | None:
        """The first place of `size` bytes, which is then taken; `None` if there is none."""
        sizes = self._sizes
        for index, have in enumerate(sizes):
            if have >= size:
                start = self._starts[index]
                if have == size:
                    del self._starts[index], sizes[index]
                else:
                    self._starts[index] = start + size
                    sizes[index] = have - size
                self.free -= size
                return start
        return None

    def give(self, start: int, size: int) -> None:
        """Takes a range back, joined with its free neighbours."""
        starts, sizes = self._starts, self._sizes
        self.free += size
        index = bisect_left(starts, start)
        after = index < len(starts) and starts[index] == start + size
        if index and starts[index - 1] + sizes[index - 1] == start:
            sizes[index - 1] += size
            if after:
                sizes[index - 1] += sizes[index]
                del starts[index], sizes[index]
        elif after:
            starts[index] = start
            sizes[index] += size
        else:
            starts.insert(index, start)
            sizes.insert(index, size)


class Arena:
    """Blocks in segments that `make` gives, `limit` bytes in all.

    A block is a number that both sides understand: the segment's, and the offset in it. One
    block alone may have any size, so that whatever was accepted can be sent.
    """

    def __init__(self, make: Callable[[int], SegmentLike], limit: int) -> None:
        self.segments: dict[int, SegmentLike] = {}
        self.taken = 0
        """Bytes in blocks."""
        self.on_segment: Callable[[int, SegmentLike], object] | None = None
        """Told of each new segment, before a block in it is used."""
        self._make = make
        self._limit = limit
        self._ranges: dict[int, Ranges] = {}
        self._blocks: dict[int, int] = {}
        self._next = 0
        self._punched = True

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self.segments.values())

    def take(self, size: int) -> int:
        """A block of at least `size` bytes. Raises `ArenaFull`, or `OSError` when the system has
        no memory."""
        size = (max(size, 1) + ALIGN - 1) & -ALIGN
        if self.taken and self.taken + size > self._limit:
            raise ArenaFull(f"{self.taken} of {self._limit} bytes of shared memory are in use")
        for number, ranges in self._ranges.items():
            if ranges.free >= size and (start := ranges.take(size)) is not None:
                return self._took(number, start, size)
        number = self._grow(size)
        start = self._ranges[number].take(size)
        assert start is not None
        return self._took(number, start, size)

    def _took(self, number: int, start: int, size: int) -> int:
        block = number << _OFFSET_BITS | start
        self._blocks[block] = size
        self.taken += size
        self._punched = False
        return block

    def _grow(self, size: int) -> int:
        want = min(max(FIRST, self.size), LARGEST)
        segment = self._make(max(want, (size + 4095) & -4096))
        number = self._next
        self._next += 1
        self.segments[number] = segment
        self._ranges[number] = Ranges(segment.size)
        if self.on_segment is not None:
            self.on_segment(number, segment)
        return number

    def give(self, block: int) -> None:
        """Takes a block back. Raises `KeyError` for one that is not taken."""
        size = self._blocks.pop(block)
        self.taken -= size
        number, start = place(block)
        self._ranges[number].give(start, size)

    def view(self, block: int) -> memoryview:
        """The block's bytes, from its start to the segment's end."""
        number, start = place(block)
        return self.segments[number].view[start:]

    def trim(self) -> list[int]:
        """Gives idle memory back to the system: the segments without blocks (all but one, which
        keeps its place but not its pages). Returns the numbers of those that are gone."""
        idle = [n for n, ranges in self._ranges.items() if ranges.free == ranges.size]
        keep = len(idle) == len(self._ranges)
        gone = idle[1:] if keep else idle
        for number in gone:
            self.segments.pop(number).close()
            del self._ranges[number]
        if keep and idle and not self._punched:
            self.segments[idle[0]].forget()
            self._punched = True
        return gone

    def close(self) -> None:
        """Unmaps everything."""
        for segment in self.segments.values():
            segment.close()
        self.segments.clear()
        self._ranges.clear()
        self._blocks.clear()
        self.taken = 0


def place(block: int) -> tuple[int, int]:
    """Segment and offset of a block."""
    return block >> _OFFSET_BITS, block & ((1 << _OFFSET_BITS) - 1)
