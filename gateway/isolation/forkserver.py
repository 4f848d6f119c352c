"""A process that has imported what children need, and forks them. See docs/decisions/0013.

It runs one thread and no event loop. A child is the fork of a fork, whose parent has ended: the
kernel then makes it the gateway's own child, which waits for it and whose end it shares. So the
fork server may end at any time, and no child notices.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.isolation.bootstrap import die_with, limit

COMMON: Final = (
    "gateway.isolation.child", "uvloop", "runtimes.onnx", "runtimes.python.runtime",
)  # fmt: skip
"""What most children need. None of it starts a thread, other than numpy's, which a fork ends."""
HARMLESS: Final = frozenset({"jemalloc_bg_thd"})
"""Threads whose library does what a fork needs by itself (pyarrow has brought this one)."""
STALE: Final = 75
"""Exit code: packages have been installed or removed since; another fork server is needed."""
_MOST: Final = 1 << 16
_ADOPTION_SECONDS: Final = 10.0


class Asked(NamedTuple):
    """One child: what the gateway sends, and the numbers of what came along in the child."""

    parent: int
    memory: int
    cpus: list[int]
    channel: int
    lifeline: int
    output: int
    report: int


def serve(end: int, modules: list[str]) -> tuple[int, int]:
    """Forks children until the gateway is gone; returns in each of them: channel and lifeline."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(end, False)
    gateway = socket.socket(fileno=end)
    before = installed()
    # Here and not in a thread that ends: pyarrow's allocator belongs to the one that imports it.
    import_all((*COMMON, *modules))
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page
    with contextlib.suppress(OSError):
        gateway.send(json.dumps(threads_after_fork()).encode())
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(gateway, _MOST, 4)
        except OSError:
            os._exit(0)
        if not data:
            os._exit(0)
        if installed() != before:
            os._exit(STALE)
        asked = Asked(*json.loads(data), *fds)
        if _fork(asked):
            gateway.close()
            return asked.channel, asked.lifeline
        for fd in fds:
            os.close(fd)


def import_all(modules: tuple[str, ...]) -> None:
    """Imports what can be imported. What cannot will say so in the child that needs it."""
    for module in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)


def installed() -> list[int]:
    """Changes when packages are installed, replaced or removed."""
    times = []
    for entry in sys.path:
        if entry.endswith("-packages"):
            with contextlib.suppress(OSError):
                times.append(os.stat(entry).st_mtime_ns)
    return times


def threads_after_fork() -> list[str]:
    """Names of threads that a fork would lose, and with them what they hold: empty if it is safe.

    Looked for after a fork: libraries that know of forks end theirs before one (OpenBLAS does).
    """
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    found: list[str] = []
    for _ in range(50):  # one that has just been joined is listed for a moment more
        found = []
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                if int(task.name) != os.getpid():
                    found.append((task / "comm").read_text().strip())
        found = [name for name in found if name not in HARMLESS]
        if not found:
            break
        time.sleep(0.01)
    return found


def _fork(asked: Asked) -> bool:
    """Forks twice; `True` in the child, once it belongs to the gateway."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return False
    # If anything fails from here on, nothing but this process may end.
    try:
        between = os.getpid()
        pid = os.fork()
        if pid:
            try:
                os.write(asked.report, b"%d\n" % pid)
            except OSError:  # the gateway does not wait for it any more
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        _become_child(asked, between)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    return True


def _become_child(asked: Asked, between: int) -> None:
    os.setsid()  # Ctrl-C is for the gateway; and what it starts ends with its group
    end = time.monotonic() + _ADOPTION_SECONDS
    while os.getppid() == between and time.monotonic() < end:
        time.sleep(0.0002)
    die_with(asked.parent)
    os.dup2(asked.output, 1)
    os.dup2(asked.output, 2)
    os.close(asked.output)
    limit(asked.memory, asked.cpus)
    for fd in (asked.channel, asked.lifeline):
        os.set_inheritable(fd, False)
    _seed_anew()
    importlib.invalidate_caches()
    os.close(asked.report)  # the gateway knows by this that all is as it should be


def _seed_anew() -> None:
    """Libraries that keep random state from their import: else all children had the same."""
    random: Any = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()
