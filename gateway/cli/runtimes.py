"""``sluice runtimes``: which kinds of models can be served here."""

from __future__ import annotations

from dataclasses import asdict

import click

from gateway.cli.options import json_option


@click.command(short_help="List the installed runtimes.")
@json_option
def runtimes(as_json: bool) -> None:
    """List the installed runtimes, where they come from, and what to install for those that
    cannot be used."""
    from gateway.cli.output import Column, print_json, print_table
    from runtimes.discovery import installed_runtimes

    reports = [installed.report() for installed in installed_runtimes()]
    if as_json:
        print_json({"runtimes": [asdict(report) for report in reports]})
        return
    names = ("RUNTIME", "USABLE", "VERSION", "DEVICES", "FORMATS", "FROM", "REASON")
    print_table(
        [Column(name) for name in names],
        [
            [
                report.name,
                "yes" if report.available else "no",
                report.version,
                ", ".join(report.devices),
                ", ".join(report.formats),
                "built in"
                if report.built_in
                else f"{report.package} {report.package_version}".strip(),
                report.reason,
            ]
            for report in reports
        ],
    )
