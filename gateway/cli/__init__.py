"""The command ``sluice``: one file per command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits."""
    from gateway.cli.commands import run

    raise SystemExit(run(arguments))
