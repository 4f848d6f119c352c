"""BentoML, with adaptive batching. See NOTES.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtests.compare.peers.base import Peer
from loadtests.compare.peers.launch import Launch, json_route, launched, raw_route

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

MAX_BATCH: Final = 64
MAX_LATENCY_MS: Final = 60_000
"""BentoML refuses requests (503) that it expects to take longer: its default."""
JSON: Final = json_route("/{}/json")
RAW: Final = raw_route("/{}/raw")


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One service, all models."""
    from loadtests.compare.processes import free_port
    from loadtests.kernel import cores

    port = free_port()
    settings = {
        "max_batch_size": MAX_BATCH,
        "max_latency_ms": MAX_LATENCY_MS,
        "workers": cores(),
    }
    command = [str(environment / "bin" / "bentoml"), "serve", "bento_models:service"]
    launch = Launch(
        label="bentoml",
        command=[*command, "--host", "127.0.0.1", "--port", str(port)],
        ready_path="/readyz",
        http=port,
        settings=settings,
        files={"bento_models.py": Path(__file__).with_name("serve.py")},
        route=RAW,
        env={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(work / "home")},
    )
    with launched(launch, models, work, threads) as server:
        yield server


PEER = Peer(
    name="bentoml",
    routes=(JSON, RAW),
    best=("native",),
    serve=serve,
    packages=("bentoml", "starlette", "uvicorn", "onnxruntime", "numpy"),
)
