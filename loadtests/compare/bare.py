"""The bare loop: onnxruntime called directly at one batch size, in a process of its own.

It is what a server can at best reach on the same threads: no sockets, no copies, no queue.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from .errors import BenchError
from .models import open_session
from .processes import ROOT

BATCHES = (1, 2, 4, 8, 16, 32)


def rows_per_second(path: Path, threads: int, batch: int, seconds: float) -> float:
    """Rows a second of the loop, in a fresh process, after a warm-up."""
    command = [sys.executable, "-m", "loadtests.compare.bare", str(path)]
    command += ["--threads", str(threads), "--batch", str(batch), "--seconds", str(seconds)]
    said = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=seconds * 5 + 60, cwd=ROOT
    )
    if said.returncode:
        raise BenchError(f"the bare loop failed: {said.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(said.stdout))


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
    inner = session.get_inputs()[0].shape[1:]
    x = np.random.default_rng().standard_normal((args.batch, *inner)).astype(np.float32)
    for _ in range(3):
        session.run(["y"], {"x": x})
    calls = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < args.seconds:
        session.run(["y"], {"x": x})
        calls += 1
    print(json.dumps(calls * args.batch / elapsed))


if __name__ == "__main__":
    main()
