"""Runs a command on some cores only: ``python -m loadtests.scale.pinned 0,1 COMMAND ...``.

On a small machine the load generator takes from the server what it needs, the more the higher the
load; each gets cores of its own, so that an overload is one of the server.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loadtests.errors import BenchError


def halves() -> tuple[list[int], list[int]] | None:
    """Cores for the server and cores for the client; ``None`` where there is one core, or where
    the system does not divide them."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    middle = len(cores) // 2
    return (cores[:middle], cores[middle:]) if middle else None


def command(cores: Sequence[int], words: str) -> str:
    """What runs ``words`` on these cores."""
    runner = [sys.executable, "-m", "loadtests.scale.pinned", ",".join(map(str, cores))]
    return f"{shlex.join(runner)} {words}"


@contextmanager
def on(cores: Sequence[int]) -> Iterator[None]:
    """This thread, and the processes that it starts, run on these cores within the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main(words: Sequence[str]) -> None:
    """Becomes the command."""
    if len(words) < 2:
        raise BenchError("usage: python -m loadtests.scale.pinned CORES COMMAND ...")
    os.sched_setaffinity(0, [int(core) for core in words[0].split(",")])
    os.execvp(words[1], list(words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
