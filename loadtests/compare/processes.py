"""Servers as child processes: ports, start, readiness, memory, stop."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtests.errors import BenchError
from loadtests.kernel import status

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: ``python -m gateway`` and ``python -m loadtests...`` are found from here."""
MARK: Final = "LOADTEST_SERVER"
"""In the environment of a server and of all that it starts: which one it is, and of which run."""
_FOREIGN: Final = re.compile(
    r"PYTHON\w*|VIRTUAL_ENV\w*|CONDA_\w*|\w+_NUM_THREADS|(OMP|KMP|MKL|GOMP|BLIS)_\w+|LD_PRELOAD"
)
"""Variables of the caller that would change what a server loads, or its number of threads."""
_RUN: Final = secrets.token_hex(8)
_numbers = itertools.count(1)


@dataclass
class Server:
    """A running server. Addresses are ``host:port``."""

    label: str
    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_s: float = 0.0
    """Seconds from exec until ready answered 200."""
    models: dict[str, str] = field(default_factory=dict)
    """Model → the name it has on this server, where that differs."""


def inherited() -> dict[str, str]:
    """The caller's environment without what would change a server (``PYTHONPATH``, threads)."""
    return {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(address: str, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Status and body of one HTTP GET; status 0 when nobody answers."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


@contextmanager
def started(
    label: str,
    command: Sequence[str],
    ports: tuple[str, str, str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    ready_timeout_s: float = 120.0,
    poll_s: float = 0.01,
    stop_grace_s: float = 15.0,
    stop_with: signal.Signals = signal.SIGTERM,
    after: Callable[[], None] | None = None,
    ready_path: str = "/v2/health/ready",
    cwd: Path = ROOT,
) -> Iterator[Server]:
    """Runs ``command`` until the block ends; enters once ``ready_path`` answers 200.

    ``ports`` are the addresses of HTTP, gRPC and metrics. The process has a session of its
    own, and all of it is ended with the block: ``stop_with``, then SIGKILL after ``stop_grace_s``;
    and then whatever it started that left the session. Its environment is `inherited`, and ``env``.
    """
    mark = f"{_RUN}.{next(_numbers)}."
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited(), **(env or {}), MARK: mark},
            start_new_session=True,
            cwd=cwd,
        )
    server = Server(label, *ports, process, log)
    try:
        _wait_ready(server, ready_path, began + ready_timeout_s, poll_s)
        server.ready_s = time.perf_counter() - began
        yield server
    finally:
        _stop(process, stop_with, stop_grace_s)
        sweep(mark)
        if after is not None:
            after()


def _wait_ready(server: Server, path: str, until: float, poll_s: float) -> None:
    while True:
        if get(server.http, path, timeout_s=5)[0] == 200:
            return
        code = server.process.poll()
        if code is not None:
            raise BenchError(f"{server.label} ended with {code} before it was ready{_tail(server)}")
        if time.perf_counter() > until:
            raise BenchError(f"{server.label} was not ready in time{_tail(server)}")
        time.sleep(poll_s)


def _tail(server: Server, lines: int = 15) -> str:
    text = server.log.read_text(errors="replace").splitlines()[-lines:]
    return "; its last output:\n  " + "\n  ".join(text) if text else " (it printed nothing)"


def wait_models(server: Server, names: Sequence[str], timeout_s: float = 120.0) -> None:
    """Returns once every model answers that it is ready."""
    until = time.perf_counter() + timeout_s
    for name in names:
        while get(server.http, f"/v2/models/{name}/ready")[0] != 200:
            if time.perf_counter() > until or server.process.poll() is not None:
                raise BenchError(f"{server.label}: model {name} is not ready{_tail(server)}")
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes], number: signal.Signals, grace_s: float) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def sweep(mark: str, passes: int = 50) -> None:
    """Ends every process that has ``mark``, or one that begins so, and is still there.

    Again and again until none is found: one may start another while it is being ended.
    """
    wanted = f"{MARK}={mark}".encode()
    for _ in range(passes):
        ended = [_ended(folder, wanted) for folder in Path("/proc").glob("[0-9]*")]
        if not any(ended):
            return
        time.sleep(0.1)


def _ended(folder: Path, wanted: bytes) -> bool:
    """Whether this process had the mark and was sent SIGKILL. A dead one has no environment."""
    with suppress(OSError):
        number = int(folder.name)
        variables = (folder / "environ").read_bytes().split(b"\0")
        if number != os.getpid() and any(each.startswith(wanted) for each in variables):
            os.kill(number, signal.SIGKILL)
            return True
    return False


@contextmanager
def guarded() -> Iterator[None]:
    """While the block runs, a guard waits for this process to end, however it ends (SIGKILL too);
    then it ends all servers that this process has started."""
    code = (
        "import sys; from loadtests.compare import processes as p; sys.stdin.read(); p.sweep({!r})"
    )
    guard = subprocess.Popen(
        [sys.executable, "-c", code.format(f"{_RUN}.")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def resident_bytes(pid: int) -> int:
    """Resident memory (RSS) of the process and its descendants, in bytes."""
    return sum(status(member, "VmRSS") for member in tree(pid)) * 1024
