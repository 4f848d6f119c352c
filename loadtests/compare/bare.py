"""The bare loop: onnxruntime called directly at one batch size, in processes of its own.

It is what a server can at best reach on the same threads: no sockets, no copies, no queue.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loadtests.errors import BenchError
from loadtests.units import finite

from .processes import ROOT, inherited
from .session import open_session
from .wire import Rows

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
LARGEST = 64 << 20
"""Bytes of the largest batch that is tried."""
PATIENCE_S = 120.0
"""Until every loop has its session open and one call made."""


@dataclass(frozen=True)
class Loop:
    """What the loops gave together; times are those of a call, in microseconds."""

    rows_per_second: float
    mean_us: float
    p50_us: float
    p99_us: float


def measure(path: Path, threads: int, batch: int, seconds: float, loops: int = 1) -> Loop:
    """Runs ``loops`` of them at once, each in a fresh process, after a warm-up.

    Rows a second are added up; times are those of the slowest. Raises `BenchError`.
    """
    command = [sys.executable, "-m", "loadtests.compare.bare", str(path)]
    command += ["--threads", str(threads), "--batch", str(batch), "--seconds", str(seconds)]
    with ExitStack() as stack:
        running = [stack.enter_context(_running(command)) for _ in range(loops)]
        for one in running:
            assert one.stdout is not None
            if not select.select([one.stdout], [], [], PATIENCE_S)[0] or not one.stdout.readline():
                one.kill()
                raise BenchError(f"the bare loop failed: {one.communicate()[1].splitlines()[-1:]}")
        for one in running:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        found = [_loop(one, seconds) for one in running]
    return Loop(
        sum(each.rows_per_second for each in found),
        *(max(getattr(each, name) for each in found) for name in ("mean_us", "p50_us", "p99_us")),
    )


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=inherited()
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


def _loop(process: subprocess.Popen[str], seconds: float) -> Loop:
    try:
        out, err = process.communicate(timeout=seconds * 5 + 60)
    except subprocess.TimeoutExpired:
        raise BenchError("the bare loop did not end") from None
    if process.returncode:
        raise BenchError(f"the bare loop failed: {err.strip().splitlines()[-1:]}")
    return Loop(**json.loads(out))


def rows_per_second(path: Path, threads: int, batch: int, seconds: float, loops: int = 1) -> float:
    """Rows a second of all loops together."""
    return measure(path, threads, batch, seconds, loops).rows_per_second


def best_batch(
    path: Path,
    threads: int,
    seconds: float,
    *,
    row_bytes: int = 0,
    loops: int = 1,
    passes: int = 2,
) -> tuple[int, dict[int, float]]:
    """The batch size with the most rows a second, and the rows a second of each.

    Each size is tried in every pass, and its best one counts. Batches beyond `LARGEST` are left
    out, where ``row_bytes`` says how large a row is.
    """
    rates = {batch: 0.0 for batch in BATCHES if batch == 1 or batch * row_bytes <= LARGEST}
    for _ in range(passes):
        for batch in rates:
            rate = rows_per_second(path, threads, batch, seconds, loops)
            rates[batch] = max(rates[batch], rate)
    return max(rates, key=lambda batch: rates[batch]), rates


def main() -> None:
    """The loop itself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=finite, required=True)
    args = parser.parse_args()
    session = open_session(args.model, args.threads)
    (given,) = session.get_inputs()
    shape, random = (args.batch, *given.shape[1:]), np.random.default_rng()
    x: Rows = random.standard_normal(shape, np.float32)
    if given.type == "tensor(int64)":
        x = random.integers(1996, 30522, shape, np.int64)  # words of `embedding`
    warm = time.perf_counter() + 0.2
    session.run(["y"], {"x": x})
    while time.perf_counter() < warm:
        session.run(["y"], {"x": x})
    print("ready", flush=True)
    sys.stdin.readline()
    times = []
    began = last = time.perf_counter()
    while last - began < args.seconds:
        session.run(["y"], {"x": x})
        now = time.perf_counter()
        times.append(now - last)
        last = now
    p50, p99 = np.percentile(times, [50, 99]) * 1e6
    rate = len(times) * args.batch / (last - began)
    found = Loop(rate, float(np.mean(times)) * 1e6, float(p50), float(p99))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
