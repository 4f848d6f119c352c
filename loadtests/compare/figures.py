"""Figures of the gateway alone: idle memory, start-up time, a thousand models."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from . import models, sluice
from .cells import MEMORY_MIB, START_S, TAIL_CELL, all_cells
from .measure import Contender
from .processes import ROOT, resident_bytes, tree
from .runner import Plan, Runner, make_subjects, say
from .summary import Figure

EXAMPLES = ROOT / "examples" / "models"
SETTLE_S = 5.0
"""Seconds between ready and the reading of memory."""
STARTS = 5


def _examples(work: Path) -> Path | None:
    """A copy of ``examples/models``, so that serving it changes nothing in the checkout."""
    if not EXAMPLES.is_dir() or not any(EXAMPLES.iterdir()):
        return None
    copy = work / "examples"
    if not copy.exists():
        shutil.copytree(EXAMPLES, copy)
    return copy


def idle(command: str, work: Path) -> list[Figure]:
    """Resident memory of the idle gateway with ``examples/models``."""
    name = "resident memory, idle, examples/models"
    directory = _examples(work)
    if directory is None:
        return [Figure(name, None, "MiB", MEMORY_MIB, "examples/models is not there")]
    with sluice.serve(command, directory, work / "idle") as server:
        time.sleep(SETTLE_S)
        pid = server.process.pid
        resident, count = resident_bytes(pid) / 2**20, len(tree(pid))
    return [Figure(name, resident, "MiB", MEMORY_MIB, f"RSS of {count} process(es)")]


def start(command: str, work: Path) -> list[Figure]:
    """Time from exec to ready with ``examples/models``, median of five after one uncounted."""
    name = "start to ready, examples/models"
    directory = _examples(work)
    if directory is None:
        return [Figure(name, None, "s", START_S, "examples/models is not there")]
    times = []
    for number in range(STARTS + 1):
        with sluice.serve(command, directory, work / f"start{number}", stop_grace_s=1) as server:
            times.append(server.ready_s)
        say(f"start {number}: {server.ready_s:.2f} s")
    first, counted = times[0], times[1:]
    detail = f"{min(counted):.2f} to {max(counted):.2f}, the very first {first:.2f}"
    return [Figure(name, median(counted), "s", START_S, detail)]


def many(command: str, count: int, plan: Plan) -> list[Figure]:
    """``count`` tiny models: start-up, memory, and the rate on one of them beside one alone."""
    work = plan.work / "many"
    tiny = models.make_add(work / "add.onnx")
    for name, size in (("one", 1), ("all", count)):
        for i in range(size):
            version = work / name / f"m{i:05}" / "1"
            version.mkdir(parents=True)
            shutil.copy(tiny.path, version / "model.onnx")
    figures = []
    cell = next(cell for cell in all_cells() if cell.name == TAIL_CELL)
    with ExitStack() as stack:
        sides = []
        for name, size in (("one", 1), ("all", count)):
            server = stack.enter_context(
                sluice.serve(
                    command,
                    work / name,
                    work / f"serve-{name}",
                    [f"m{size - 1:05}"],
                    ready_timeout_s=600,
                    poll_s=0.05,
                )
            )
            say(f"{size} models: ready after {server.ready_s:.2f} s")
            time.sleep(SETTLE_S)
            resident = resident_bytes(server.process.pid) / 2**20
            label = "1 model" if size == 1 else f"{size} models"
            figures.append(Figure(f"start to ready, {label}", server.ready_s, "s"))
            figures.append(Figure(f"resident memory, idle, {label}", resident, "MiB"))
            sides.append(Contender(label, server, "m00000"))
        subjects = make_subjects([cell.model], work, plan.threads)
        runs = Runner(plan, subjects).compare_models(cell, sides).runs
    for side in sides:
        mine = [run for run in runs if run.contender == side.label]
        problems = [problem for run in mine for problem in run.problems]
        rate = None if problems or not mine else median(run.rate for run in mine)
        detail = "; ".join(problems) or f"{cell.name} on one of them"
        figures.append(Figure(f"requests/s, {side.label}", rate, "/s", detail=detail))
    return figures
