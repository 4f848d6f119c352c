"""HdrHistograms in the compressed V2 encoding, where the package hdrhistogram is installed.

It is no part of the base installation: it depends on setuptools, and has no wheel for some
platforms that we run on. Without it a result is complete but for its histograms, which only the
percentile curves of a report, and other HdrHistogram tools, read.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from loadtests.errors import BenchError

LOWEST: Final = 1
HIGHEST: Final = 3_600_000_000
"""µs: an hour."""
DIGITS: Final = 3
EXTRA: Final = "pip install 'sluicegate[bench]'"


def missing() -> bool:
    """Whether histograms can neither be written nor read."""
    try:
        import hdrh.histogram  # noqa: F401
    except ImportError:
        return True
    return False


def available() -> None:
    """Raises `BenchError` that names the extra where histograms cannot be read."""
    if missing():
        raise BenchError(f"histograms are read by hdrhistogram, which is missing; type: {EXTRA}")


def encode(counts: Iterable[tuple[int, int]]) -> str:
    """(µs, how many) as base64; empty without the package."""
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:
        return ""
    histogram = HdrHistogram(LOWEST, HIGHEST, DIGITS)
    for value, count in counts:
        histogram.record_value(value, count)
    text: bytes = histogram.encode()
    return text.decode()


@lru_cache(maxsize=256)
def decode(histogram: str) -> Any:
    """The HdrHistogram of base64. Raises `BenchError` where it is none, or without the package."""
    available()
    from hdrh.histogram import HdrHistogram

    try:
        return HdrHistogram.decode(histogram)
    except Exception as error:
        raise BenchError(
            f"a histogram of the result cannot be read ({type(error).__name__}: {error}); "
            "the file is damaged: measure again"
        ) from None
