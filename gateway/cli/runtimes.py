"""``sluice runtimes``: which kinds of models can be served here."""

from __future__ import annotations

from dataclasses import asdict

import click

from gateway.cli.options import json_option


@click.command(short_help="List the installed runtimes.")
@json_option
def runtimes(as_json: bool) -> None:
    """List the installed runtimes, and what to install for those that cannot be used."""
    from gateway.cli.output import Column, print_json, print_table
    from runtimes.discovery import load_runtimes

    reports = [runtime.report() for runtime in load_runtimes().values()]
    if as_json:
        print_json({"runtimes": [asdict(report) for report in reports]})
        return
    columns = [Column(n) for n in ("RUNTIME", "USABLE", "VERSION", "DEVICES", "FORMATS", "REASON")]
    print_table(
        columns,
        [
            [
                report.name,
                "yes" if report.available else "no",
                report.version,
                ", ".join(report.devices),
                ", ".join(report.formats),
                report.reason,
            ]
            for report in reports
        ],
    )
