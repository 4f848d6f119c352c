"""What the comparison cannot go on with: printed on one line; the run ends with 2."""

from loadtests.errors import BenchError

__all__ = ["BenchError"]
