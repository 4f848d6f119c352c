"""``sluice label`` and ``sluice labels``: words that stand for versions."""

from __future__ import annotations

import click

from gateway.cli.options import json_option, message_option, url_options


@click.command(short_help="Set or take away labels of a model's versions.")
@click.argument("model")
@click.argument("changes", nargs=-1, required=True, metavar="LABEL=VERSION...")
@message_option
@url_options
@json_option
def label(
    model: str, changes: tuple[str, ...], message: str, url: str, token: str, as_json: bool
) -> None:
    """Let words stand for versions of MODEL, such as blue=2; `blue=` takes the label away.

    Requests may name a label in the place of a version. Other labels stay.
    """
    from gateway.cli.client import GatewayClient

    with GatewayClient(url, token) as gateway:
        body = {"labels": parse_labels(changes)}
        show(gateway.change(model, "labels", message, body, method="PATCH"), as_json)


@click.command(short_help="List the labels of a model's versions.")
@click.argument("model")
@url_options
@json_option
def labels(model: str, url: str, token: str, as_json: bool) -> None:
    """List the labels of MODEL; stable and canary come from its split."""
    from gateway.cli.client import GatewayClient

    with GatewayClient(url, token) as gateway:
        show(gateway.model(model), as_json)


def parse_labels(words: tuple[str, ...]) -> dict[str, str | None]:
    """``("blue=2", "green=")`` as a mapping; `None` takes away. Raises `click.BadParameter`."""
    found: dict[str, str | None] = {}
    for word in words:
        name, equals, version = word.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{word}' must be LABEL=VERSION, such as blue=2")
        if name in found:
            raise click.BadParameter(f"label {name} is given twice")
        found[name] = version or None
    return found


def show(model: dict[str, dict[str, str]], as_json: bool) -> None:
    from gateway.cli.output import Column, print_json, print_table

    found = model["labels"]
    if as_json:
        print_json({"labels": found})
    elif found:
        print_table((Column("LABEL"), Column("VERSION")), sorted(found.items()))
    else:
        click.echo("no labels")
