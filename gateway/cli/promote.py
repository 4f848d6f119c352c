"""``sluice promote``: one version gets everything."""

from __future__ import annotations

import click

from gateway.cli.options import json_option, message_option, url_options


@click.command(short_help="Give one version all of a model's traffic.")
@click.argument("model")
@click.argument("version")
@message_option
@url_options
@json_option
def promote(model: str, version: str, message: str, url: str, token: str, as_json: bool) -> None:
    """Give VERSION (or a label, such as canary) all of MODEL's traffic and make it stable."""
    from gateway.cli.client import GatewayClient
    from gateway.cli.split import show_split

    with GatewayClient(url, token) as gateway:
        show_split(gateway.change(model, "promote", message, {"version": version}), as_json)
