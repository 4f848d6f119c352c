"""``sluice split``: who gets how much of a model's traffic."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.options import json_option, message_option, url_options


@click.command(short_help="Split a model's traffic over versions.")
@click.argument("model")
@click.argument("weights", nargs=-1, required=True, metavar="VERSION=WEIGHT...")
@click.option("--stable", metavar="VERSION", help="Takes the share of versions not ready.")
@message_option
@url_options
@json_option
def split(
    model: str,
    weights: tuple[str, ...],
    stable: str | None,
    message: str,
    url: str,
    token: str,
    as_json: bool,
) -> None:
    """Split MODEL's traffic over versions, such as 1=90 2=10.

    Weights are relative; a version that is not named gets nothing. The split is stored where the
    model comes from: in its traffic.yaml, in its registry, or, where that cannot be written, in
    the gateway's state directory. Without --stable the stable version stays, or is the heaviest.
    """
    from gateway.cli.client import GatewayClient

    body: dict[str, Any] = {"weights": parse_weights(weights)}
    if stable is not None:
        body["stable"] = stable
    with GatewayClient(url, token) as gateway:
        show_split(gateway.change(model, "split", message, body, method="PUT"), as_json)


def parse_weights(words: tuple[str, ...]) -> dict[str, float]:
    """``("1=90", "2=10")`` as a mapping. Raises `click.BadParameter`."""
    weights: dict[str, float] = {}
    for word in words:
        version, equals, text = word.partition("=")
        try:
            weight = float(text.removesuffix("%"))
        except ValueError:
            weight = -1.0
        if not equals or not version or not 0 <= weight <= 1e9:
            raise click.BadParameter(f"'{word}' must be VERSION=WEIGHT, such as 1=90")
        if version in weights:
            raise click.BadParameter(f"version {version} is given twice")
        weights[version] = int(weight) if weight.is_integer() else weight
    return weights


def show_split(model: dict[str, Any], as_json: bool) -> None:
    """The traffic that a model has now."""
    from gateway.cli.output import number, print_json
    from gateway.cli.tables import print_running

    if as_json:
        print_json(model)
        return
    print_running([model])
    states = {version["version"]: version["state"] for version in model["versions"]}
    if model["state"] == "unloaded":
        return
    for version, weight in model["weights"].items():
        if weight and states.get(version) != "ready":
            click.echo(
                f"version {version} is {states.get(version, 'not loaded yet')}: its weight "
                f"{number(weight)} goes to {model['stable'] or 'others'} until it is ready"
            )
