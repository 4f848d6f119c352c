"""What polling an MLflow registry with many models costs while nothing changes.

    python -m loadtests.registry.polling

A real MLflow server (sqlite) holds 1,000 registered models with aliases and tags. The gateway's
own processor time over a while is compared with watching and without it; the difference is the
cost, as a share of one core.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from loadtests.commands import command
from loadtests.compare.processes import ROOT, free_port, get, started
from loadtests.errors import BenchError
from loadtests.registry import mlflow
from loadtests.units import finite

GOAL = 0.02
SERVED = "served"
SETTLE_S = 5.0
START_S = 300.0


def fill(registry: mlflow.Mlflow, count: int) -> None:
    """Registers `count` models with one version, an alias and two tags each.

    One of them is served; the others have another alias and no files, yet the gateway has to read
    the whole list each time.
    """
    registry.post("registered-models/create", name=SERVED)
    file = Path(ROOT, "examples", "models", "iris", "1", "model.onnx")
    registry.register(SERVED, {"model.onnx": file.read_bytes()})
    registry.point(SERVED, "champion", "1")
    run = registry.post("runs/create", experiment_id="0", start_time=0)["run"]["info"]["run_id"]
    for number in range(1, count):
        name = f"model-{number:05}"
        tags = [{"key": "team", "value": "vision"}, {"key": "stage", "value": "live"}]
        registry.post("registered-models/create", name=name, tags=tags)
        registry.post("model-versions/create", name=name, source=f"runs:/{run}/m", run_id=run)
        registry.point(name, "candidate", "1")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share(
    registry: mlflow.Mlflow, work: Path, poll: float, seconds: float, *, watch: bool
) -> float:
    """The gateway's processor time over a while, as a share of one core."""
    http, grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gateway", "serve", registry.source]
    command += ["--http", http, "--grpc", grpc]
    command += ["--set", f"registry.poll_seconds={poll}", "--set", f"registry.watch={watch}"]
    own = {"XDG_STATE_HOME": str(work / f"state-{watch}"), "PYTHONPATH": str(ROOT)}
    log = work / f"gateway-{watch}.log"
    ports = (http, grpc, http)
    with started("sluicegate", command, ports, log, env=own, ready_timeout_s=START_S) as server:
        time.sleep(SETTLE_S)
        pid = server.process.pid
        began, before = time.monotonic(), cpu_seconds(pid)
        time.sleep(seconds)
        used, took = cpu_seconds(pid) - before, time.monotonic() - began
        if get(http, "/v2/health/ready")[0] != 200:
            raise BenchError("the gateway is not ready any more")
    return used / took


def run(args: argparse.Namespace, work: Path) -> int:
    """Prints the shares; 1 when the goal is missed."""
    with mlflow.serve(args.mlflow or mlflow.default_command(), work / "mlflow") as registry:
        began = time.monotonic()
        fill(registry, args.models)
        print(f"{args.models} models registered in {time.monotonic() - began:.0f} s", flush=True)
        without = share(registry, work, args.poll, args.duration, watch=False)
        with_it = share(registry, work, args.poll, args.duration, watch=True)
    cost = with_it - without
    met = cost <= GOAL
    print(f"\n{args.models} registered models, polling {args.poll:g} s, nothing changing\n")
    print(f"{'without watching':34} {without * 100:6.2f} % of one core")
    print(f"{'with watching':34} {with_it * 100:6.2f} % of one core")
    print(
        f"{'polling':34} {cost * 100:6.2f} % of one core  goal ≤ {GOAL * 100:g} % "
        f"{'met' if met else 'MISS'}"
    )
    return int(not met)


@command("polling")
def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.registry.polling")
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--poll", type=finite, default=5.0, help="registry.poll_seconds")
    parser.add_argument("--duration", type=finite, default=60.0, help="seconds of each half")
    parser.add_argument("--mlflow", help="the command of MLflow, such as 'PYTHON -m mlflow'")
    args = parser.parse_args()
    if args.models < 1 or min(args.poll, args.duration) <= 0:
        raise BenchError("--models, --poll and --duration must be above 0")
    with tempfile.TemporaryDirectory(prefix="sluicegate-polling-") as work:
        return run(args, Path(work))


if __name__ == "__main__":
    sys.exit(main())
