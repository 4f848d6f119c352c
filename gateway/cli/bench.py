"""``sluice bench``: how fast a model is served, at which load."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from gateway.cli.bench_flags import bench_options
from gateway.cli.bench_options import Typed, check_compare, order_of, slo_of, tolerance_of
from gateway.cli.exits import FAILED, INTERRUPTED, OK, UNREACHABLE, USAGE, Failure

if TYPE_CHECKING:
    from loadtests.bench.objective import Objective
    from loadtests.bench.results import Result


EXAMPLES: Final = """\b
Examples:
  sluice bench digits
  sluice bench digits --rates 100,200,400 --html report.html
  sluice bench digits --search 'p99<=20ms'
  sluice bench digits --rate 200 --slo 'p99<=20ms' --json today.json
  sluice bench --compare yesterday.json today.json
"""


@click.command(
    short_help="Measure a model under load, or compare two measurements.", epilog=EXAMPLES
)
@click.argument("model", required=False, default="")
@bench_options
@click.pass_context
def bench(context: click.Context, /, **options: Any) -> int:
    """Measure how MODEL is served, by this gateway or any Open Inference Protocol server.

    Without further options: 1, 4, 16 and 64 requests in flight (a closed loop), a few seconds
    each. --rate and --rates send on a schedule, whether or not answers come (an open loop), and
    count a latency from when the request was due; --search finds the highest rate that meets an
    objective. Requests are random values that fit the model's metadata, unless --data has others.

    The exit code is 1 when --slo is missed, --search finds nothing, --compare finds B worse, or a
    level got no good answer at all.
    """
    given = frozenset(
        name
        for name in options
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    )
    from gateway.cli.bench_output import check_outputs

    typed = Typed(**options, given=given)
    check_outputs(typed)
    if typed.compare is not None:
        check_compare(typed)
        return compare(typed, *typed.compare)
    return measure(typed)


def measure(typed: Typed) -> int:
    """Measures, prints, writes; returns the exit code."""
    from gateway.cli.bench_output import mention_histograms, renderer, show, write
    from gateway.cli.bench_progress import watch
    from loadtests.bench.machine import without_secrets
    from loadtests.bench.run import Interrupted, Unfit
    from loadtests.bench.run import bench as run
    from loadtests.errors import BenchError, Unreachable

    command = shlex.join(["sluice", *without_secrets(sys.argv[1:])])
    order, slo = order_of(typed, command), slo_of(typed)
    render = renderer(typed, "loadtests.report.bench")
    mention_histograms(typed)
    interrupted: Interrupted | None = None
    try:
        with interruptible(), watch() as progress:
            result = run(order, progress)
    except Unreachable as error:
        raise Failure(str(error), UNREACHABLE) from None
    except Unfit as error:
        raise Failure(str(error), USAGE) from None
    except BenchError as error:
        raise Failure(str(error)) from None
    except Interrupted as stop:
        if stop.result is None:
            click.echo("interrupted before a level was finished: nothing was measured", err=True)
            return INTERRUPTED
        result, interrupted = stop.result, stop
    write(typed, result, render)
    missed = missed_by(result, slo)
    if typed.json_out != "-":
        show(result)
    for line in missed:
        click.echo(f"missed: {line}", err=typed.json_out == "-")
    if interrupted is not None:
        if interrupted.cause is None:
            return INTERRUPTED
        code = UNREACHABLE if isinstance(interrupted.cause, Unreachable) else FAILED
        raise Failure(str(interrupted.cause), code)
    return FAILED if missed or fruitless(result) else OK


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets SIGTERM do what Ctrl-C does: what was measured is written, what was started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def missed_by(result: Result, slo: Objective | None) -> list[str]:
    """Levels that do not hold what ``--slo`` asks for; of a search, the one that it found."""
    if slo is None:
        return []
    points = result.points
    if result.search is not None:
        best = result.search.best
        points = [p for p in points if best == (p.load.rate or p.load.concurrency)]
    return [f"{point.load.name}: {words}" for point in points for words in slo.missed(point)]


def fruitless(result: Result) -> bool:
    """Whether a search found nothing, or a level got no good answer."""
    if result.search is not None:
        return result.search.best is None
    return any(not point.ok for point in result.points)


def compare(typed: Typed, first: Path, second: Path) -> int:
    """Two results beside each other; returns the exit code."""
    from gateway.cli.bench_output import renderer, show_differences, write_differences
    from loadtests.bench.differences import Incomparable
    from loadtests.bench.differences import compare as differences
    from loadtests.errors import BenchError

    tolerance = tolerance_of(typed)
    render = renderer(typed, "loadtests.report.differences")
    a, b = loaded(first), loaded(second)
    try:
        found = differences(a, b, tolerance, force=typed.force)
    except Incomparable as error:
        raise Failure(str(error), USAGE) from None
    except BenchError as error:
        raise Failure(str(error)) from None
    write_differences(typed, a, b, found, render)
    if typed.json_out != "-":
        show_differences(found, str(first), str(second))
    return FAILED if found.worse else OK


def loaded(path: Path) -> Result:
    """Reads a result. Raises `Failure`."""
    from loadtests.bench.results import load

    try:
        return load(path.read_bytes())
    except OSError as error:
        raise Failure(f"{path}: {(error.strerror or str(error)).lower()}", USAGE) from None
    except ValueError as error:
        raise Failure(f"{path} is {error}", USAGE) from None
