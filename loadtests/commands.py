"""What the commands of the measurements have in common: options, their ends, a table of figures."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import ParamSpec

from loadtests.compare import sluice
from loadtests.compare.summary import Figure
from loadtests.errors import BenchError

P = ParamSpec("P")


def ended(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a run like Ctrl-C does: what it started is ended on the way out."""
    raise KeyboardInterrupt


def command(name: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Makes a ``main`` end with an exit code: 2 where it raises `BenchError`, whose message is
    printed behind ``name``; 130 after Ctrl-C and SIGTERM."""

    def ending(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            before = signal.signal(signal.SIGTERM, ended)
            try:
                return main(*args, **kwargs)
            except BenchError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130
            finally:
                signal.signal(signal.SIGTERM, before)

        return run

    return ending


def add_sluice_option(parser: argparse.ArgumentParser) -> None:
    """``--sluice``: what starts the gateway."""
    parser.add_argument(
        "--sluice",
        default=sluice.default_command(),
        metavar="CMD",
        help="what starts the gateway; DIR --http ADDRESS --grpc ADDRESS is added",
    )


def add_triton_option(parser: argparse.ArgumentParser) -> None:
    """``--triton-venv``: where Triton is."""
    venv = os.environ.get("TRITON_VENV")
    parser.add_argument(
        "--triton-venv",
        type=Path,
        default=Path(venv) if venv else None,
        metavar="DIR",
        help="environment with nvidia-pytriton (default: $TRITON_VENV)",
    )


def show(found: Sequence[Figure]) -> str:
    """A Markdown table."""
    lines = ["| figure | value | min to max | at least | verdict |", "|---|---|---|---|---|"]
    for each in found:
        value = "-" if each.value is None else f"{each.value:.2f} {each.unit}"
        bound = each.goal.describe()[0] if each.goal else ""
        lines.append(f"| {each.name} | {value} | {each.detail} | {bound} | {each.verdict} |")
    return "\n".join(lines)


def judged(found: Sequence[Figure]) -> int:
    """Prints the table; 0 where every target is met, 1 where one is not."""
    print(show(found))
    return 0 if {each.verdict for each in found if each.goal} <= {"AIM", "PASS"} else 1
