"""Threads that PyTorch computes with.

Each thread that calls PyTorch has a team of its own, whose size `torch.set_num_threads` sets
for that thread and for those that come to life later. So a model sets it before it runs, where
the thread has another: models with different wishes do not disturb each other. The pool between
operators is one for the process, and its size can be said once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from gateway.errors import ModelLoadError

_WAITING: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_lock = threading.Lock()
_inter_op: int = 0


@contextmanager
def waiting_passively() -> Iterator[None]:
    """While PyTorch is imported: its threads will sleep when they wait for work.

    Threads that spin take the processor from the gateway's own. OpenMP reads this once, when it
    is loaded; whatever the environment says already is left alone.
    """
    if any(name in os.environ for name in _WAITING):
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        yield
    finally:
        os.environ.pop("OMP_WAIT_POLICY", None)


def default_threads(cores: int, instances: int) -> int:
    """Threads of one instance, so that all together are as many as cores."""
    return max(1, cores // instances)


def set_inter_op_threads(torch: Any, wanted: int) -> None:
    """Raises `ModelLoadError` when the process has another number already."""
    global _inter_op
    with _lock:
        now = torch.get_num_interop_threads()
        if wanted in (0, _inter_op) or (wanted == now and _inter_op):
            return
        if not _inter_op:
            try:
                torch.set_num_interop_threads(wanted)
            except RuntimeError:  # the pool has started
                if wanted != now:
                    raise ModelLoadError(_taken(wanted, now)) from None
            _inter_op = wanted
            return
    raise ModelLoadError(_taken(wanted, now))


def _taken(wanted: int, now: int) -> str:
    return (
        f"option 'inter_op_threads' is {wanted}, but PyTorch has {now} in this process already and "
        "can be told once; give all torch models the same number, restart the gateway, or set "
        "isolation: process"
    )
