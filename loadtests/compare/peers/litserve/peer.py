"""LitServe, with its own batching. See NOTES.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtests.compare.peers.base import HEAVY, Peer
from loadtests.compare.peers.launch import Launch, json_route, launched, raw_route

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

MAX_BATCH: Final = 64
BATCH_TIMEOUT_S: Final = 0.001
JSON: Final = json_route("/{}")
RAW: Final = raw_route("/{}")


@contextmanager
def serve(environment: Path, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """One server for one model."""
    from loadtests.compare.processes import free_port
    from loadtests.kernel import cores

    heavy = any(model.name in HEAVY for model in models)
    settings = {
        "max_batch_size": MAX_BATCH,
        "batch_timeout": BATCH_TIMEOUT_S,
        "workers_per_device": cores() if heavy else 1,
        "num_api_servers": 1 if heavy else cores(),
    }
    launch = Launch(
        label="litserve",
        command=[str(environment / "bin" / "python"), "litserve_models.py"],
        ready_path="/health",
        http=free_port(),
        settings=settings,
        files={"litserve_models.py": Path(__file__).with_name("serve.py")},
        route=RAW,
    )
    with launched(launch, models, work, threads) as server:
        yield server


PEER = Peer(
    name="litserve",
    routes=(JSON, RAW),
    best=("native",),
    serve=serve,
    packages=("litserve", "fastapi", "uvicorn", "onnxruntime", "numpy"),
    one_model=True,
)
