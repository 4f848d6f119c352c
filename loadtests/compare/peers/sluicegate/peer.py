"""This gateway, in its default configuration but for an instance a core of the heavy models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.compare.peers import OURS, oip
from loadtests.compare.peers.base import HEAVY, Peer, Route
from loadtests.compare.peers.launch import START_S
from loadtests.compare.peers.mlflow import peer as mlflow
from loadtests.compare.wire import HttpRequest, Rows

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server


@contextmanager
def serve(
    environment: Path, models: Sequence[Model], work: Path, threads: int, command: str = ""
) -> Iterator[Server]:
    """The gateway over a directory of the models; ``command`` starts another one."""
    from loadtests.compare import sluice
    from loadtests.kernel import cores

    directory = work / "models"
    instances = dict.fromkeys(HEAVY, cores())
    names = sluice.write_directory(directory, models, threads, instances)
    command = command or f"{environment}/bin/python -m gateway serve"
    with sluice.serve(command, directory, work, names, ready_timeout_s=START_S) as server:
        yield server


def invocations(model: str, rows: Rows) -> HttpRequest:
    """The body that MLflow's server gets, at the path that names the model."""
    return replace(mlflow.encode(model, rows), path=f"/models/{model}/invocations")


PEER = Peer(
    name=OURS,
    routes=(*oip.ALL, Route("invocations", invocations, mlflow.decode)),
    best=("grpc", "binary", "invocations"),
    serve=serve,
    packages=("sluicegate", "onnxruntime", "numpy"),
    counter=True,
)


def with_command(command: str) -> Peer:
    """The gateway as ``command`` starts it; what that is, only the running one can say."""
    from loadtests.compare import sluice

    if command == sluice.default_command():
        return PEER
    return replace(PEER, serve=partial(serve, command=command), packages=())
