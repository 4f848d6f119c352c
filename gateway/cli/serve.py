"""``sluice serve``: the gateway itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


@click.command(short_help="Serve models until Ctrl-C or SIGTERM.")
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option("--http", metavar="HOST:PORT", help="HTTP port; 127.0.0.1:8080 unless configured.")
@click.option("--grpc", metavar="HOST:PORT", help="gRPC port; 127.0.0.1:8081 unless configured.")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="YAML configuration."
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where fetched files, history and the like are kept.",
)
@click.option(
    "--grpc-server",
    type=click.Choice(["auto", "native", "grpcio"]),
    help="Which server carries unary gRPC calls.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Least severe log line to write.",
)
@click.option("--strict", is_flag=True, help="A model that fails to load ends the start, with 4.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any configuration key, such as drain.grace=3; may be repeated.",
)
def serve(
    sources: tuple[str, ...],
    http: str | None,
    grpc: str | None,
    file: Path | None,
    state_dir: Path | None,
    grpc_server: str | None,
    log_level: str | None,
    strict: bool,
    settings: tuple[str, ...],
) -> int:
    """Serve the models of each SOURCE until Ctrl-C or SIGTERM.

    A SOURCE is a directory of models (<model>/<version>/model.onnx), one model's folder, a
    single .onnx, .pt2 or .py file, an MLflow registry (mlflow+http://HOST:PORT,
    models:/NAME@ALIAS), or a bucket, hub or web server with such a directory (s3://, gs://,
    az://, hf://, oci://, https://). Port 0 picks a free port and prints it.

    Ctrl-C stops when the requests in flight are answered; SIGTERM waits drain.grace seconds
    first. A second signal cuts that grace short, or stops at once.
    """
    from msgspec.structs import replace

    from gateway.cli.options import parse_settings
    from gateway.config import TrustConfig, load_config
    from gateway.trust import local_sources

    flags: dict[str, Any] = parse_settings(settings)
    named = {
        "sources": sources,
        "http.address": http,
        "grpc.address": grpc,
        "grpc.server": grpc_server,
        "state_dir": str(state_dir) if state_dir is not None else None,
        "telemetry.log_level": log_level,
        "strict": strict,
    }
    flags.update({key: value for key, value in named.items() if value})
    config, origin = load_config(file, flags)
    if config.trust.code is None and origin.get("sources") == "command line":
        config = replace(config, trust=TrustConfig(code=local_sources(config.sources)))
    if not config.sources:
        raise click.UsageError("give a SOURCE, such as examples/models")

    # grpcio's C++ core writes lines of its own; what matters comes back as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from gateway.cli.serving import run

    return run(config)
