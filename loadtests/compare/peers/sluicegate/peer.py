"""This gateway, in its default configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.compare.peers import OURS, oip
from loadtests.compare.peers.base import Peer

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server


@contextmanager
def serve(
    environment: Path, models: Sequence[Model], work: Path, threads: int, command: str = ""
) -> Iterator[Server]:
    """The gateway over a directory of the models; ``command`` starts another one."""
    from loadtests.compare import sluice

    directory = work / "models"
    names = sluice.write_directory(directory, models, threads)
    command = command or f"{environment}/bin/python -m gateway serve"
    with sluice.serve(command, directory, work, names) as server:
        yield server


PEER = Peer(
    name=OURS,
    routes=oip.ALL,
    serve=serve,
    packages=("sluicegate", "onnxruntime", "numpy"),
    counter=True,
)


def with_command(command: str) -> Peer:
    """The gateway as ``command`` starts it."""
    return replace(PEER, serve=partial(serve, command=command))
