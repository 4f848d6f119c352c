"""Alias swaps in MLflow under load: how soon the new version answers, and what callers notice.

    python -m loadtests.registry.swap

A model whose loading takes a second is registered twice in a real MLflow server. The alias
``champion`` moves to and fro while workers ask over HTTP. Three figures: the time from the moved
alias to the first answer of the new version, the requests that failed, and the 99th percentile of
latencies during swaps over that before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.commands import command
from loadtests.compare.processes import ROOT, Server, free_port, started, wait_models
from loadtests.errors import BenchError
from loadtests.registry import mlflow
from loadtests.units import finite

MODEL = "slow"
LONGEST_S = 60.0
"""A swap that takes longer is given up."""
GOAL_S = 5.0
GOAL_P99 = 1.5
CODE = """\
import time

import numpy as np


class Slow:
    signature = {{"inputs": {{"x": ("FP32", [-1, 4])}}, "outputs": {{"y": ("FP32", [-1, 4])}}}}

    def load(self, context):
        time.sleep({load_s})

    def infer(self, inputs):
        return {{"y": inputs["x"] + np.float32({added})}}
"""
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}
).encode()


@dataclass
class Seen:
    """Every answer: when it came, seconds it took, version; and what was no answer."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ended: bool = False

    def first(self, version: str, since: float) -> float | None:
        """When a version first answered after `since`."""
        times = [at for at, _, who in self.answers if at >= since and who == version]
        return min(times) if times else None

    def latencies(self, start: float, end: float) -> list[float]:
        """Seconds, of the answers that came between two times."""
        return sorted(took for at, took, _ in self.answers if start <= at < end)


async def worker(address: str, seen: Seen, pause: float) -> None:
    """One connection that sends one request after the other; a lost one is a failure."""
    host, _, port = address.rpartition(":")
    request = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: gateway\r\n"
        f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    while not seen.ended:
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError as error:
            seen.failures.append(repr(error))
            await asyncio.sleep(0.1)
            continue
        try:
            while not seen.ended:
                began = time.monotonic()
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = [line.partition(":") for line in head.split("\r\n")[1:] if line]
                headers = {name.lower(): value.strip() for name, _, value in lines}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                now = time.monotonic()
                version = headers.get("x-sluice-version", "")
                if head.split(" ")[1] != "200":
                    seen.failures.append(body[:200].decode(errors="replace"))
                elif json.loads(body)["outputs"][0]["data"][0] != float(version):
                    seen.failures.append(f"version {version} gave {body[:200]!r}")
                else:
                    seen.answers.append((now, now - began, version))
                await asyncio.sleep(pause)
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.failures.append(repr(error))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def p99(latencies: list[float]) -> float:
    """The 99th percentile of sorted values."""
    if not latencies:
        raise BenchError("nothing was answered")
    return latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))]


async def measure(
    server: Server,
    registry: mlflow.Mlflow,
    swaps: int,
    before_s: float,
    workers: int,
    rest_s: float,
) -> tuple[list[float], float, Seen]:
    """Seconds until each swap's first answer; p99 during swaps over p99 before; all answers."""
    seen = Seen()
    tasks = [asyncio.create_task(worker(server.http, seen, 0.002)) for _ in range(workers)]
    took: list[float] = []
    during: list[float] = []
    try:
        await asyncio.sleep(1.0)  # warm
        start = time.monotonic()
        await asyncio.sleep(before_s)
        quiet = seen.latencies(start, time.monotonic())
        for number in range(swaps):
            version = "21"[number % 2]
            began = time.monotonic()
            await asyncio.to_thread(registry.point, MODEL, "champion", version)
            moved = time.monotonic()
            while (first := seen.first(version, moved)) is None:
                if time.monotonic() - moved > LONGEST_S:
                    raise BenchError(f"version {version} did not answer within {LONGEST_S:g} s")
                await asyncio.sleep(0.01)
            took.append(first - moved)
            await asyncio.sleep(rest_s)  # the old version drains and is unloaded
            during += seen.latencies(began, time.monotonic())
            print(f"swap {number + 1}: version {version} after {took[-1]:.2f} s", flush=True)
    finally:
        seen.ended = True
        await asyncio.gather(*tasks)
    return took, p99(sorted(during)) / p99(quiet), seen


def run(args: argparse.Namespace, work: Path) -> int:
    """Prints each swap and a table; 1 when a goal is missed."""
    with mlflow.serve(args.mlflow or mlflow.default_command(), work / "mlflow") as registry:
        registry.post("registered-models/create", name=MODEL)
        for added in (1, 2):
            code = CODE.format(load_s=args.load_s, added=added)
            registry.register(MODEL, {"model.py": code.encode()})
        registry.point(MODEL, "champion", "1")
        settings = f"isolation: {args.isolation}"
        registry.post(
            "registered-models/set-tag", name=MODEL, key="sluice.settings", value=settings
        )
        http, grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "gateway", "serve", registry.source]
        command += ["--http", http, "--grpc", grpc]
        command += ["--set", f"registry.poll_seconds={args.poll}"]
        command += ["--set", f"trust.code={registry.source}"]
        own = {"XDG_STATE_HOME": str(work / "state"), "PYTHONPATH": str(ROOT)}
        log = work / "gateway.log"
        with started("sluicegate", command, (http, grpc, http), log, env=own) as server:
            wait_models(server, [MODEL])
            took, ratio, seen = asyncio.run(
                measure(server, registry, args.swaps, args.before, args.workers, args.rest)
            )
    for failure in seen.failures[:3]:
        print(f"failed: {failure}")
    rows = [
        (
            "longest time to the first answer",
            f"{max(took):.2f} s",
            f"≤ {GOAL_S:g} s",
            max(took) <= GOAL_S,
        ),
        ("failed requests", str(len(seen.failures)), "0", not seen.failures),
        ("p99 during swaps / before", f"{ratio:.2f}", f"≤ {GOAL_P99:g}", ratio <= GOAL_P99),
    ]
    print(
        f"\n{args.swaps} swaps, polling {args.poll:g} s, model loaded in {args.load_s:g} s, "
        f"{len(seen.answers)} answers\n"
    )
    for name, value, goal, met in rows:
        print(f"{name:34} {value:>8}  goal {goal:7} {'met' if met else 'MISS'}")
    return int(not all(met for *_, met in rows))


@command("swap")
def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.registry.swap")
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--poll", type=finite, default=2.0, help="registry.poll_seconds")
    parser.add_argument("--load-s", type=finite, default=1.0, help="seconds that loading takes")
    parser.add_argument("--before", type=finite, default=10.0, help="seconds of load before")
    parser.add_argument("--rest", type=finite, default=2.0, help="seconds between swaps")
    parser.add_argument("--workers", type=int, default=8, help="connections")
    parser.add_argument(
        "--isolation",
        choices=("code", "none"),
        default="code",
        help="where the model runs: in a process of its own, which starts at each swap, or in the "
        "gateway's",
    )
    parser.add_argument("--mlflow", help="the command of MLflow, such as 'PYTHON -m mlflow'")
    args = parser.parse_args()
    if min(args.swaps, args.workers) < 1 or min(args.poll, args.before) <= 0:
        raise BenchError("--swaps, --workers, --poll and --before must be above 0")
    with tempfile.TemporaryDirectory(prefix="sluicegate-swap-") as work:
        return run(args, Path(work))


if __name__ == "__main__":
    sys.exit(main())
