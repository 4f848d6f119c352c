"""From a user class and the command line to the requests that are sent. Knows nothing of locust."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.bench.facts import Facts, look
from loadtests.bench.plan import Protocol, Target
from loadtests.errors import BenchError, Unreachable
from loadtests.payloads.base import Wire
from loadtests.payloads.encode import encode
from loadtests.payloads.sources import open_payloads
from loadtests.users.options import headers_of, tensor_ranges, tensor_shapes


@dataclass(frozen=True)
class Plan:
    """What one user class sends."""

    target: Target
    source: str
    rows: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ranges: tuple[tuple[str, tuple[float, float]], ...] = ()
    count: int = 64
    seed: int = 1


@dataclass(frozen=True)
class Prepared:
    """A plan whose requests are ready."""

    wires: Sequence[Wire]
    words: str
    """Where they came from."""
    facts: Facts


def plan_of(cls: Any, options: argparse.Namespace, host: str) -> Plan:
    """What instances of a user class send: the command line's word counts for more than the class's
    own attributes. Raises `BenchError` for what is missing."""
    model = options.model or cls.model
    protocol: Protocol = cls.protocol
    if not model:
        raise BenchError(f"{cls.__name__}: which model? Give --model NAME, or set its 'model'")
    http = (host or "").rstrip("/")
    if http and not http.startswith(("http://", "https://")):
        http = f"http://{http}"
    grpc = options.grpc_host or cls.grpc_host
    if protocol.http and not http:
        raise BenchError(f"{cls.__name__} asks over HTTP: give --host http://HOST:PORT")
    if not protocol.http and not grpc:
        raise BenchError(f"{cls.__name__} asks over gRPC: give --grpc-host HOST:PORT")
    if options.rows < 0 or options.payloads < 1:
        raise BenchError("--rows and --payloads must be at least 1")
    if options.timeout < 0:
        raise BenchError(f"--timeout {options.timeout:g}: give seconds above 0")
    target = Target(
        model=model,
        protocol=protocol,
        http=http,
        grpc=grpc,
        version=options.model_version or cls.model_version,
        headers=(
            *((name.lower(), value) for name, value in cls.headers.items()),
            *headers_of(options),
        ),
        ca_file=options.ca_file or cls.ca_file,
    )
    shapes = {**cls.shapes, **tensor_shapes(options.tensor_shape)}
    ranges = {**cls.ranges, **tensor_ranges(options.tensor_range)}
    return Plan(
        target,
        str(options.data or cls.data),
        options.rows or cls.rows,
        tuple(sorted(shapes.items())),
        tuple(sorted(ranges.items())),
        options.payloads,
        options.seed,
    )


def prepare(plan: Plan) -> Prepared:
    """Asks the server what the model takes, and makes the requests. Raises `BenchError`."""
    try:
        facts = look(plan.target)
    except Unreachable as error:
        # It speaks of the options of `sluice bench`.
        option = "--host http://HOST:PORT" if plan.target.protocol.http else "--grpc-host HOST:PORT"
        raise BenchError(f"{str(error).partition('; name it')[0]}; name it with {option}") from None
    samples, words = open_payloads(
        plan.source,
        facts.metadata,
        rows=plan.rows,
        shapes=dict(plan.shapes),
        ranges=dict(plan.ranges),
        count=plan.count,
        seed=plan.seed,
    )
    return Prepared([encode(sample, plan.target) for sample in samples], words, facts)
