"""Triton: tritonserver from nvidia-pytriton, with a Python model that calls onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.compare.peers import oip
from loadtests.compare.peers.base import Peer

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One tritonserver, each model with two instances and dynamic batching."""
    from loadtests.compare import triton

    found = triton.find(environment)
    with triton.serve(found, models, work, threads, instances=(2,)) as server:
        server.models = {model.name: f"{model.name}_2x" for model in models}
        yield server


PEER = Peer(
    name="triton",
    routes=oip.ALL,
    serve=serve,
    packages=("nvidia-pytriton", "onnxruntime", "numpy"),
    counter=True,
)
