"""What was typed after ``sluice bench``, checked and put together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from gateway.cli.bench_words import address, beside, header, limits, option, seconds, shape

if TYPE_CHECKING:
    from loadtests.bench.objective import Objective
    from loadtests.bench.plan import Load, Target
    from loadtests.bench.run import Order, Requests, Seek

SWEEP: Final = (1, 4, 16, 64)
"""Concurrencies when nothing is said of the load."""
ONE_LEVEL_S: Final = 10.0
OF_SEVERAL_S: Final = 5.0
MAX_RATE: Final = 1_000_000.0
MAX_CONCURRENCY: Final = 1024.0
LEVELS: Final = ("rate", "rates", "concurrency", "concurrencies")
OPEN_ONLY: Final = ("arrivals", "max_in_flight")
FOR_COMPARE: Final = frozenset({"compare", "tolerance", "force", "json_out", "html_out"})


@dataclass(frozen=True)
class Typed:
    """The options as click has them, and the names of those that were given on this line."""

    model: str
    url: str
    token: str
    grpc: str
    protocol: str | None
    version: str
    ca_file: Path | None
    headers: tuple[str, ...]
    rate: float | None
    rates: str
    concurrency: int | None
    concurrencies: str
    arrivals: str
    search: str
    slo: str
    duration: str
    warmup: str
    rest: str
    order: str
    connections: int | None
    processes: int
    timeout: str
    max_in_flight: int
    seed: int
    data: str
    rows: int
    shapes: tuple[str, ...]
    ranges: tuple[str, ...]
    key: str
    keys: int | None
    json_out: str
    html_out: Path | None
    compare: tuple[Path, Path] | None
    tolerance: str
    force: bool
    given: frozenset[str]


@contextmanager
def usage() -> Iterator[None]:
    """Makes an error in what was typed one of usage: exit code 2."""
    from loadtests.errors import BenchError

    try:
        yield
    except BenchError as error:
        raise click.UsageError(str(error)) from None


def check_compare(typed: Typed) -> None:
    """Raises `click.UsageError` for what has no meaning beside ``--compare``."""
    if typed.model:
        raise click.UsageError(
            f"--compare reads two files and asks no server; leave out {typed.model}"
        )
    for name in sorted(typed.given - FOR_COMPARE):
        raise click.UsageError(f"--compare measures nothing; leave out {option(name)}")


def order_of(typed: Typed, command: str) -> Order:
    """What is to be measured. Raises `click.UsageError` that says what to type."""
    from loadtests.bench.run import Order
    from loadtests.bench.sweep import levels

    if not typed.model:
        raise click.UsageError("give a MODEL, or two results: --compare A.json B.json")
    for name in ("tolerance", "force"):
        if name in typed.given:
            raise click.UsageError(f"{option(name)} is for --compare A.json B.json; leave it out")
    with usage():
        check_level(typed)
        seek = seek_of(typed)
        opened, values = (True, ()) if seek else values_of(typed)
        several = seek is not None or len(values) > 1
        if "rest" in typed.given and not several:
            raise click.UsageError(
                "--rest is for the time between levels, and there is one; leave it out"
            )
        check_shares(typed, () if opened else values, seek)
        if "seed" in typed.given and not opened and typed.data and typed.order != "shuffled":
            raise click.UsageError(
                "--seed is for random values and open loops, and here is neither; leave it out"
            )
        template = template_of(typed, several=several)
        return Order(
            target=target_of(typed),
            requests=requests_of(typed),
            template=template,
            levels=levels(template, values, opened=opened),
            seek=seek,
            order=typed.order,
            rest_s=seconds(typed.rest, "--rest", zero=True),
            command=command,
            any_encoding=typed.protocol is None and not typed.grpc,
        )


def check_level(typed: Typed) -> None:
    """One way to say the load, and nothing that is for another."""
    said = [name for name in LEVELS if name in typed.given]
    if len(said) > 1:
        raise click.UsageError(f"give {option(said[0])} or {option(said[1])}, not both")
    opened = bool(said) and said[0] in ("rate", "rates")
    opened = opened or (bool(typed.search) and not said)
    for name in OPEN_ONLY:
        if name in typed.given and not opened:
            raise click.UsageError(
                f"{option(name)} is for an open loop; give --rate, --rates or --search with it"
            )
    if "order" in typed.given and (typed.search or said not in (["rates"], ["concurrencies"])):
        raise click.UsageError("--order is for several levels; give --rates or --concurrencies")
    if typed.rate is not None and not math.isfinite(typed.rate):
        raise click.UsageError(f"--rate {typed.rate:g} is no number of requests; give --rate 500")


def check_shares(typed: Typed, values: Sequence[float], seek: Seek | None) -> None:
    """That each process has something to send, and a connection. ``values``: of closed loops."""
    least = min(values, default=0.0)
    if seek is not None and not seek.opened:
        least = seek.low
    if least and typed.processes > least:
        raise click.UsageError(
            f"--processes {typed.processes} cannot share {least:g} in flight; give "
            f"--processes {least:g}, or more in flight"
        )
    if typed.connections and typed.processes > typed.connections:
        raise click.UsageError(
            f"--processes {typed.processes} cannot share --connections {typed.connections}; give "
            f"--connections {typed.processes} or more"
        )


def values_of(typed: Typed) -> tuple[bool, tuple[float, ...]]:
    """Whether the loop is open, and its levels."""
    from loadtests.bench.sweep import numbers

    if typed.rate is not None:
        return True, (typed.rate,)
    if typed.rates:
        return True, numbers(typed.rates, "--rates")
    if typed.concurrency is not None:
        return False, (float(typed.concurrency),)
    if typed.concurrencies:
        return False, numbers(typed.concurrencies, "--concurrencies", whole=True)
    return False, tuple(map(float, SWEEP))


def seek_of(typed: Typed) -> Seek | None:
    """What ``--search`` asks for."""
    from loadtests.bench.objective import parse
    from loadtests.bench.run import Seek
    from loadtests.bench.sweep import bounds

    if not typed.search:
        return None
    objective = parse(typed.search)
    for name, instead in (("rate", "--rates"), ("concurrency", "--concurrencies")):
        if name in typed.given:
            raise click.UsageError(
                f"--search finds the load; leave out {option(name)}, or give {instead} LOW:HIGH"
            )
    if typed.concurrencies:
        low, high = bounds(typed.concurrencies, "--concurrencies", whole=True)
        return Seek(objective, low, high, opened=False)
    low, high = bounds(typed.rates, "--rates") if typed.rates else (1.0, MAX_RATE)
    return Seek(objective, low, high, opened=True)


def slo_of(typed: Typed) -> Objective | None:
    """What ``--slo`` asks for. Raises `click.UsageError`."""
    from loadtests.bench.objective import parse

    with usage():
        return parse(typed.slo).with_errors() if typed.slo else None


def template_of(typed: Typed, *, several: bool) -> Load:
    """Everything of a level but the load itself."""
    from loadtests.bench.plan import Load

    usual = OF_SEVERAL_S if several else ONE_LEVEL_S
    warmup = None if typed.warmup == "auto" else seconds(typed.warmup, "--warmup", zero=True)
    return Load(
        arrivals=typed.arrivals,
        connections=typed.connections or 0,
        seconds=seconds(typed.duration, "--duration") if typed.duration else usual,
        warmup_s=warmup,
        timeout_s=seconds(typed.timeout, "--timeout"),
        max_in_flight=typed.max_in_flight,
        processes=typed.processes,
        seed=typed.seed,
    )


def target_of(typed: Typed) -> Target:
    """Where to send. gRPC without an address: the port after the one of ``--url``."""
    from gateway.cli.client import base_url
    from loadtests.bench.plan import Protocol, Target

    protocol = Protocol(typed.protocol or ("grpc" if typed.grpc else "binary"))
    if typed.grpc and protocol.http:
        raise click.UsageError(
            f"--grpc is an address for --protocol grpc and stream; {protocol} goes to --url"
        )
    url = base_url(typed.url)
    parts = urlsplit(url)
    if parts.username is not None:
        raise click.UsageError("a URL with a password would be kept in the results; give --token")
    grpc = ""
    if not protocol.http:
        grpc = address(typed.grpc) if typed.grpc else beside(url)
    if typed.ca_file is not None and protocol.http and parts.scheme != "https":
        raise click.UsageError("--ca-file is for TLS; give --url https://HOST:PORT with it")
    headers = [header(text) for text in typed.headers]
    if typed.token:
        if any(name.lower() == "authorization" for name, _ in headers):
            raise click.UsageError("give --token or --header 'Authorization: ...', not both")
        headers.append(("authorization", f"Bearer {typed.token}"))
    return Target(
        model=typed.model,
        protocol=protocol,
        # Of somebody else's gRPC server the statistics are read over gRPC.
        http="" if typed.grpc and "url" not in typed.given else url,
        grpc=grpc,
        version=typed.version,
        headers=tuple(headers),
        ca_file=str(typed.ca_file or ""),
    )


def requests_of(typed: Typed) -> Requests:
    """What is sent."""
    from loadtests.bench.run import Requests

    if typed.key and typed.keys:
        raise click.UsageError("give --key (one for all requests) or --keys N, not both")
    for name in ("shapes", "ranges"):
        if typed.data and name in typed.given:
            raise click.UsageError(
                f"{option(name)} is for random values; --data brings its own, leave one out"
            )
    if typed.data and "rows" in typed.given and whole_requests(typed.data):
        raise click.UsageError(
            f"--rows is for random values and tables; {typed.data} holds whole requests, which are "
            "sent as they are; leave it out"
        )
    return Requests(
        source=typed.data,
        rows=typed.rows,
        shapes=dict(shape(text) for text in typed.shapes),
        ranges=dict(limits(text) for text in typed.ranges),
        key=typed.key,
        keys=typed.keys or 0,
        seed=typed.seed,
    )


def whole_requests(source: str) -> bool:
    """Whether a source of requests has their bodies, rather than rows to make them of."""
    return source.endswith((".json", ".jsonl", ".har"))


def tolerance_of(typed: Typed) -> float:
    """``5%`` or ``0.05`` as a share."""
    from loadtests.units import share

    value = share(typed.tolerance)
    if value is not None and value > 1 and "%" not in typed.tolerance:
        raise click.UsageError(
            f"--tolerance: '{typed.tolerance}' is {value * 100:g} %; type --tolerance "
            f"{typed.tolerance.strip()}%"
        )
    if value is None or value > 10:
        raise click.UsageError(
            f"--tolerance: '{typed.tolerance}' must be a share of at most 1000%, as --tolerance 5%"
        )
    return value
