"""What the commands of the measurements have in common: options, and the table of figures."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from loadtests.compare import sluice
from loadtests.compare.summary import Figure


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
