"""Starts a Python program in given surroundings: a child of its own, or a fork server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

import gateway
import runtimes
from gateway.isolation.limits import Surroundings

SCRIPT: Final = Path(__file__).with_name("bootstrap.py")


@dataclass(frozen=True)
class Ties:
    """What one child gets: numbers of open files, and its bounds (`Surroundings`)."""

    channel: int
    lifeline: int
    memory: int
    cpus: list[int]


class Launched(Protocol):
    """A process of ours; the part of `subprocess.Popen` that is needed."""

    pid: int
    stdout: IO[bytes] | None

    def poll(self) -> int | None:
        """The exit code (-n for signal n), `None` while it runs."""
        ...

    def wait(self) -> int:
        """The exit code, once it has ended."""
        ...


Launch = Callable[[Surroundings, Ties], Launched]


def plan_of(around: Surroundings, **more: Any) -> str:
    """What `bootstrap` reads."""
    plan = {
        "parent": os.getpid(),
        "path": None if around.foreign else sys.path,
        "packages": {
            package.__name__: str(Path(str(package.__file__)).parent)
            for package in (gateway, runtimes)
        },
        **more,
    }
    return json.dumps(plan)


def run(around: Surroundings, plan: str, fds: tuple[int, ...], output: int) -> Any:
    """Starts the interpreter; it ends with the thread that calls this. Raises `OSError`."""
    return subprocess.Popen(
        [around.python, "-X", "faulthandler", str(SCRIPT), plan],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=around.environment(os.environ),
        pass_fds=fds,
        start_new_session=True,  # Ctrl-C is for the gateway, which ends it in order
    )


def by_exec(around: Surroundings, ties: Ties) -> Launched:
    """A child that begins as a program, and imports what it needs itself. Raises `OSError`."""
    plan = plan_of(
        around,
        channel=ties.channel,
        lifeline=ties.lifeline,
        memory=ties.memory,
        cpus=ties.cpus,
    )
    started: Launched = run(around, plan, (ties.channel, ties.lifeline), subprocess.PIPE)
    return started


class Forked:
    """A child that a fork server has forked for us, which the kernel has made ours."""

    def __init__(self, pid: int, output: int) -> None:
        self.pid = pid
        self.stdout: IO[bytes] | None = os.fdopen(output, "rb", buffering=0)
        self._code: int | None = None

    def poll(self) -> int | None:
        """See `Launched.poll`."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """See `Launched.wait`."""
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # somebody else has waited for all children
                self._code = -signal.SIGKILL
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code
