"""``sluice log``: why a version is in the state that it is in."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.options import json_option, url_options


@click.command(short_help="Show what happened when a version was loaded.")
@click.argument("model")
@click.argument("version", required=False)
@url_options
@json_option
def log(model: str, version: str | None, url: str, token: str, as_json: bool) -> None:
    """Show what happened in the last loads of a VERSION of MODEL: states, messages of the
    runtime, and of a failure the whole traceback.

    Without VERSION it is the one that has failed, else the newest.
    """
    from gateway.cli.client import GatewayClient
    from gateway.cli.exits import Failure
    from gateway.cli.output import print_json

    with GatewayClient(url, token) as gateway:
        if version is None:
            status = gateway.model(model)
            version = telling(status["versions"])
            if version is None:
                raise Failure(
                    f"model '{model}' has no version: {status['error'] or 'none is there'}"
                )
        text = gateway.log(model, version)
    if as_json:
        print_json({"model": model, "version": version, "log": text})
    else:
        click.echo(
            text or f"{model}/{version} was not loaded since the gateway started", nl=not text
        )


def telling(versions: list[dict[str, Any]]) -> str | None:
    """The version that a person will want to know of: they are oldest first."""
    failed = [each for each in versions if each["state"] == "failed"]
    chosen = failed or versions
    return str(chosen[-1]["version"]) if chosen else None
