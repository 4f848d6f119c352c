"""``sluice pause`` and ``sluice resume``: a model that stays as it is."""

from __future__ import annotations

import click

from gateway.cli.options import json_option, message_option, url_options


@click.command(short_help="Keep a model as it is, whatever its registry says.")
@click.argument("model")
@message_option
@url_options
@json_option
def pause(model: str, message: str, url: str, token: str, as_json: bool) -> None:
    """Keep MODEL as it is until `sluice resume`: new versions, settings and splits of its
    registry are not applied, and other changes by people are refused.

    The pause is kept over restarts of the gateway.
    """
    change(model, "pause", message, url, token, as_json)


@click.command(short_help="End a pause.")
@click.argument("model")
@message_option
@url_options
@json_option
def resume(model: str, message: str, url: str, token: str, as_json: bool) -> None:
    """End the pause of MODEL: what its registry wants by now is applied."""
    change(model, "resume", message, url, token, as_json)


def change(model: str, what: str, message: str, url: str, token: str, as_json: bool) -> None:
    from gateway.cli.client import GatewayClient
    from gateway.cli.split import show_split

    with GatewayClient(url, token) as gateway:
        show_split(gateway.change(model, what, message), as_json)
