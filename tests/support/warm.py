"""Processes that begin as ``python -m gateway`` with everything imported already.

A gateway takes a second to start, most of it for imports, and tests start a hundred of them. One
process imports what every gateway needs and does nothing else; each gateway is a fork of it, which
goes on as ``python -m gateway`` does. Where that cannot be (variables that count from the start,
another system), and in the tests of the command line, a process is started as users start it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULES = (
    "gateway.cli.commands", "gateway.cli.serving", "gateway.servers.grpc_native", "uvloop",
    "gateway.history.store", "gateway.history.writer", "sqlalchemy.dialects.sqlite",
    "anyio._backends._asyncio", "runtimes.mlflow", "runtimes.onnx", "runtimes.python",
    "runtimes.remote.oip", "runtimes.remote.triton", "runtimes.torch", "numpy.random",
)  # fmt: skip
"""None of these starts a thread, which a fork would lose (as ONNX Runtime does)."""
PATIENCE = 60.0


# --- the side of the tests


class Warm:
    """The process that has imported everything; `environment` is that of its forks too."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self.environment,
                pass_fds=[theirs.fileno()],
            )
        self._lock = threading.Lock()
        self._rest = b""
        self._ended: dict[int, int] = {}
        self._started: list[int] = []
        atexit.register(self.close)

    def start(self, arguments: list[str], cwd: Path, log: int, more: Mapping[str, str]) -> Fork:
        """``python -m gateway ARGUMENTS``, its output in the file `log`, with `more` variables."""
        order = json.dumps([arguments, str(cwd), dict(more)]).encode() + b"\n"
        socket.send_fds(self._socket, [order], [log])
        end = time.monotonic() + PATIENCE
        while not self._started:
            assert time.monotonic() < end, "the warm process does not answer"
            self.listen(0.1)
        return Fork(self, self._started.pop())

    def listen(self, seconds: float = 0.0) -> None:
        """Hears what has started and ended, for up to so many seconds."""
        with self._lock:
            while select.select([self._socket], [], [], seconds)[0]:
                data = self._socket.recv(65536)
                assert data, "the warm process is gone"
                *lines, self._rest = (self._rest + data).split(b"\n")
                for kind, pid, code in map(json.loads, lines):
                    if kind == "started":
                        self._started.append(pid)
                    else:
                        self._ended[pid] = code
                seconds = 0.0

    def code(self, pid: int) -> int | None:
        """The exit code of a fork that has ended."""
        self.listen()
        return self._ended.get(pid)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(PATIENCE)


class Fork:
    """A forked process, to be handled as a `subprocess.Popen`."""

    def __init__(self, warm: Warm, pid: int) -> None:
        self._warm = warm
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._warm.code(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"gateway {self.pid}", timeout or 0)
            self._warm.listen(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            # Its number is its own until we have heard of its end, or very nearly so.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


_INTERPRETER = sys.executable
_warm: list[Warm] = []


def start(
    arguments: list[str], cwd: Path, log: int, usual: Mapping[str, str], more: Mapping[str, str]
) -> Fork | subprocess.Popen[bytes]:
    """``python -m gateway ARGUMENTS``; `log` takes its output. Its environment is the `usual` one,
    the same for all, and `more`."""
    ours = sys.executable == _INTERPRETER  # a test may want that of another environment
    if ours and sys.platform == "linux" and all(name.startswith("SLUICE_") for name in more):
        if not _warm:
            _warm.append(Warm(usual))
        if _warm[0].environment == usual:
            return _warm[0].start(arguments, cwd, log, more)
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", *arguments],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**usual, **more}, cwd=cwd,
    )  # fmt: skip


# --- the side of the process


def main(number: int) -> None:
    """Takes orders until the tests are gone; in a fork, returns to become a gateway."""
    import importlib

    for name in MODULES:
        with contextlib.suppress(Exception):  # a fork will fail on it, and say so in its log
            importlib.import_module(name)
    tests = socket.socket(fileno=number)
    wake_up, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the tests
    while True:
        ready = select.select([tests, wake_up], [], [])[0]
        if wake_up in ready:
            os.read(wake_up, 4096)
            for pid, code in ended():
                say(tests, "ended", pid, code)
        if tests not in ready:
            continue
        data, fds, _, _ = socket.recv_fds(tests, 1 << 20, 1)
        if not data:
            os._exit(0)
        arguments, cwd, more = json.loads(data)
        pid = os.fork()
        if pid == 0:
            tests.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(wake_up)
            os.close(woken)
            os.dup2(fds[0], 1)
            os.dup2(fds[0], 2)
            os.close(fds[0])
            os.chdir(cwd)
            os.environ.update(more)
            sys.argv = ["gateway", *arguments]
            return
        os.close(fds[0])
        say(tests, "started", pid, 0)


def ended() -> list[tuple[int, int]]:
    """The forks that have ended, and how."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def say(tests: socket.socket, *what: Any) -> None:
    with contextlib.suppress(OSError):
        tests.sendall(json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    main(int(sys.argv[1]))
    import runpy

    runpy.run_module("gateway", run_name="__main__", alter_sys=True)
