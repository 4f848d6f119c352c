"""The verifier: a process of its own that checks answers while the load generator runs.

It sends one to ``max_rows`` rows, picked at random, at a low fixed rate over the protocol under
load, and compares every answer with the one it knows. It starts on a line on its standard
input, stops on the next one, and then prints its verdict as one line of JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loadtests.units import finite

from . import peers, wire
from .peers import oip
from .peers.base import Route
from .processes import ROOT
from .wire import Floats, Rows

Ask = Callable[[Rows], Floats]


@dataclass
class Verdict:
    """What the verifier saw."""

    sent: int = 0
    rows: int = 0
    mismatches: int = 0
    errors: int = 0
    first_problem: str = ""
    seconds: float = 0.0

    def problem(self, kind: str, text: str) -> None:
        """Counts one wrong answer (``mismatch``) or missing answer (``error``)."""
        if kind == "mismatch":
            self.mismatches += 1
        else:
            self.errors += 1
        self.first_problem = self.first_problem or f"{kind}: {' '.join(text.split()):.200}"


def grpc_asker(address: str, model: str, route: Route, timeout_s: float) -> Ask:
    """Asks over gRPC, through grpcio, with bytes in and bytes out."""
    import grpc

    unlimited = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    channel = grpc.insecure_channel(address, unlimited)
    grpc.channel_ready_future(channel).result(timeout_s)

    def ask(rows: Rows) -> Floats:
        request = route.encode(model, rows)
        call = channel.unary_unary(request.path)
        own = [item for item in request.headers.items() if item[0] not in oip.GRPC_HEADERS]
        message = call(request.body[wire.GRPC_FRAME :], timeout=timeout_s, metadata=own)
        return route.decode(message, {})

    return ask


def http_asker(address: str, model: str, route: Route, timeout_s: float) -> Ask:
    """Asks over one kept-alive HTTP connection."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    connection.connect()

    def ask(rows: Rows) -> Floats:
        request = route.encode(model, rows)
        connection.request("POST", request.path, request.body, request.headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}: {body[:200]!r}")
        return route.decode(body, {name.lower(): value for name, value in answer.getheaders()})

    return ask


def compare(answer: Floats, expected: Floats, exact: bool) -> str:
    """Says what is wrong with the answer; empty if nothing is."""
    if answer.shape != expected.shape:
        return f"shape {answer.shape}, expected {expected.shape}"
    if exact:
        return "" if np.array_equal(answer, expected) else f"{answer!r} is not {expected!r}"
    if np.allclose(answer, expected, rtol=1e-3, atol=1e-4):
        return ""
    return f"off by up to {np.abs(answer - expected).max():.3g}"


def run(ask: Ask, pool: tuple[Rows, Floats], rate: float, max_rows: int, exact: bool) -> Verdict:
    """Asks until a line arrives on standard input."""
    verdict = Verdict()
    began = due = time.perf_counter()
    while True:
        wait = max(0.0, due - time.perf_counter())
        if select.select([sys.stdin], [], [], wait)[0]:
            break
        due = max(due + 1 / rate, time.perf_counter())
        picked = random.sample(range(len(pool[0])), random.randint(1, max_rows))
        verdict.sent += 1
        verdict.rows += len(picked)
        try:
            wrong = compare(ask(pool[0][picked]), pool[1][picked], exact)
        except Exception as error:  # whatever went wrong is the finding
            verdict.problem("error", f"{type(error).__name__}: {error}")
            continue
        if wrong:
            verdict.problem("mismatch", wrong)
    verdict.seconds = time.perf_counter() - began
    return verdict


def main() -> None:
    """The process's own entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--route", required=True, help="see loadtests.compare.peers.route")
    parser.add_argument("--address", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pool", required=True, help="file with arrays rows and answers")
    parser.add_argument("--rate", type=finite, required=True, help="requests a second")
    parser.add_argument("--max-rows", type=int, required=True)
    parser.add_argument("--exact", action="store_true")
    args = parser.parse_args()
    timeout_s = 20.0
    route = peers.route(args.route)
    ask = (grpc_asker if route.grpc else http_asker)(args.address, args.model, route, timeout_s)
    with np.load(args.pool) as arrays:
        pool = arrays["rows"], arrays["answers"]
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(run(ask, pool, args.rate, args.max_rows, args.exact))), flush=True)


class Verifier:
    """The verifier's handle in the process that measures."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.verdict = Verdict(errors=1, first_problem="the verifier gave no verdict")

    def go(self) -> None:
        """Starts the asking, once it is connected."""
        out = self._process.stdout
        assert out is not None
        if select.select([out], [], [], 30)[0]:
            out.readline()
        self._line()

    def stop(self) -> Verdict:
        """Ends the asking and returns what was seen."""
        self._line()
        with suppress(subprocess.TimeoutExpired, ValueError):
            out, _ = self._process.communicate(timeout=30)
            self.verdict = Verdict(**json.loads(out))
        return self.verdict

    def _line(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()


@contextmanager
def verifier(
    route: str, address: str, model: str, pool: Path, *, rate: float, max_rows: int, exact: bool
) -> Iterator[Verifier]:
    """A verifier that connects and waits for ``go``; ended with the block whatever happens.

    ``route`` is what `loadtests.compare.peers.route` knows: ``grpc``, ``PEER:MODEL:native``.
    """
    command = [sys.executable, "-m", "loadtests.compare.verify", "--route", route]
    command += ["--address", address, "--model", model, "--pool", str(pool)]
    command += ["--rate", str(rate), "--max-rows", str(max_rows)]
    process = subprocess.Popen(
        command + (["--exact"] if exact else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield Verifier(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


if __name__ == "__main__":
    main()
