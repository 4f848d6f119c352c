"""Numbers with a unit, as people type them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
"""What the units of a length of time are, in seconds."""
MILLISECONDS: Final = {"us": 0.001, "µs": 0.001, "ms": 1.0, "s": 1000.0}
"""What the units of a latency are, in milliseconds."""
_NUMBER: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*(\D*)")


def quantity(text: str, units: Mapping[str, float]) -> float | None:
    """``90s``, ``1.5 m`` in what ``units`` turn it into; ``None`` for anything else."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def finite(text: str) -> float:
    """A number, of an option of ``argparse``. Raises `ValueError` for what is none, ``nan`` and
    ``inf`` among it: no comparison refuses those."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


def share(text: str) -> float | None:
    """``5%`` or ``0.05`` as 0.05; ``None`` for anything else."""
    value = quantity(text, {"": 1.0, "%": 1.0})
    return value / 100 if value is not None and text.strip().endswith("%") else value
