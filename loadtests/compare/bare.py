"""The bare loop: onnxruntime called directly at one batch size, in a process of its own.

It is what a server can at best reach on the same threads: no sockets, no copies, no queue.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .errors import BenchError
from .processes import ROOT
from .session import open_session
from .wire import Rows

BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Loop:
    """What the loop gave; times are those of a call, in microseconds."""

    rows_per_second: float
    mean_us: float
    p50_us: float
    p99_us: float


def measure(path: Path, threads: int, batch: int, seconds: float) -> Loop:
    """Runs the loop in a fresh process, after a warm-up. Raises `BenchError`."""
    command = [sys.executable, "-m", "loadtests.compare.bare", str(path)]
    command += ["--threads", str(threads), "--batch", str(batch), "--seconds", str(seconds)]
    said = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=seconds * 5 + 60, cwd=ROOT
    )
    if said.returncode:
        raise BenchError(f"the bare loop failed: {said.stderr.strip().splitlines()[-1:]}")
    return Loop(**json.loads(said.stdout))


def rows_per_second(path: Path, threads: int, batch: int, seconds: float) -> float:
    """Rows a second of the loop."""
    return measure(path, threads, batch, seconds).rows_per_second


def best_batch(path: Path, threads: int, seconds: float) -> tuple[int, dict[int, float]]:
    """The batch size with the most rows a second, and the rows a second of each.

    Each size is tried twice, in two passes, and its better pass counts.
    """
    rates = dict.fromkeys(BATCHES, 0.0)
    for _ in range(2):
        for batch in BATCHES:
            rates[batch] = max(rates[batch], rows_per_second(path, threads, batch, seconds))
    return max(rates, key=lambda batch: rates[batch]), rates


def main() -> None:
    """The loop itself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    session = open_session(args.model, args.threads)
    (given,) = session.get_inputs()
    shape, random = (args.batch, *given.shape[1:]), np.random.default_rng()
    x: Rows = random.standard_normal(shape, np.float32)
    if given.type == "tensor(int64)":
        x = random.integers(1996, 30522, shape, np.int64)  # words of `embedding`
    for _ in range(3):
        session.run(["y"], {"x": x})
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
