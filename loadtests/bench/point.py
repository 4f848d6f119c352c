"""One level of load against one model: `run_point`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadtests.bench.plan import Load, Target
from loadtests.bench.results import Point, Tick
from loadtests.payloads.base import Wire


def run_point(
    target: Target,
    load: Load,
    payloads: Sequence[Wire],
    *,
    progress: Callable[[Tick], None] | None = None,
    server_statistics: bool = True,
) -> Point:
    """Sends ``payloads``, in turn, at the ``load``, and measures until it is over.

    Blocks; the sending is done by processes of its own. ``progress`` is called in this thread about
    once a second. With ``server_statistics`` the server's own queue and execute times are read
    beside (`loadtests.bench.server`), where it has any. Raises `BenchError` when nothing can be
    sent at all: nobody listens, or the very first request is refused as malformed.
    """
    raise NotImplementedError
