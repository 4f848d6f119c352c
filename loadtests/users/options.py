"""What can be said on locust's command line (and in its web form), for every user class."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final, TypeVar

from loadtests.errors import BenchError
from loadtests.users.pace import Pace
from loadtests.users.thresholds import Thresholds, fraction, milliseconds, per_second

T = TypeVar("T")

SHAPES: Final = "constant, ramp, spike, diurnal or step, with keys, as in spike:base=5,at=20s"


def _add(group: Any, flag: str, *, web: bool = False, secret: bool = False, **how: Any) -> None:
    """Adds an option to a group; locust shows those in its web form that are marked so."""
    action = group.add_argument(flag, **how)
    action.include_in_web_ui = web
    action.is_secret = secret
    action.is_required = action.is_multiple = False


def add_options(parser: Any) -> None:
    """Adds ours to locust's. A locust option of the same meaning (``--host``) is not repeated."""
    requests = parser.add_argument_group("Requests to an inference server")
    _add(requests, "--model", web=True, default="", help="Model to ask", metavar="NAME")
    _add(
        requests,
        "--model-version",
        web=True,
        default="",
        metavar="V",
        help="Version or label to ask; none: the split",
    )
    _add(
        requests,
        "--grpc-host",
        web=True,
        default="",
        metavar="HOST:PORT",
        help="Where gRPC is; --host is HTTP",
    )
    _add(
        requests,
        "--data",
        web=True,
        default="",
        metavar="SOURCE",
        help="What is sent: a .json body, a .jsonl or .har recording, an .npz, .npy, .csv or "
        ".parquet, or sklearn:digits; none: random values that fit the model",
    )
    _add(requests, "--rows", web=True, type=int, default=0, metavar="N", help="Rows of a request")
    _add(
        requests,
        "--tensor-shape",
        action="append",
        default=[],
        metavar="INPUT=1,128",
        help="Sizes of an input for random values, where the model leaves them open",
    )
    _add(
        requests,
        "--tensor-range",
        action="append",
        default=[],
        metavar="INPUT=0:30000",
        help="Lowest and highest random value of an input",
    )
    _add(
        requests,
        "--payloads",
        web=True,
        type=int,
        default=64,
        metavar="N",
        help="How many different random requests",
    )
    _add(requests, "--seed", web=True, type=int, default=1, metavar="N", help="Of random values")
    _add(
        requests,
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="Sent with every request; may be repeated",
    )
    _add(
        requests,
        "--token",
        default="",
        env_var="SLUICE_TOKEN",
        secret=True,
        metavar="TOKEN",
        help="Bearer token, also for reading the split",
    )
    _add(
        requests,
        "--ca-file",
        default="",
        metavar="FILE",
        help="Certificates of the authority that signed the server's; TLS for gRPC",
    )
    _add(
        requests,
        "--timeout",
        web=True,
        type=float,
        default=0.0,
        metavar="S",
        help="Of a request (default: 30)",
    )
    load = parser.add_argument_group("Load")
    _add(
        load,
        "--user-mix",
        default="",
        metavar="CLASS=N,...",
        help="Which user classes, and in what proportion: Json=3,Grpc=1",
    )
    _add(
        load,
        "--pace",
        web=True,
        default="closed",
        metavar="PACE",
        help="When a user asks again: closed (at once), constant:R or poisson:R (R requests a "
        "second and user, at most), recorded (as --data says)",
    )
    _add(
        load,
        "--shape",
        default="",
        metavar="SHAPE",
        help=f"Users over time: {SHAPES}",
    )
    fail = parser.add_argument_group(
        "Thresholds", "The exit code is 1 when one of them is missed, and 0 when all are kept."
    )
    for name, what, example in (
        ("p50", "Median latency", "10ms"),
        ("p95", "95th percentile", "30ms"),
        ("p99", "99th percentile", "50ms"),
        ("error-rate", "Share of requests that fail", "0.1%%"),
        ("share", "Distance of a version's share from the declared one", "2%%"),
    ):
        _add(
            fail,
            f"--fail-{name}",
            default="",
            metavar=example.replace("%%", "%"),
            help=f"{what}, at most",
        )
    _add(
        fail,
        "--fail-rate",
        default="",
        metavar="500",
        help="Requests a second that are answered well, at least",
    )


def thresholds_of(options: argparse.Namespace) -> Thresholds:
    """The thresholds that were given. Raises `BenchError`."""
    return Thresholds(
        p50_ms=_given(options, "p50", milliseconds),
        p95_ms=_given(options, "p95", milliseconds),
        p99_ms=_given(options, "p99", milliseconds),
        error_rate=_given(options, "error_rate", fraction),
        share=_given(options, "share", fraction),
        rate=_given(options, "rate", per_second),
    )


def _given(options: argparse.Namespace, name: str, read: Callable[[str], T]) -> T | None:
    text = getattr(options, f"fail_{name}")
    if not text:
        return None
    try:
        return read(text)
    except ValueError as error:
        raise BenchError(f"--fail-{name.replace('_', '-')}: {error}") from None


def headers_of(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """``--header`` and ``--token``. Raises `BenchError`."""
    found = []
    for each in options.header:
        name, colon, value = each.partition(":")
        if not colon or not name.strip():
            raise BenchError(f"--header '{each}' is not NAME:VALUE")
        found.append((name.strip().lower(), value.strip()))
    if options.token:
        found.append(("authorization", f"Bearer {options.token}"))
    return tuple(found)


def tensor_shapes(given: list[str]) -> dict[str, tuple[int, ...]]:
    """``--tensor-shape x=1,128``. Raises `BenchError`."""
    found = {}
    for each in given:
        name, equals, sizes = each.rpartition("=")
        try:
            found[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            equals = ""
        if not equals or not name:
            raise BenchError(f"--tensor-shape '{each}' is not INPUT=SIZE,SIZE,..., as in x=1,128")
    return found


def tensor_ranges(given: list[str]) -> dict[str, tuple[float, float]]:
    """``--tensor-range ids=0:30000``. Raises `BenchError`."""
    found = {}
    for each in given:
        name, equals, bounds = each.rpartition("=")
        try:
            low, high = (float(bound) for bound in bounds.split(":"))
        except ValueError:
            low, high = 1.0, 0.0
        if not equals or not name or not low <= high:
            raise BenchError(
                f"--tensor-range '{each}' is not INPUT=LOWEST:HIGHEST, as in ids=0:30000"
            )
        found[name] = (low, high)
    return found


def pace_of(options: argparse.Namespace) -> Pace:
    """``--pace``. Raises `BenchError`."""
    return Pace.parse(options.pace)


def mix_of(text: str, classes: dict[str, Any]) -> dict[str, int]:
    """``--user-mix Json=3,Grpc=1``; classes by name, whatever their case. Raises `BenchError`."""
    names = {name.lower(): name for name in classes}
    found: dict[str, int] = {}
    for each in text.split(","):
        name, equals, weight = each.strip().partition("=")
        if name.lower() not in names:
            raise BenchError(
                f"--user-mix has no user class '{name}'; known: {', '.join(sorted(classes))}"
            )
        if equals and not (weight.isdecimal() and int(weight)):
            raise BenchError(f"--user-mix {name}={weight}: give a whole number, as in {name}=3")
        found[names[name.lower()]] = int(weight) if equals else 1
    return found
