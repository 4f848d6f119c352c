"""The gateway itself: its model directory, start and stop."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .models import Model
from .processes import Server, free_port, started, wait_models

NAME = "sluicegate"


def default_command() -> str:
    """The gateway of the Python that runs the comparison."""
    return shlex.join([sys.executable, "-m", "gateway", "serve"])


def write_directory(
    folder: Path, models: Sequence[Model], threads: int, instances: Mapping[str, int] | None = None
) -> list[str]:
    """The same files as Triton's; ``model.yaml`` holds the thread count and nothing else, but
    for models that ``instances`` names (model → batches at a time)."""
    for model in models:
        target = folder / model.name / "1"
        target.mkdir(parents=True)
        shutil.copy(model.path, target / "model.onnx")
        settings = f"options:\n  intra_op_threads: {threads}\n"
        if count := (instances or {}).get(model.name):
            settings = f"instances: {count}\n{settings}"
        (folder / model.name / "model.yaml").write_text(settings)
    return [model.name for model in models]


@contextmanager
def serve(
    command: str,
    directory: Path,
    work: Path,
    names: Sequence[str] = (),
    *,
    ready_timeout_s: float = 120.0,
    poll_s: float = 0.01,
    stop_grace_s: float = 12.0,
) -> Iterator[Server]:
    """A running gateway over ``directory`` in its default configuration.

    Only the addresses are given, and a state directory of its own, so that nothing that an
    earlier run left behind takes part.
    """
    work.mkdir(parents=True, exist_ok=True)
    http, grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    words = [*shlex.split(command), str(directory), "--http", http, "--grpc", grpc]
    with started(
        NAME,
        words,
        (http, grpc, http),
        work / "sluicegate.log",
        env={"XDG_STATE_HOME": str(work / "state")},
        ready_timeout_s=ready_timeout_s,
        poll_s=poll_s,
        stop_grace_s=stop_grace_s,
        stop_with=signal.SIGINT,  # as Ctrl-C: without the seconds for load balancers
    ) as server:
        wait_models(server, names)
        yield server
