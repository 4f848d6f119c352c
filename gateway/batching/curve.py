"""What a batch of so many rows costs, learned from those that ran."""

from __future__ import annotations

from typing import Final

_WEIGHT: Final = 0.1
"""Of the newest sample in the moving average."""
_ENOUGH: Final = 4
"""Batches after which what the first ones cost, which were cold, has faded."""


class CostCurve:
    """Seconds per batch, a moving average for each power of two of rows."""

    __slots__ = ("_counts", "_rows", "_seconds")

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._rows: list[float] = []
        """The rows that those seconds are for, averaged alike."""
        self._counts: list[int] = []

    def observe(self, rows: int, seconds: float) -> None:
        """One batch of `rows` took `seconds` in the runtime."""
        bucket = rows.bit_length()
        known = self._seconds
        while len(known) <= bucket:
            known.append(-1.0)
            self._rows.append(0.0)
            self._counts.append(0)
        old = known[bucket]
        count = self._counts[bucket] = self._counts[bucket] + 1
        # The first samples are the cold ones: let them fade quickly.
        weight = _WEIGHT if count > 10 else 1.0 / min(count, 4)
        known[bucket] = seconds if old < 0 else old + weight * (seconds - old)
        mean = self._rows[bucket]
        self._rows[bucket] = mean + weight * (rows - mean) if mean else float(rows)

    def predict(self, rows: int) -> float | None:
        """Expected seconds for `rows`; `None` while nothing is known.

        Sizes not seen yet are taken from the nearest smaller one in proportion to the rows,
        which is an upper bound for anything that batches, else from the nearest larger one.
        """
        known = self._seconds
        bucket = rows.bit_length()
        if bucket < len(known) and known[bucket] >= 0:
            return known[bucket]
        for smaller in range(min(bucket, len(known)) - 1, -1, -1):
            if known[smaller] >= 0:
                return known[smaller] * (1 << (bucket - smaller))
        for larger in range(bucket + 1, len(known)):
            if known[larger] >= 0:
                return known[larger]
        return None

    def between(self, rows: int) -> float | None:
        """Expected seconds for `rows`, interpolated between the sizes seen; `None` while nothing is
        known. Fewer rows than ever seen cost what the fewest did, more cost in proportion."""
        below: tuple[float, float] | None = None
        for size, seconds in zip(self._rows, self._seconds, strict=True):
            if seconds < 0:
                continue
            if size >= rows:
                if below is None or size == below[0]:
                    return seconds
                share = (rows - below[0]) / (size - below[0])
                return below[1] + share * (seconds - below[1])
            below = size, seconds
        return None if below is None else below[1] * rows / below[0]

    def paying(self, most: int, share: float) -> int:
        """The smallest batch, of `most` rows at most, with that share of the best throughput."""
        sizes = []
        size = 1
        while size < most:
            sizes.append(size)
            size += max((1 << size.bit_length()) // 8, 1)  # four to each power of two
        sizes.append(most)
        least = share * max(map(self._rate, sizes))
        return next(size for size in sizes if self._rate(size) >= least)

    def _rate(self, rows: int) -> float:
        seconds = self.between(rows)
        return rows / seconds if seconds else 0.0

    def saved(self, rows: int) -> float | None:
        """Seconds that one batch of `rows` takes less than each row by itself; `None` unless both
        were seen often enough to say."""
        bucket = rows.bit_length()
        counts = self._counts
        if bucket >= len(counts) or min(counts[bucket], counts[1]) < _ENOUGH:
            return None
        return rows * self._seconds[1] - self._seconds[bucket] * rows / self._rows[bucket]

    def samples(self) -> int:
        """How many batches were seen."""
        return sum(self._counts)
