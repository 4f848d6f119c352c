"""``sluice check``: is a model directory in order?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gateway.cli.exits import FAILED, OK
from gateway.cli.options import json_option

if TYPE_CHECKING:
    from gateway.cli.checking import Finding


@click.command(short_help="Check model directories without serving them.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--load", is_flag=True, help="Also load and warm up every version.")
@json_option
def check(sources: tuple[str, ...], load: bool, as_json: bool) -> int:
    """Check each SOURCE without serving it: folders, model.yaml, config.pbtxt, traffic.yaml.

    Folders that are no models are listed as ignored. The exit code is 1 when anything is wrong.
    """
    from dataclasses import asdict

    from gateway.cli.checking import check_sources
    from gateway.cli.output import print_json

    findings = check_sources(sources, load=load)
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if as_json:
        print_json({"ok": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(findings)
    return FAILED if wrong else OK


def print_findings(findings: list[Finding]) -> None:
    from gateway.cli.output import Column, plural, print_table

    rows = [[f.state, f.model, ", ".join(f.versions), f.runtime, f.text] for f in findings]
    print_table([Column(n) for n in ("", "MODEL", "VERSIONS", "RUNTIME", "NOTE")], rows)
    models = {f.model for f in findings if f.state != "ignored" and f.model}
    wrong = sum(f.state == "wrong" for f in findings)
    problems = plural(wrong, "problem") if wrong else "all well"
    click.echo(f"{plural(len(models), 'model')}, {problems}")
