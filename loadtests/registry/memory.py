"""Does memory come back? Loads and unloads a model of 100 MB, fifty times.

    python -m loadtests.registry.memory

One gateway, one model on demand that is unloaded when it was idle for a moment. Each cycle loads
it by a request and waits until it is unloaded. The figure is how much the resident memory of the
gateway and its children grew from after the first few cycles until after the last, in percent of
what it was then, nothing loaded. Once in the gateway's process, once in a child.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from loadtests.commands import command, judged
from loadtests.compare import sluice
from loadtests.compare.cells import Goal
from loadtests.compare.processes import Server, get, resident_bytes
from loadtests.compare.summary import Figure
from loadtests.errors import BenchError

GROWTH_GOAL: Final = Goal(10, 5, smaller_is_better=True)
MODEL: Final = "large"
SETTLED_AFTER: Final = 3
"""Cycles until every library is imported and every pool has its size."""
PATIENCE: Final = 60.0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.registry.memory")
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the model's file")
    parser.add_argument("--sluice", default=sluice.default_command(), metavar="CMD")
    return parser


def write_model(folder: Path, megabytes: int, *, isolated: bool) -> None:
    """An ONNX model whose weights take part in every answer, so that they are all read."""
    import numpy as np
    from onnx import helper as h
    from onnx import numpy_helper

    from loadtests.onnx_files import model_of, save

    width = max(megabytes * 2**20 // (4 * 1024), 1)
    rng = np.random.default_rng(1)
    weights = numpy_helper.from_array(rng.random((width, 1024), dtype=np.float32), "w")
    nodes = [h.make_node("MatMul", ["x", "w"], ["h"]), h.make_node("ReduceSum", ["h"], ["y"])]
    model = model_of("heavy", nodes, ["N", width], [1, 1], [weights])
    save(model, folder / MODEL / "1" / "model.onnx")
    isolation = "process" if isolated else "none"
    (folder / MODEL / "model.yaml").write_text(
        f"on_demand: true\nisolation: {isolation}\nmax_batch_size: 0\n"
    )


def state(server: Server) -> dict[str, Any]:
    status, body = get(server.http, f"/admin/v1/models/{MODEL}")
    if status != 200:
        raise BenchError(f"the admin API answers {status}")
    versions: list[dict[str, Any]] = json.loads(body)["versions"]
    return versions[0]


def wait_for(server: Server, wanted: str) -> None:
    end = time.monotonic() + PATIENCE
    while (found := state(server))["state"] != wanted:
        if time.monotonic() > end or found["state"] == "failed":
            raise BenchError(f"{MODEL} is {found['state']} and not {wanted}: {found.get('cause')}")
        time.sleep(0.02)


def settled_bytes(server: Server) -> int:
    """Resident memory once it stays as it is: it is given back a moment after an unload."""
    last = resident_bytes(server.process.pid)
    for _ in range(50):
        time.sleep(0.2)
        now = resident_bytes(server.process.pid)
        if abs(now - last) < 2**20:
            return now
        last = now
    return last


def cycle(server: Server) -> int:
    """Loads and unloads it; the resident memory while it was loaded."""
    status, body = get(server.http, f"/v2/models/{MODEL}", timeout_s=PATIENCE)
    if status != 200:
        raise BenchError(f"{MODEL} answers {status}: {body.decode(errors='replace')[:200]}")
    loaded = resident_bytes(server.process.pid)
    wait_for(server, "on demand")
    return loaded


def measure(command: str, work: Path, cycles: int, megabytes: int, *, isolated: bool) -> Figure:
    """The growth over all cycles, in percent of what the gateway had with nothing loaded."""
    write_model(work / "models", megabytes, isolated=isolated)
    idle = f"{command} --set lifecycle.on_demand_idle=0.2"
    with sluice.serve(idle, work / "models", work / "gateway") as server:
        loaded = [cycle(server) for _ in range(min(SETTLED_AFTER, cycles))]
        first = settled_bytes(server)
        for _ in range(cycles - len(loaded)):
            loaded.append(cycle(server))
        last = settled_bytes(server)
    where = "in a child process" if isolated else "in the gateway's process"
    mib = 2**20
    return Figure(
        f"growth over {cycles} cycles of {megabytes} MB {where}",
        (last - first) / first * 100,
        "%",
        GROWTH_GOAL,
        f"{first / mib:.0f} to {last / mib:.0f} MiB; {max(loaded) / mib:.0f} loaded",
    )


@command("memory")
def main() -> int:
    """Measures and prints; 0: every target is met, 1: one is not, 2: it could not run."""
    args = arguments().parse_args()
    if args.cycles < 1 or args.megabytes < 1:
        raise BenchError("--cycles and --megabytes must be above 0")
    found = []
    for isolated in (False, True):
        with tempfile.TemporaryDirectory(prefix="sluicegate-memory-") as folder:
            found.append(
                measure(args.sluice, Path(folder), args.cycles, args.megabytes, isolated=isolated)
            )
    return judged(found)


if __name__ == "__main__":
    sys.exit(main())
