"""``sluice rollback``: what was declared before."""

from __future__ import annotations

import click

from gateway.cli.options import json_option, message_option, url_options


@click.command(short_help="Take back the latest change of a model's traffic.")
@click.argument("model")
@click.option(
    "--to", type=int, metavar="ID", help="As it was after this entry of `sluice history MODEL`."
)
@message_option
@url_options
@json_option
def rollback(model: str, to: int | None, message: str, url: str, token: str, as_json: bool) -> None:
    """Take back the latest change of MODEL's split or labels, whoever made it: a person, the
    registry, or a new version that took over.

    Versions that are not loaded any more are loaded first; the answer comes when they take the
    traffic. A second rollback takes the first one back.
    """
    from gateway.cli.client import GatewayClient
    from gateway.cli.split import show_split

    body = {} if to is None else {"to": to}
    with GatewayClient(url, token) as gateway:
        show_split(gateway.change(model, "rollback", message, body), as_json)
