"""How many models are loaded: start, memory, idle processor time, requests/s, size of /metrics."""

from __future__ import annotations

import os
import random
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from loadtests.compare import load
from loadtests.compare.models import make_add
from loadtests.compare.processes import Server, get
from loadtests.errors import BenchError
from loadtests.scale.beside import longest_wait
from loadtests.scale.drive import READINGS, Bench, drive, note_run
from loadtests.scale.processes import idle_cores, settled_bytes
from loadtests.scale.study import Study

SIZES: Final = (1, 10, 100, 500, 1000, 2000)
QUICK: Final = (1, 5, 20)
BUDGET_S: Final = 145.0
MIB: Final = 2**20
SHAPE: Final = load.Shape(64)
ROW: Final = np.zeros((1, 4), np.float32)


def names(count: int) -> list[str]:
    """Of the models."""
    return [f"model-{number:05}" for number in range(count)]


def write(folder: Path, count: int) -> None:
    """So many directories with the same tiny ONNX file, which they share on disk."""
    tiny = make_add(folder.parent / "add.onnx").path
    for name in names(count):
        version = folder / name / "1"
        version.mkdir(parents=True)
        try:
            os.link(tiny, version / "model.onnx")
        except OSError:  # another file system, or one without links
            shutil.copy(tiny, version / "model.onnx")


def spread(server: Server, count: int, file: Path) -> load.Target:
    """Requests to each of the models in turn, in an order that says nothing."""
    order = names(count)
    random.Random(1).shuffle(order)
    found = [load.target("binary", (server.http, server.grpc), name, ROW, file) for name in order]
    others = tuple(each.url for each in found[1:])
    return load.Target(found[0].url, file, (*found[0].options, *others))


def scrape(server: Server) -> tuple[float, int]:
    """Milliseconds and bytes of one ``/metrics``, the fastest of three."""
    times, size = [], 0
    for _ in range(3):
        began = time.perf_counter()
        status, page = get(server.http, "/metrics", timeout_s=60)
        times.append((time.perf_counter() - began) * 1e3)
        if status != 200:
            raise BenchError(f"/metrics answers {status}")
        size = len(page)
    return min(times), size


def measure(bench: Bench) -> list[Study]:
    """The study."""
    study = Study("models", "Models loaded at the same time", "loaded models")
    start = study.measure("start to ready", "s")
    memory = study.measure("resident memory", "MiB")
    idle = study.measure("processor time while idle", "% of a core", grain=0.1)
    one = study.measure("requests/s to one of them", "/s", rate=True)
    all_of_them = study.measure("requests/s spread over all", "/s", rate=True)
    one_cpu = study.measure("processor time a request, to one of them", "µs")
    all_cpu = study.measure("processor time a request, spread over all", "µs")
    page_ms = study.measure("a scrape of /metrics", "ms")
    page_kib = study.measure("size of /metrics", "KiB")
    stall = study.measure("longest wait of others during a scrape", "ms")
    sizes = QUICK if bench.quick else SIZES
    for size in bench.within(study, sizes):
        directory = bench.work / f"models-{size}"
        write(directory / "models", size)
        with bench.serve(directory / "models", names(size)[-1:]) as server:
            pid = server.process.pid
            start.add(size, server.ready_s)
            memory.add(size, settled_bytes(pid) / MIB)
            idle.add(size, idle_cores(pid, 0.3 if bench.quick else 4.0) * 100)
            body = directory / "body"
            addresses = server.http, server.grpc
            for what, cpu, target in (
                (one, one_cpu, load.target("binary", addresses, names(1)[0], ROW, body)),
                (all_of_them, all_cpu, spread(server, size, body)),
            ):
                driven = drive(server, target, SHAPE, bench.seconds)
                for each in driven:
                    what.add(size, each.rate)
                    cpu.add(size, each.cpu_us)
                note_run(study, f"{what.name}, {size:,}", driven)
            for _ in range(READINGS):
                milliseconds, page = scrape(server)
                page_ms.add(size, milliseconds)
                page_kib.add(size, page / 1024)
                stall.add(size, longest_wait(server, partial(scrape, server)))
        shutil.rmtree(directory)
    study.note(
        "Each model is the same tiny ONNX file (`add`); 64 connections over HTTP, binary tensors. "
        "Requests to many models make small batches, since a batch holds one model's rows."
    )
    if len(memory.medians) > 1:
        (low, first), (high, last) = memory.medians[0], memory.medians[-1]
        study.note(f"A loaded model takes {(last - first) / (high - low) * 1024:.0f} KiB.")
    return [study]
