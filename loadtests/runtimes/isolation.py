"""Isolated models beside the same models in the gateway's own process, and a child that dies.

    python -m loadtests.runtimes.isolation

One gateway serves each model twice. The rounds alternate, and each gives one figure: the mean
latency that isolation adds (``add``, one caller), the throughput of 4 MB tensors in proportion,
and, for a TorchScript model under load whose process is ended by SIGKILL, the seconds until it
answers again, the requests lost that cannot have been in the running batch, and the worst latency
that a neighbour's caller saw meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
import numpy as np

from gateway.codecs.messages import METHODS, ModelInferRequest, ModelInferResponse
from loadtests.commands import add_sluice_option, command, judged
from loadtests.compare import sluice
from loadtests.compare.cells import Goal
from loadtests.compare.processes import Server
from loadtests.compare.summary import Figure
from loadtests.errors import BenchError
from loadtests.runtimes.torch_cnn import import_torch
from loadtests.units import finite

WIDE: Final = 2**20
"""Elements of one row of 4 MB."""
LATENCY_GOAL: Final = Goal(150, 100, smaller_is_better=True)
THROUGHPUT_GOAL: Final = Goal(0.8, 0.9)
RECOVERY_GOAL: Final = Goal(1.0, 0.5, smaller_is_better=True)
LOST_GOAL: Final = Goal(0, 0, smaller_is_better=True)
DIED: Final = "died while it ran this"
BATCH: Final = 16
"""Rows of the largest batch of the model whose process is killed; callers send one row."""
CALLERS: Final = 4 * BATCH
"""So that far more wait than one batch takes."""
OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.runtimes.isolation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=finite, default=3.0, help="seconds a run")
    add_sluice_option(parser)
    return parser


def write_models(folder: Path) -> list[str]:
    """Each ONNX model twice, and one in TorchScript."""
    from loadtests.onnx_files import adding, save

    names = []
    for name, width in (("add", 4), ("wide", WIDE)):
        for isolation in ("none", "process"):
            names.append(f"{name}-{isolation}")
            save(adding(1.0, width), folder / names[-1] / "1" / "model.onnx")
            (folder / names[-1] / "model.yaml").write_text(f"isolation: {isolation}\n")
    torch = import_torch()
    (folder / "torch" / "1").mkdir(parents=True)
    module = torch.jit.trace(torch.nn.Linear(4, 4), torch.zeros(1, 4))
    module.save(str(folder / "torch" / "1" / "model.pt"))
    (folder / "torch" / "model.yaml").write_text(
        f"isolation: process\nmax_batch_size: {BATCH}\n"
        "inputs: [{name: x, datatype: FP32, dims: [4]}]\n"
        "outputs: [{name: y, datatype: FP32, dims: [4]}]\n"
    )
    return [*names, "torch"]


class Caller:
    """Sends one request again and again."""

    def __init__(self, channel: Any, model: str, width: int) -> None:
        row = np.arange(width, dtype=np.float32).reshape(1, width)
        message = ModelInferRequest(model_name=model)
        message.inputs.add(name="x", datatype="FP32", shape=row.shape)
        message.raw_input_contents.append(row.tobytes())
        self._request: bytes = message.SerializeToString()
        self._call = channel.unary_unary(METHODS["ModelInfer"].path)
        self._right = (row + 1).tobytes() if model != "torch" else b""

    async def check(self) -> None:
        """Raises `BenchError` for a wrong answer."""
        answer = ModelInferResponse.FromString(await self._call(self._request))
        if self._right and answer.raw_output_contents[0] != self._right:
            raise BenchError("an answer is wrong")

    async def count(self, seconds: float, callers: int) -> tuple[int, float]:
        """Requests that `callers` get answered, and how long that took."""
        begin = time.perf_counter()
        end = begin + seconds

        async def one() -> int:
            done = 0
            while time.perf_counter() < end:
                await self._call(self._request)
                done += 1
            return done

        counts = await asyncio.gather(*[one() for _ in range(callers)])
        return sum(counts), time.perf_counter() - begin

    async def until_killed(self, pid: int, seconds: float, callers: int) -> tuple[float, int]:
        """Kills a process under load: seconds until an answer to a request sent later, and the
        requests that were lost although they cannot have run: those that say so, and of those
        that are said to have run whatever does not fit into one batch."""
        killed = again = 0.0
        lost = ran = 0
        end = time.perf_counter() + seconds + 30

        async def one() -> None:
            nonlocal again, lost, ran
            while not again and time.perf_counter() < end:
                sent = time.perf_counter()
                try:
                    await self._call(self._request)
                except grpc.aio.AioRpcError as error:
                    died = DIED in (error.details() or "")
                    ran += died
                    lost += not died
                else:
                    if killed and sent > killed:
                        again = again or time.perf_counter()

        asking = [asyncio.create_task(one()) for _ in range(callers)]
        await asyncio.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        killed = time.perf_counter()
        await asyncio.gather(*asking)
        if not again:
            raise BenchError("the model did not answer again within 30 s")
        return again - killed, lost + max(ran - BATCH, 0)

    async def worst_until(self, done: asyncio.Event) -> float:
        """The longest that one request took, asked again and again until then, in seconds."""
        worst = 0.0
        while not done.is_set():
            begin = time.perf_counter()
            await self._call(self._request)
            worst = max(worst, time.perf_counter() - begin)
        return worst


def pid_of(server: Server, model: str) -> int:
    """The process of an isolated model, once it has one."""
    for _ in range(3000):
        with urllib.request.urlopen(f"http://{server.http}/admin/v1/models/{model}") as answer:
            pid = json.load(answer)["versions"][0].get("pid")
        if pid is not None:
            return int(pid)
        time.sleep(0.01)
    raise BenchError(f"{model} has no process")


async def measure(server: Server, rounds: int, seconds: float) -> list[Figure]:
    """The five figures."""
    added: list[float] = []
    ratios: list[float] = []
    recovery: list[float] = []
    lost: list[float] = []
    beside: list[float] = []
    async with grpc.aio.insecure_channel(server.grpc, OPTIONS) as channel:
        small, wide = (
            [Caller(channel, f"{name}-{isolation}", width) for isolation in ("none", "process")]
            for name, width in (("add", 4), ("wide", WIDE))
        )
        torch = Caller(channel, "torch", 4)
        for each in (*small, *wide, torch):
            await each.check()
        for number in range(rounds):
            order = (0, 1) if number % 2 else (1, 0)
            means, rates = [0.0, 0.0], [0.0, 0.0]
            for side in order:
                count, took = await small[side].count(seconds, 1)
                means[side] = took / count * 1e6
            for side in order:
                count, took = await wide[side].count(seconds, 2)
                rates[side] = count / took
            added.append(means[1] - means[0])
            ratios.append(rates[1] / rates[0])
            # The spare that takes over is made in the background.
            await asyncio.sleep(max(seconds, 8.0))
            pid = await asyncio.to_thread(pid_of, server, "torch")
            done = asyncio.Event()
            neighbour = asyncio.create_task(small[0].worst_until(done))
            try:
                again, gone = await torch.until_killed(pid, 0.5, CALLERS)
            finally:
                done.set()
                worst = await neighbour
            beside.append(worst * 1e3)
            recovery.append(again)
            lost.append(gone)
    return [
        figure("mean latency added, add, c=1", added, "us", LATENCY_GOAL),
        figure("throughput of 4 MB tensors over in-process", ratios, "x", THROUGHPUT_GOAL),
        figure("after SIGKILL: time to the next answer, torch", recovery, "s", RECOVERY_GOAL),
        figure("requests lost outside the running batch", lost, "requests", LOST_GOAL),
        figure("worst latency of a neighbour meanwhile (no target)", beside, "ms", None),
    ]


def figure(name: str, values: Sequence[float], unit: str, goal: Goal | None) -> Figure:
    """The median of the rounds."""
    return Figure(name, median(values), unit, goal, f"{min(values):.2f} to {max(values):.2f}")


@contextlib.contextmanager
def served(command: str, work: Path) -> Iterator[Server]:
    """The gateway over all of the models."""
    names = write_models(work / "models")
    with sluice.serve(command, work / "models", work / "gateway", names) as server:
        yield server


@command("isolation")
def main() -> int:
    """Measures and prints; 0: every target is met, 1: one is not, 2: it could not run."""
    args = arguments().parse_args()
    if args.rounds < 1 or args.duration <= 0:
        raise BenchError("--rounds and --duration must be above 0")
    with (
        tempfile.TemporaryDirectory(prefix="sluicegate-isolation-") as folder,
        served(args.sluice, Path(folder)) as server,
    ):
        found = asyncio.run(measure(server, args.rounds, args.duration))
    return judged(found)


if __name__ == "__main__":
    sys.exit(main())
