"""The options of ``sluice bench``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from gateway.cli.options import DEFAULT_URL

F = TypeVar("F", bound=Callable[..., Any])

PROTOCOLS: Final = ("grpc", "stream", "binary", "json", "v1", "invocations")
ORDERS: Final = ("ascending", "given", "shuffled")
FILE: Final = click.Path(path_type=Path, dir_okay=False)

WHERE: Final = (
    click.option(
        "--url",
        envvar="SLUICE_URL",
        default=DEFAULT_URL,
        show_default=True,
        metavar="URL",
        help="The server's HTTP address; or the environment variable SLUICE_URL.",
    ),
    click.option(
        "--token",
        envvar="SLUICE_TOKEN",
        default="",
        metavar="TOKEN",
        help="Sent with every request as a bearer token; or SLUICE_TOKEN.",
    ),
    click.option(
        "--grpc",
        default="",
        metavar="HOST:PORT",
        help="The gRPC address; that of --url with the next port unless given.",
    ),
    click.option(
        "--protocol",
        type=click.Choice(PROTOCOLS),
        help="How requests are sent: grpc with --grpc, else binary (tensors as bytes over HTTP), "
        "or json where the server takes no bytes.",
    ),
    click.option("--version", default="", metavar="VERSION", help="A version or a label."),
    click.option(
        "--ca-file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="The authority that signed the server's certificate; TLS for gRPC.",
    ),
    click.option(
        "-H",
        "--header",
        "headers",
        multiple=True,
        metavar="'NAME: VALUE'",
        help="Sent with every request; may be repeated.",
    ),
)
LOAD: Final = (
    click.option(
        "--rate",
        type=click.FloatRange(0, 10_000_000, min_open=True),
        metavar="N",
        help="Open loop: N requests a second.",
    ),
    click.option(
        "--rates",
        default="",
        metavar="LIST",
        help="Open loop, several levels: 100,200,400 or FROM:TO:STEP; with --search LOW:HIGH.",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 100_000),
        metavar="N",
        help="Closed loop: N requests in flight.",
    ),
    click.option(
        "--concurrencies",
        default="",
        metavar="LIST",
        help="Closed loop, several levels: 1,2,4,8 or FROM:TO:STEP; with --search LOW:HIGH.",
    ),
    click.option(
        "--arrivals",
        type=click.Choice(("poisson", "constant")),
        default="poisson",
        show_default=True,
        help="Open loop: as independent callers come, or at equal distances.",
    ),
    click.option(
        "--search",
        default="",
        metavar="OBJECTIVE",
        help="Find the highest rate (with --concurrencies: requests in flight) that meets it: "
        "'p99<=20ms,error<=0.1%'.",
    ),
    click.option(
        "--slo",
        default="",
        metavar="OBJECTIVE",
        help="End with 1 where a level misses it: 'p99<=20ms,error<=0.1%,rate>=500'.",
    ),
    click.option(
        "--duration",
        default="",
        metavar="TIME",
        help="Of each level: 10s for one, 5s for each of several unless given.",
    ),
    click.option(
        "--warmup",
        default="auto",
        show_default=True,
        metavar="TIME",
        help="Load before the measurement; auto: until latencies have settled.",
    ),
    click.option(
        "--rest",
        default="10s",
        show_default=True,
        metavar="TIME",
        help="Longest wait between levels for the server to be idle.",
    ),
    click.option(
        "--order",
        type=click.Choice(ORDERS),
        default="ascending",
        show_default=True,
        help="Of the levels.",
    ),
    click.option(
        "--connections",
        type=click.IntRange(1, 100_000),
        default=None,
        metavar="N",
        help="One per request in flight over HTTP, at most four over gRPC unless given.",
    ),
    click.option(
        "--processes",
        type=click.IntRange(1, 256),
        default=1,
        show_default=True,
        metavar="N",
        help="Processes that send.",
    ),
    click.option(
        "--timeout",
        default="30s",
        show_default=True,
        metavar="TIME",
        help="A request without an answer by then has failed.",
    ),
    click.option(
        "--max-in-flight",
        type=click.IntRange(1, 1_000_000),
        default=10_000,
        show_default=True,
        metavar="N",
        help="Open loop: requests due while so many wait have failed.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=1,
        show_default=True,
        metavar="N",
        help="Of random arrivals and values.",
    ),
)
REQUESTS: Final = (
    click.option(
        "--data",
        default="",
        metavar="SOURCE",
        help="Requests from a file (.json, .npz, .npy, .csv, .parquet), a recording (.jsonl, .har) "
        "or a data set (sklearn:digits).",
    ),
    click.option(
        "--rows",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Rows of each request.",
    ),
    click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=SIZES",
        help="Shape of a random tensor, as x=1,3,224,224; may be repeated.",
    ),
    click.option(
        "--range",
        "ranges",
        multiple=True,
        metavar="NAME=LOW:HIGH",
        help="Values of a random tensor, as ids=0:30000; may be repeated.",
    ),
    click.option(
        "--key", default="", metavar="KEY", help="Routing key, sent as the header x-sluice-key."
    ),
    click.option(
        "--keys",
        type=click.IntRange(1, 1_000_000),
        default=None,
        metavar="N",
        help="N different routing keys, in turn: as many callers of a sticky split.",
    ),
)
RESULTS: Final = (
    click.option(
        "--json",
        "json_out",
        default="",
        metavar="FILE",
        help="Write the result there; - is standard output, in the place of the table.",
    ),
    click.option(
        "--html", "html_out", type=FILE, metavar="FILE", help="Write a report with plots there."
    ),
    click.option(
        "--compare",
        type=(FILE, FILE),
        metavar="A.json B.json",
        help="Compare two results; needs no server.",
    ),
    click.option(
        "--tolerance",
        default="5%",
        show_default=True,
        metavar="SHARE",
        help="How much worse B may be.",
    ),
)


FORCE: Final = (
    click.option(
        "--force",
        is_flag=True,
        help="Compare results of different models or protocols all the same.",
    ),
)


def bench_options(command: F) -> F:
    """All of them, in the order in which they are listed."""
    for decorate in reversed((*WHERE, *LOAD, *REQUESTS, *RESULTS, *FORCE)):
        command = decorate(command)
    return command
