"""What the comparison cannot go on with."""


class BenchError(Exception):
    """Printed on one line; the run ends with 2."""
