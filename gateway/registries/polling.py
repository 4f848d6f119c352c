"""How often a source that is elsewhere is looked at: for every registry that polls.

`gateway.registries.stores` and `gateway.registries.mlflow.watching` take their pauses from
`pause_after`; each says with `longest` how long it stays away from a source that does not answer.
"""

from __future__ import annotations

import random
from typing import Final

JITTER: Final = 0.1
"""Part of a pause by which it varies, so that many gateways do not ask at the same time."""
SHARE: Final = 20.0
"""A pause is at least so many times the processor time of the look before it."""
_MOST_DOUBLED: Final = 16


def pause_after(poll_seconds: float, failures: int, longest: float, busy: float = 0.0) -> float:
    """Seconds until the next look.

    `failures` is how many looks in a row were in vain: each doubles the pause, up to `longest` (or
    `poll_seconds`, if that is more). `busy` is the processor time in seconds of the last look.
    """
    pause = poll_seconds * 2.0 ** min(failures, _MOST_DOUBLED)
    pause = min(pause, max(poll_seconds, longest))
    return jittered(max(pause, SHARE * busy))


def jittered(seconds: float) -> float:
    """A tenth more or less."""
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)
