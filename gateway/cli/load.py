"""``sluice load`` and ``sluice unload``: models and versions by hand."""

from __future__ import annotations

import click

from gateway.cli.options import json_option, message_option, url_options


@click.command(short_help="Load a model, or one more version of it.")
@click.argument("model")
@click.argument("version", required=False, default="")
@message_option
@url_options
@json_option
def load(model: str, version: str, message: str, url: str, token: str, as_json: bool) -> None:
    """Load MODEL as its registry says, or VERSION besides what is loaded, and wait until it is
    ready.

    A load that fails changes nothing. A version that was loaded gets no share of the traffic by
    itself, unless no split is declared and it is the newest.
    """
    change(model, version, "load", message, url, token, as_json)


@click.command(short_help="Unload a model, or one version of it.")
@click.argument("model")
@click.argument("version", required=False, default="")
@message_option
@url_options
@json_option
def unload(model: str, version: str, message: str, url: str, token: str, as_json: bool) -> None:
    """Take MODEL, or VERSION alone, out of service; requests that it has are finished.

    It stays unloaded, over restarts too, until `sluice load`. A version with a share of the
    traffic is not unloaded; give the share to others first.
    """
    change(model, version, "unload", message, url, token, as_json)


def change(
    model: str, version: str, what: str, message: str, url: str, token: str, as_json: bool
) -> None:
    from gateway.cli.client import GatewayClient, quoted
    from gateway.cli.output import print_json
    from gateway.cli.split import show_split

    path = f"versions/{quoted(version)}/{what}" if version else what
    with GatewayClient(url, token) as gateway:
        found = gateway.change(model, path, message)
    if "versions" in found:
        show_split(found, as_json)
    elif as_json:
        print_json(found)
    else:
        click.echo(f"{model} is unloaded")
