"""``sluice models``: what a running gateway serves."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from gateway.cli.options import json_option, url_options

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient

WATCH_SECONDS = 2.0


@click.command(short_help="List models, versions, states and traffic.")
@url_options
@json_option
@click.option("--watch", is_flag=True, help="Print again every two seconds, until Ctrl-C.")
def models(url: str, token: str, as_json: bool, watch: bool) -> None:
    """List models, versions, their states and their share of the traffic.

    P50 and P99 are the latency inside the gateway since the version was loaded. The state of a
    model is outdated when its files cannot be read and it is served as it was before.
    """
    from gateway.cli.client import GatewayClient

    with GatewayClient(url, token) as gateway:
        show(gateway, as_json)
        while watch:
            time.sleep(WATCH_SECONDS)
            if sys.stdout.isatty() and not as_json:
                click.clear()
            show(gateway, as_json)


def show(gateway: GatewayClient, as_json: bool) -> None:
    from gateway.cli.output import print_json
    from gateway.cli.tables import print_running

    found = gateway.models()
    if as_json:
        print_json({"models": found})
    elif found:
        print_running(found)
    else:
        click.echo("no models")
