"""Models and their versions as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.cli.output import Column, milliseconds, percent, print_table
from gateway.times import local_time

START = (
    Column("MODEL"),
    Column("VERSION"),
    Column("STATE"),
    Column("RUNTIME"),
    Column("WEIGHT", right=True),
    Column("BATCH", right=True),
    Column("CAUSE"),
)
RUNNING = (
    Column("MODEL"),
    Column("VERSION"),
    Column("STATE"),
    Column("RUNTIME"),
    Column("WEIGHT", right=True),
    Column("REQUESTS", right=True),
    Column("P50", right=True),
    Column("P99", right=True),
    Column("CAUSE"),
)


def print_start(models: Iterable[dict[str, Any]]) -> None:
    """The table when a gateway has started."""
    print_table(START, [start_row(name, version) for name, version in versions_of(models)])


def print_running(models: Iterable[dict[str, Any]]) -> None:
    """The table of a running gateway."""
    print_table(RUNNING, [running_row(name, version) for name, version in versions_of(models)])


def versions_of(models: Iterable[dict[str, Any]]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Every version with its model's name; an error of the model itself is a line of its own."""
    for model in models:
        if model["error"]:
            state = "failed" if not model["versions"] else "outdated"
            yield model["name"], {"version": "", "state": state, "cause": model["error"]}
        elif not model["versions"]:
            yield model["name"], {"version": "", "state": model["state"]}
        for version in model["versions"]:
            yield model["name"], version
        pause = model.get("paused")
        if pause:
            since = local_time(pause["at"])
            why = f": {pause['message']}" if pause["message"] else ""
            cause = f"since {since} by {pause['who']}{why}"
            yield model["name"], {"version": "", "state": "paused", "cause": cause}


def start_row(model: str, version: dict[str, Any]) -> list[str]:
    batch = version.get("max_batch_size")
    return [
        *common_cells(model, version),
        "" if batch is None else (str(batch) if batch else "no"),
        version.get("cause", ""),
    ]


def running_row(model: str, version: dict[str, Any]) -> list[str]:
    return [
        *common_cells(model, version),
        str(version.get("requests", "")),
        milliseconds(version.get("p50_ms")),
        milliseconds(version.get("p99_ms")),
        version.get("cause", ""),
    ]


def common_cells(model: str, version: dict[str, Any]) -> list[str]:
    share = version.get("share")
    return [
        model,
        version["version"],
        version["state"],
        version.get("runtime", ""),
        "" if share is None else percent(share),
    ]
