"""``sluice config``: the configuration as it is put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli.options import json_option


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="YAML configuration."
)
@click.option("--origin", is_flag=True, help="Say for each key where its value comes from.")
@json_option
def show(file: Path | None, origin: bool, as_json: bool) -> None:
    """Print every key with its value, from FILE and the environment, as YAML.

    Wrong and unknown keys are refused, so this checks a FILE too. A token is not printed.
    """
    from gateway.cli.output import Column, print_json, print_table
    from gateway.config import load_config

    loaded, origins = load_config(file)
    flat = values(loaded)
    if origin:
        rows = [(key, value, origins.get(key, "default")) for key, value in flat.items()]
        if as_json:
            print_json({key: {"value": value, "origin": where} for key, value, where in rows})
        else:
            columns = [Column("KEY"), Column("VALUE"), Column("ORIGIN")]
            print_table(columns, [[key, yaml_value(value), where] for key, value, where in rows])
    elif as_json:
        print_json(nested(flat))
    else:
        import yaml

        click.echo(yaml.safe_dump(nested(flat), sort_keys=False), nl=False)


def values(loaded: Any) -> dict[str, Any]:
    """Dotted keys to values, without secrets."""
    import msgspec

    from gateway.config import flatten
    from gateway.registries.mlflow.uri import shown

    flat = flatten(msgspec.to_builtins(loaded))
    for key, value in flat.items():
        if isinstance(value, tuple):
            flat[key] = list(value)
    flat["sources"] = [shown(source) for source in flat["sources"]]
    for key in SECRETS:
        if flat[key]:
            flat[key] = "***"
    return flat


SECRETS = ("admin.token", "control.token", "mlflow.webhook_secret")


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    from gateway.config import put

    tree: dict[str, Any] = {}
    for key, value in flat.items():
        put(tree, key, value)
    return tree


def yaml_value(value: Any) -> str:
    """A value as in a YAML file."""
    import json

    return json.dumps(value) if value == "" or not isinstance(value, str) else value
