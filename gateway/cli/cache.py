"""``sluice cache``: the fetched files on this machine, with or without gateways that use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gateway.cli import exits
from gateway.cli.options import json_option

if TYPE_CHECKING:
    from gateway.artifacts.inspection import Inspection

F = TypeVar("F", bound=Callable[..., Any])


def place_options(command: F) -> F:
    """``--state-dir`` and ``--config``."""
    state_dir = click.option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="The gateway's state_dir, unless it is the usual one.",
    )
    file = click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The gateway's YAML configuration, which says state_dir and cache.max_mb.",
    )
    return state_dir(file(command))


@click.group(short_help="Look after the files that were fetched.")
def cache() -> None:
    """Look after the files that were fetched. Safe while gateways use them."""


@cache.command("list")
@place_options
@json_option
def list_(state_dir: Path | None, file: Path | None, as_json: bool) -> None:
    """List the fetched versions, those used last first.

    SIZE is that of the files; a file that several versions have is kept once.
    """
    from gateway.cli.output import Column, print_json, print_table

    inspection = open_cache(state_dir, file)
    found = inspection.trees()
    if as_json:
        print_json(
            {
                "folder": str(inspection.folder),
                "bytes": inspection.size(),
                "trees": [
                    {
                        "tree": tree.digest,
                        "uri": tree.uri,
                        "bytes": tree.size,
                        "used": tree.used,
                        "in_use": tree.in_use,
                    }
                    for tree in found
                ],
            }
        )
        return
    if not found:
        click.echo("nothing is cached")
        return
    columns = [Column("TREE"), Column("URI"), Column("SIZE", right=True), Column("USED"),
               Column("IN USE")]  # fmt: skip
    print_table(
        columns,
        [
            [tree.digest[:12], tree.uri, megabytes(tree.size), ago(tree.used), yes(tree.in_use)]
            for tree in found
        ],
    )
    click.echo(f"{megabytes(inspection.size())} in {inspection.folder}")


@cache.command()
@place_options
@json_option
def verify(state_dir: Path | None, file: Path | None, as_json: bool) -> int:
    """Read every fetched file and compare it with its digest.

    What is damaged and not in use is removed, and fetched again when it is needed; what is in use
    is named. The exit code is 1 when something is damaged.
    """
    from gateway.cli.output import print_json

    report = open_cache(state_dir, file).verify()
    if as_json:
        print_json({"checked": report.checked, "removed": report.removed, "in_use": report.in_use})
    else:
        for name in report.removed:
            click.echo(f"damaged, removed: {name}")
        for name in report.in_use:
            click.echo(f"damaged, in use: {name}; unload its models, and verify again")
        click.echo(f"{report.checked} files are checked, {report.damaged} damaged")
    return exits.FAILED if report.damaged else exits.OK


@cache.command()
@click.option("--all", "everything", is_flag=True, help="Remove all that no gateway uses.")
@place_options
def clean(everything: bool, state_dir: Path | None, file: Path | None) -> None:
    """Remove what is left over: of crashes, of old downloads, and above cache.max_mb."""
    freed = open_cache(state_dir, file).clean(everything=everything)
    click.echo(f"{megabytes(freed)} freed")


def open_cache(state_dir: Path | None, file: Path | None) -> Inspection:
    """The cache of the gateway that is configured so."""
    from gateway.artifacts.inspection import Inspection
    from gateway.config import load_config
    from gateway.state import StateDir, state_path

    flags = {"state_dir": str(state_dir)} if state_dir is not None else {}
    config, _ = load_config(file, flags)
    return Inspection(StateDir(state_path(config.state_dir)), config.cache)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def yes(value: bool) -> str:
    return "yes" if value else ""


def ago(when: float) -> str:
    """How long ago a time (Unix seconds) was."""
    import time

    seconds = max(0.0, time.time() - when)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
