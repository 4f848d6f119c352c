"""A PyTorch CNN of about 10 ms at c=16: the gateway over a bare torch loop at its best batch size.

    python -m loadtests.runtimes.torch_cnn

Both run the same exported program with the same number of threads, and the gateway's largest batch
is the loop's best one, as PyTorch's rate depends on it. The rounds alternate; each gives one
ratio (images a second of the gateway over those of the loop), and the answers of the gateway are
compared with PyTorch's own while it is measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from loadtests.commands import command
from loadtests.compare import load, sluice
from loadtests.compare.cells import Cell, Goal
from loadtests.compare.measure import Contender, Subject, measure
from loadtests.compare.models import SEED, Model
from loadtests.compare.processes import ROOT, Server
from loadtests.errors import BenchError
from loadtests.units import finite

BATCHES = (1, 2, 4, 8, 16)
GOAL = Goal(0.95, 0.99)
CELL = Cell(
    "cnn", "grpc", load.Shape(4, 4), goal=GOAL, rival="bare", verify_rate=2.0, verify_rows=1
)
SIGNATURE = """\
inputs: [{name: x, datatype: FP32, dims: [3, 64, 64]}]
outputs: [{name: y, datatype: FP32, dims: [10]}]
"""


def import_torch() -> Any:
    """The module; `BenchError` where it is missing."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError:
        raise BenchError("PyTorch is missing: pip install 'sluicegate[torch]'") from None


def make_program(path: Path) -> None:
    """The network of ``loadtests.compare``'s cnn, exported for any number of rows."""
    torch = import_torch()
    torch.manual_seed(SEED)
    channels = [3, 32, 64] + [128] * 19
    layers: list[Any] = []
    for number, (inside, outside) in enumerate(pairwise(channels)):
        stride = 2 if number < 2 else 1
        layer = torch.nn.Conv2d(inside, outside, 3, stride, 1)
        torch.nn.init.kaiming_normal_(layer.weight)  # values keep their size from layer to layer
        layers += [layer, torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(128, 10)]
    net = torch.nn.Sequential(*layers).eval()
    rows = torch.export.Dim("rows")
    example = (torch.zeros(2, 3, 64, 64),)
    torch.export.save(torch.export.export(net, example, dynamic_shapes=({0: rows},)), str(path))


def make_subject(folder: Path, threads: int) -> Subject:
    """The file, and rows with the answers that PyTorch gives."""
    torch = import_torch()
    path = folder / "cnn.pt2"
    make_program(path)
    torch.set_num_threads(threads)
    rows = np.random.default_rng(SEED).standard_normal((16, 3, 64, 64)).astype(np.float32)
    module = torch.export.load(str(path)).module()
    with torch.inference_mode():
        answers = module(torch.from_numpy(rows)).numpy()
    pool = folder / "cnn.npz"
    np.savez(pool, rows=rows, answers=answers)
    return Subject(Model("cnn", path, (3, 64, 64), (10,), exact=False), pool)


def bare_loop(path: Path, threads: int, batch: int, seconds: float) -> float:
    """Images a second of PyTorch alone."""
    torch = import_torch()
    torch.set_num_threads(threads)
    module = torch.export.load(str(path)).module()
    x = torch.randn(batch, 3, 64, 64)
    with torch.inference_mode():
        for _ in range(3):
            module(x)
        calls = 0
        began = time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            module(x)
            calls += 1
    return calls * batch / elapsed


def bare_in_a_process(path: Path, threads: int, batch: int, seconds: float) -> float:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "loadtests.runtimes.torch_cnn", "--bare", str(path)]
    command += ["--threads", str(threads), "--batch", str(batch), "--duration", str(seconds)]
    said = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=seconds * 5 + 120, cwd=ROOT
    )
    if said.returncode:
        raise BenchError(f"the bare loop failed: {said.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(said.stdout))


def write_directory(folder: Path, subject: Subject, threads: int, batch: int) -> Path:
    """A model directory with the program as version 1."""
    version = folder / "directory" / "cnn" / "1"
    version.mkdir(parents=True)
    (version / "model.pt2").write_bytes(subject.model.path.read_bytes())
    settings = f"{SIGNATURE}max_batch_size: {batch}\noptions: {{intra_op_threads: {threads}}}\n"
    (version.parent / "model.yaml").write_text(settings)
    return folder / "directory"


def contender(server: Server, subject: Subject, work: Path, seconds: float) -> Contender:
    """The gateway, warm, with as many requests as take about `seconds`."""
    with np.load(subject.pool) as arrays:
        row = arrays["rows"][:1]
    what = load.target("grpc", (server.http, server.grpc), "cnn", row, work / "body")
    rate = load.calibrate(what, CELL.shape, seconds=min(1.0, seconds), timeout_s=120)
    requests = max(int(rate * seconds), 2 * CELL.shape.concurrency)
    return Contender(sluice.NAME, server, "cnn", what, requests)


def compare(rounds: int, seconds: float, threads: int, work: Path) -> int:
    """Prints each round and the ratio; the exit code is 1 when the target is missed."""
    subject = make_subject(work, threads)
    path = subject.model.path
    rates = dict.fromkeys(BATCHES, 0.0)
    for _ in range(2):
        for batch in BATCHES:
            rate = bare_in_a_process(path, threads, batch, min(1.5, seconds))
            rates[batch] = max(rates[batch], rate)
    best = max(rates, key=lambda batch: rates[batch])
    print("bare loop, images/s by batch: " + ", ".join(f"{b}: {r:.1f}" for b, r in rates.items()))
    ratios = []
    directory = write_directory(work, subject, threads, best)
    command = sluice.default_command()
    with sluice.serve(command, directory, work / "gateway", ["cnn"]) as server:
        who = contender(server, subject, work, seconds)
        for number in range(1, rounds + 1):
            bare = bare_in_a_process(path, threads, best, seconds)
            run = measure(who, CELL, subject, number)
            if run.problems:
                raise BenchError(f"round {number} does not count: {'; '.join(run.problems)}")
            ratios.append(run.rate / bare)
            print(
                f"round {number}: gateway {run.rate:.1f}/s, bare at batch {best} {bare:.1f}/s, "
                f"ratio {ratios[-1]:.3f}",
                flush=True,
            )
    ratio = median(ratios)
    verdict = GOAL.verdict(ratio)
    print(
        f"torch cnn, c={CELL.shape.concurrency}, {threads} thread(s): ratio {ratio:.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}), at least {GOAL.at_least}: {verdict}"
    )
    return verdict == "MISS"


@command("torch_cnn")
def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.runtimes.torch_cnn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=finite, default=5.0, help="seconds a run, about")
    parser.add_argument("--threads", type=int, default=1, help="threads on both sides")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.rounds, args.threads, args.batch) < 1 or args.duration <= 0:
        raise BenchError("--rounds, --duration and --threads must be above 0")
    if args.bare is not None:
        print(json.dumps(bare_loop(args.bare, args.threads, args.batch, args.duration)))
        return 0
    load.version()
    with tempfile.TemporaryDirectory(prefix="sluicegate-torch-") as work:
        return compare(args.rounds, args.duration, args.threads, Path(work))


if __name__ == "__main__":
    sys.exit(main())
