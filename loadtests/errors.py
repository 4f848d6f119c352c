"""The errors of all load tests."""


class BenchError(RuntimeError):
    """Something that keeps a measurement from being made; the message says what to do."""


class Unreachable(BenchError):
    """Nobody answers at the address."""
