"""Triton: tritonserver from nvidia-pytriton, with a Python model that calls onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.compare.peers import oip
from loadtests.compare.peers.base import Peer
from loadtests.compare.peers.launch import START_S

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One tritonserver, each model with one instance and with two, and dynamic batching."""
    from loadtests.compare import triton

    found = triton.find(environment)
    with triton.serve(found, models, work, threads, ready_timeout_s=START_S) as server:
        yield server


PEER = Peer(
    name="triton",
    routes=oip.ALL,
    best=("grpc",),
    variants=("_1x", "_2x"),
    serve=serve,
    packages=("nvidia-pytriton", "onnxruntime", "numpy"),
    counter=True,
)
