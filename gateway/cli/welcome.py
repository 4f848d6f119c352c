"""What `sluice serve` tells a person when the models are loaded."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli.examples import Example, curl_line, infer_line, python_line
from gateway.cli.tables import print_start
from gateway.errors import ModelNotReady
from gateway.facts import tensor_json

if TYPE_CHECKING:
    from gateway.app import Gateway

MOST_MODELS: Final = 30
"""With more models than this only their number, and those that failed, are printed."""


def welcome(gateway: Gateway) -> None:
    """Prints models, addresses, and lines to paste."""
    names = gateway.facts.names()
    models = [gateway.facts.status(name) for name in names]
    click.echo()
    if len(models) > MOST_MODELS:
        ready = sum(model["state"] == "ready" for model in models)
        click.echo(f"{len(models)} models, {ready} ready; 'sluice models' lists them")
        models = [model for model in models if model["state"] != "ready"][:MOST_MODELS]
    if models:
        print_start(models)
    else:
        click.echo("no models yet; one is <model>/<version>/model.onnx in the directory")
    click.echo()
    print_addresses(gateway)
    lines = paste_lines(gateway)
    if lines:
        click.echo()
        click.echo("Try it:")
        for line in lines:
            click.echo(f"  {line}")
    click.echo()
    sys.stdout.flush()


def print_addresses(gateway: Gateway) -> None:
    """Where the gateway listens, one line each."""
    where = gateway.addresses()
    carrier = {"native": "unary calls by pygrpc-native", "grpcio": "all calls by grpcio"}
    why = f"{carrier[gateway.grpc_server]}: {gateway.grpc_why}"
    click.echo(f"HTTP      {where['http']}")
    click.echo(f"gRPC      {where['grpc']}  ({why})")
    click.echo(f"Metrics   {where['metrics']}")
    click.echo(f"API docs  {where['http']}/docs")


def paste_lines(gateway: Gateway) -> list[str]:
    """A `sluice infer` line where a picture is at hand, a curl line and a Python line."""
    http = gateway.addresses()["http"]
    lines = []
    picture = Path("examples/images/digit-5-9.png")
    ready = gateway.facts.model_names()
    if "digits" in ready and picture.is_file() and not gateway.config.admin.token:
        lines.append(infer_line("digits", picture, http))
    example = smallest_example(gateway, ready)
    if example is not None:
        lines.append(curl_line(example, http))
        lines.append(python_line(example, http, triton=find_spec("tritonclient") is not None))
    return lines


def smallest_example(gateway: Gateway, ready: list[str]) -> Example | None:
    """A request to the ready model that takes the fewest values."""
    found = []
    for name in ready[:MOST_MODELS]:
        try:
            if gateway.facts.servable(name).decoupled:
                continue  # these lines ask for one answer
        except ModelNotReady:
            continue  # loaded on demand: nobody knows yet what it takes
        metadata = gateway.facts.metadata(name)
        inputs = tuple(tensor_json(spec) for spec in metadata.inputs if not spec.optional)
        example = Example(name, inputs, metadata.outputs[0].name if metadata.outputs else "")
        if example.printable:
            found.append(example)
    return min(found, key=lambda example: example.size, default=None)
