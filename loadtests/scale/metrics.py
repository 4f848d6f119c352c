"""What being watched costs: scrapes of /metrics, the access log, the history.

Counting itself cannot be turned off: the counters are plain integers that the request path adds to,
and they become text when somebody asks. So what is compared is a gateway that is asked every second
with the same gateway when nobody asks; and gateways that differ in one setting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from loadtests.compare import load, sluice
from loadtests.compare.models import make_add
from loadtests.compare.processes import Server, get
from loadtests.scale.drive import Bench, drive, note_run
from loadtests.scale.models import names, write
from loadtests.scale.study import Comparison, Study

SIZES: Final = (1, 100, 1000)
QUICK: Final = (1, 10)
BUDGET_S: Final = 85.0
EVERY_S: Final = 1.0
ROW: Final = np.zeros((1, 4), np.float32)
SHAPE: Final = load.Shape(64)
SETTINGS: Final = (
    ("access log of every request", "--set telemetry.access_log=1", ""),
    ("history kept (the default)", "", "--set history.enabled=false"),
)
"""What, the options that have it, the options that do not."""


@contextmanager
def scraped(server: Server, every_s: float = EVERY_S) -> Iterator[None]:
    """Asks for ``/metrics`` at once and then every ``every_s`` seconds."""
    over = threading.Event()

    def ask() -> None:
        while True:
            get(server.http, "/metrics", timeout_s=30)
            if over.wait(every_s):
                return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def in_turn(
    rounds: int, one: Callable[[], float], other: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Rates of both, measured in turn, another one first each time."""
    first: list[float] = []
    second: list[float] = []
    for number in range(rounds):
        if number % 2:
            second.append(other())
            first.append(one())
        else:
            first.append(one())
            second.append(other())
    return first, second


def ratios(first: list[float], second: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(first, second, strict=True)]


def measure(bench: Bench) -> list[Study]:
    """The study."""
    study = Study("metrics", "Being watched", "loaded models")
    rounds = 1 if bench.quick else 3
    scraping = study.measure("requests/s, /metrics read every second", "/s", rate=True)
    alone = study.measure("requests/s, /metrics not read", "/s", rate=True)
    for size in bench.within(study, QUICK if bench.quick else SIZES):
        folder = bench.work / f"metrics-{size}"
        write(folder / "models", size)
        with bench.serve(folder / "models", names(size)[-1:]) as server:
            rate = partial(_rate, bench, study, server, names(1)[0], folder, 2 * EVERY_S)
            with_it, without = in_turn(
                rounds,
                partial(rate, scraped, f"{scraping.name}, {size:,}"),
                partial(rate, _left_alone, f"{alone.name}, {size:,}"),
            )
        for value in with_it:
            scraping.add(size, value)
        for value in without:
            alone.add(size, value)
        study.comparisons.append(
            Comparison(
                f"requests/s, /metrics read every second over not read, {size:,} models",
                ratios(with_it, without),
            )
        )
    _settings(bench, study, rounds)
    study.note(
        "64 connections over HTTP, binary tensors, `add`. There is no setting that turns counting "
        "off: counters are integers that requests add to, and text is made of them when read."
    )
    return [study]


def _left_alone(server: Server) -> AbstractContextManager[None]:
    return nullcontext()


def _rate(
    bench: Bench,
    study: Study,
    server: Server,
    model: str,
    folder: Path,
    seconds: float,
    during: Callable[[Server], AbstractContextManager[None]],
    what_for: str,
) -> float:
    """Requests/s to a model while something else goes on; ``what_for``: what the run is called."""
    what = load.target("binary", (server.http, server.grpc), model, ROW, folder / "body")
    with during(server):
        # One long run, so that a scrape is in each.
        driven = drive(server, what, SHAPE, bench.seconds if bench.quick else seconds, readings=1)
    note_run(study, what_for, driven)
    return driven[0].rate


def _settings(bench: Bench, study: Study, rounds: int) -> None:
    """Two gateways that differ in one setting."""
    folder = bench.work / "settings"
    sluice.write_directory(folder / "models", [make_add(folder / "add.onnx")], 1)
    for name, with_it, without in SETTINGS:
        if bench.over:
            study.skipped.append(f"{name}: not measured, {bench.budget_s:.0f} s were over")
            continue
        bench.say(f"{study.name}: {name}")
        with ExitStack() as stack:
            sides = []
            for options, which in ((with_it, "with"), (without, "without")):
                server = stack.enter_context(bench.serve(folder / "models", ["add"], options))
                sides.append(
                    partial(
                        _rate,
                        bench,
                        study,
                        server,
                        "add",
                        folder,
                        bench.seconds,
                        _left_alone,
                        f"{which} {name}",
                    )
                )
            first, second = in_turn(rounds, sides[0], sides[1])
        study.comparisons.append(
            Comparison(f"requests/s, {name} over without", ratios(first, second))
        )
