"""``h2load``: the posted file, the command, and what it printed."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.errors import BenchError

from .peers import oip
from .wire import HttpRequest, Rows

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = r"([\d.]+)(us|ms|s|m|h)"
_FINISHED = re.compile(rf"finished in {_DURATION}, ([\d.]+) req/s")
_COUNTS = re.compile(
    r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, "
    r"(\d+) failed, (\d+) errored, (\d+) timeout"
)
_CODES = re.compile(r"status codes: (\d+) 2xx")
_DATA = re.compile(r"traffic: .*\((\d+)\) data")
_MEAN = re.compile(rf"time for request:\s+{_DURATION}\s+{_DURATION}\s+{_DURATION}")


@dataclass(frozen=True)
class Shape:
    """How many connections, and how many requests in flight on each."""

    clients: int
    streams: int = 1

    @property
    def concurrency(self) -> int:
        """Requests in flight."""
        return self.clients * self.streams


@dataclass
class Result:
    """What h2load measured. Times in microseconds, ``seconds`` in seconds."""

    requests: int
    seconds: float = math.nan
    per_second: float = math.nan
    mean_us: float = math.nan
    p50_us: float | None = None
    p99_us: float | None = None
    succeeded: int = 0
    failed: int = 0
    errored: int = 0
    timeouts: int = 0
    ok_codes: int = 0
    opening_us: float | None = None
    """From the first request until all that were first on their connections were answered."""
    data_bytes: int = 0
    """Of all answers' bodies."""
    problem: str = ""

    def problems(self) -> list[str]:
        """Why the run does not count; empty if it does."""
        if self.problem:
            return [self.problem]
        found = []
        for word in ("failed", "errored", "timeouts"):
            if count := getattr(self, word):
                found.append(f"h2load: {count} {word}")
        if self.succeeded != self.requests:
            found.append(f"h2load: {self.succeeded} of {self.requests} succeeded")
        if self.ok_codes != self.requests:
            found.append(f"h2load: {self.ok_codes} of {self.requests} answered 2xx")
        return found


@dataclass(frozen=True)
class Target:
    """One request, ready to be posted again and again."""

    url: str
    file: Path
    options: tuple[str, ...]


def prepare(request: HttpRequest, address: str, file: Path, *, grpc: bool) -> Target:
    """Writes the body to ``file``. gRPC: the path and the framed message."""
    file.write_bytes(request.body)
    headers = [f"-H{name}: {value}" for name, value in request.headers.items()]
    options = headers if grpc else ["--h1", *headers]
    return Target(f"http://{address}{request.path}", file, tuple(options))


def target(protocol: str, server: tuple[str, str], model: str, rows: Rows, file: Path) -> Target:
    """One request of the Open Inference Protocol; addresses of HTTP and of gRPC."""
    route = oip.ROUTES[protocol]
    return prepare(route.encode(model, rows), server[route.grpc], file, grpc=route.grpc)


def version() -> str:
    """h2load's own version line; an error if it is not there."""
    if shutil.which("h2load") is None:
        raise BenchError("h2load is missing: install it with `apt install nghttp2-client`")
    said = subprocess.run(
        ["h2load", "--version"], check=False, capture_output=True, text=True, timeout=10
    )
    return said.stdout.strip()


def run(
    what: Target,
    shape: Shape,
    requests: int,
    *,
    timeout_s: float,
    log: Path | None = None,
    settled: bool = False,
) -> Result:
    """Posts exactly ``requests`` requests, in one thread.

    With ``log``, every request's time is written there and the percentiles are filled in.
    That costs the load generator 2 to 3 µs a request, which shows in the rate from some
    10,000 requests a second on. ``settled`` leaves out what was before every connection was
    answered once: see `percentiles`.
    """
    shape = Shape(min(shape.clients, requests), shape.streams)
    command = ["h2load", f"-c{shape.clients}", f"-m{shape.streams}", f"-n{requests}"]
    command += [f"-d{what.file}", *what.options]
    if log is not None:
        log.unlink(missing_ok=True)
        command.append(f"--log-file={log}")
    result = Result(requests)
    try:
        said = subprocess.run(
            [*command, what.url],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        result.problem = f"h2load did not end within {timeout_s:.0f} s"
        return result
    parse(said.stdout + said.stderr, result)
    if log is not None and not result.problem:
        percentiles(log, result, shape.concurrency if settled else 0)
    return result


def parse(text: str, result: Result) -> None:
    """Fills ``result`` from what h2load printed."""
    finished, counts = _FINISHED.search(text), _COUNTS.search(text)
    codes, mean = _CODES.search(text), _MEAN.search(text)
    if not (finished and counts and codes and mean):
        last = " ".join(text.split()[-30:])
        result.problem = f"h2load's report cannot be read: {last}"
        return
    result.seconds = _seconds(finished[1], finished[2])
    result.per_second = float(finished[3])
    result.succeeded, result.failed = int(counts[3]), int(counts[4])
    result.errored, result.timeouts = int(counts[5]), int(counts[6])
    result.ok_codes = int(codes[1])
    if data := _DATA.search(text):
        result.data_bytes = int(data[1])
    result.mean_us = _seconds(mean[5], mean[6]) * 1e6


def _seconds(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]


def percentiles(log: Path, result: Result, first: int = 0) -> None:
    """Mean, p50 and p99 from h2load's log of every request's time.

    With ``first``, the number of requests in flight, they are of what began when so many had been
    answered, and the rate of what was answered from then on: until then connections are made, which
    is another thing than using them. It needs as many requests after that as before, and is a
    problem of the result otherwise.
    """
    with log.open("rb") as lines:
        fields = [line.split(b"\t") for line in lines]
    log.unlink()
    if len(fields) != result.requests:
        result.problem = f"h2load logged {len(fields)} of {result.requests} requests"
        return
    times = np.array([int(each[2]) for each in fields], np.int64)
    if first:
        began = np.array([int(each[0]) for each in fields], np.int64)
        ended = began + times
        opening = np.argsort(began, kind="stable")[:first]
        settled = ended[opening].max()
        result.opening_us = float(settled - began.min())
        inside = began >= settled
        if inside.sum() < first:
            result.problem = "h2load was done before all connections had been answered once"
            return
        times = times[inside]
        # What was in flight at that moment is answered in the same time as the rest.
        answered = int((ended > settled).sum())
        result.per_second = answered / (max(float(ended.max() - settled), 1.0) / 1e6)
    result.mean_us = float(times.mean())
    result.p50_us, result.p99_us = (float(value) for value in np.percentile(times, [50, 99]))


def calibrate(
    what: Target, shape: Shape, *, seconds: float, timeout_s: float, first: int = 8
) -> float:
    """Requests a second, roughly, from runs that grow until one takes ``seconds``.

    The first has two for each in flight, and at least ``first``. It warms the server up on the way.
    """
    requests = max(2 * shape.concurrency, first)
    while True:
        result = run(what, shape, requests, timeout_s=timeout_s)
        if result.problems():
            raise BenchError(f"{what.url}: {'; '.join(result.problems())}")
        if result.seconds >= seconds:
            return result.per_second
        grow = 1.3 * seconds / max(result.seconds, 1e-3)
        requests = int(requests * min(max(grow, 1.5), 10))
