"""Rows in a request: what a row costs in a small request and in a large one."""

from __future__ import annotations

from typing import Final

import numpy as np

from loadtests.compare import load, sluice
from loadtests.compare.models import make_mlp
from loadtests.scale.drive import Bench, drive, note_run
from loadtests.scale.study import Study

SIZES: Final = (1, 4, 16, 64, 128, 256)
QUICK: Final = (1, 4, 128)
BUDGET_S: Final = 60.0
MOST: Final = 64.0
"""Rows of a batch by default: larger requests are run in pieces."""
WAYS: Final = (("grpc", "gRPC", load.Shape(4, 4)), ("binary", "HTTP binary", load.Shape(16)))


def measure(bench: Bench) -> list[Study]:
    """The study: `mlp`, which gains from batches, over both protocols."""
    study = Study("batch", "Rows in a request", "rows in a request")
    folder = bench.work / "batch"
    model = make_mlp(folder / "mlp.onnx")
    sluice.write_directory(folder / "models", [model], 1)
    random = np.random.default_rng(1)
    latency = {
        name: study.measure(f"mean latency, one caller, {name}", "µs", cuts=(MOST,))
        for _, name, _ in WAYS
    }
    rows_s = {
        name: study.measure(f"rows/s, 16 in flight, {name}", "/s", rate=True, cuts=(MOST,))
        for _, name, _ in WAYS
    }
    cpu = {
        name: study.measure(f"processor time a request, 16 in flight, {name}", "µs", cuts=(MOST,))
        for _, name, _ in WAYS
    }
    with bench.serve(folder / "models", ["mlp"]) as server:
        addresses = server.http, server.grpc
        for size in bench.within(study, QUICK if bench.quick else SIZES):
            rows = random.standard_normal((size, *model.row_shape)).astype(np.float32)
            for protocol, name, shape in WAYS:
                what = load.target(protocol, addresses, "mlp", rows, folder / "body")
                alone = drive(
                    server, what, load.Shape(1), bench.seconds, log=folder / "requests.log"
                )
                for one in alone:
                    latency[name].add(size, one.mean_us)
                busy = drive(server, what, shape, bench.seconds)
                for each in busy:
                    rows_s[name].add(size, each.rate * size)
                    cpu[name].add(size, each.cpu_us)
                note_run(study, f"{rows_s[name].name}, {size}", busy)
    study.note(
        "The model is `mlp` (256-1024-1024-256-16), one thread. Requests of more than 64 rows, the "
        "default `max_batch_size`, are run in pieces of 64."
    )
    return [study]
