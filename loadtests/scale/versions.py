"""Versions of one model that share its traffic, or are asked for by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

from loadtests.compare import load
from loadtests.compare.models import make_add
from loadtests.compare.processes import Server, get
from loadtests.errors import BenchError
from loadtests.scale.drive import Bench, drive, note_run
from loadtests.scale.study import Study

SIZES: Final = (1, 2, 5, 10, 20)
QUICK: Final = (1, 3)
BUDGET_S: Final = 60.0
NAME: Final = "add"
ROW: Final = np.zeros((1, 4), np.float32)


def write(folder: Path, versions: int) -> None:
    """One model, with a split that gives each version its share."""
    for number in range(1, versions + 1):
        make_add(folder / NAME / str(number) / "model.onnx")
    shares = [100 // versions + (at < 100 % versions) for at in range(versions)]
    weights = {str(number): share for number, share in enumerate(shares, 1)}
    (folder / NAME / "traffic.yaml").write_text(json.dumps({"weights": weights, "stable": "1"}))


def executed(server: Server) -> tuple[int, int]:
    """Rows and batches so far, all versions together."""
    status, body = get(server.http, f"/v2/models/{NAME}/stats")
    if status != 200:
        raise BenchError(f"the statistics answer {status}: {body.decode(errors='replace')[:200]}")
    found = json.loads(body)["model_stats"]
    rows = sum(int(each["inference_count"]) for each in found)
    return rows, sum(int(each["execution_count"]) for each in found)


def by_number(server: Server, versions: int, file: Path) -> load.Target:
    """Requests to each version in turn, by its number."""
    found = load.target("binary", (server.http, server.grpc), NAME, ROW, file)
    urls = [
        found.url.replace("/infer", f"/versions/{number}/infer")
        for number in range(1, versions + 1)
    ]
    return load.Target(urls[0], found.file, (*found.options, *urls[1:]))


def measure(bench: Bench) -> list[Study]:
    """The study."""
    study = Study("versions", "Versions of a model that share its traffic", "versions")
    split = {
        "grpc": study.measure("requests/s over the split, gRPC", "/s", rate=True),
        "binary": study.measure("requests/s over the split, HTTP binary", "/s", rate=True),
    }
    cpu = {
        "grpc": study.measure("processor time a request over the split, gRPC", "µs"),
        "binary": study.measure("processor time a request over the split, HTTP binary", "µs"),
    }
    numbered = study.measure("requests/s to each by number, HTTP binary", "/s", rate=True)
    batches = study.measure("rows of a batch over the split, gRPC", "rows", judged=False)
    for size in bench.within(study, QUICK if bench.quick else SIZES):
        folder = bench.work / f"versions-{size}"
        write(folder / "models", size)
        with bench.serve(folder / "models", [f"{NAME}/versions/{size}"]) as server:
            addresses = server.http, server.grpc
            for protocol, what in split.items():
                target = load.target(protocol, addresses, NAME, ROW, folder / "body")
                shape = load.Shape(4, 16) if protocol == "grpc" else load.Shape(64)
                rows, runs = executed(server)
                driven = drive(server, target, shape, bench.seconds)
                note_run(study, f"{what.name}, {size}", driven)
                for each in driven:
                    what.add(size, each.rate)
                    cpu[protocol].add(size, each.cpu_us)
                if protocol == "grpc":
                    after_rows, after_runs = executed(server)
                    batches.add(size, (after_rows - rows) / max(after_runs - runs, 1))
            driven = drive(
                server,
                by_number(server, size, folder / "body"),
                load.Shape(64),
                bench.seconds,
            )
            for each in driven:
                numbered.add(size, each.rate)
            note_run(study, f"{numbered.name}, {size}", driven)
    study.note(
        "The model is `add`, 64 requests in flight. A batch holds rows of one version, so that the "
        "same load over more versions makes smaller batches: that is what a split costs."
    )
    return [study]
