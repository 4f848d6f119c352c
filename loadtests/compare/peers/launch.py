"""What the servers with a handler of our own share: routes, settings, start, and a clean end.

Their side of it is ``onnx_serving.py``, which is copied to the folder that a server works in.
"""

from __future__ import annotations

import http.client
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from loadtests.compare import wire
from loadtests.compare.peers.base import Route
from loadtests.compare.peers.oip import http_answer
from loadtests.compare.wire import Floats, HttpRequest, Rows
from loadtests.errors import BenchError

if TYPE_CHECKING:
    from loadtests.compare.models import Model
    from loadtests.compare.processes import Server

HERE: Final = Path(__file__).parent
SETTINGS: Final = "PEER_SETTINGS"
SHAPE_HEADER: Final = "x-shape"
RAW: Final = "application/octet-stream"
SOCKET_FOLDER: Final = 40
"""Longest path that still leaves room for the names of a server's Unix sockets (107 in all)."""
START_S: Final = 90.0
"""Until a server is ready and each of its models has answered."""


def json_route(path: str) -> Route:
    """Open Inference Protocol JSON at a path of the server's own; ``{}`` in it is the model."""

    def encode(model: str, rows: Rows) -> HttpRequest:
        return replace(wire.json_request(model, rows), path=path.format(model))

    return Route("json", encode, http_answer)


def raw_route(path: str) -> Route:
    """Rows as nothing but their bytes; the shape of the answer is in a header."""

    def encode(model: str, rows: Rows) -> HttpRequest:
        return HttpRequest(path.format(model), rows.tobytes(), {"Content-Type": RAW})

    return Route("native", encode, raw_answer, like="binary")


def raw_answer(body: bytes, headers: Mapping[str, str]) -> Floats:
    """Raw FP32 values in the shape that the header names."""
    shape = headers.get(SHAPE_HEADER, "")
    try:
        return np.frombuffer(body, np.float32).reshape([int(size) for size in shape.split(",")])
    except ValueError as error:
        raise ValueError(f"{len(body)} bytes with {SHAPE_HEADER}: {shape!r}: {error}") from None


@dataclass(frozen=True)
class Launch:
    """How one of these servers is started."""

    label: str
    command: Sequence[str]
    ready_path: str
    http: int
    """Port."""
    settings: Mapping[str, Any]
    """What its handler is told beside the port, the models and the threads."""
    files: Mapping[str, Path]
    """Name in the folder that it works in → what is copied there."""
    route: Route | None
    """By which each model is asked, until it answers; ``None``: ``/v2/models/MODEL/ready`` says."""
    grpc: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    stop_grace_s: float = 15.0


@contextmanager
def launched(launch: Launch, models: Sequence[Model], work: Path, threads: int) -> Iterator[Server]:
    """The running server, once each model has answered. ``threads``: of each onnxruntime session.

    Afterwards nothing of it is left, also of processes that went to a session of their own.
    Raises `BenchError` if that takes longer than `START_S`.
    """
    from loadtests.compare.processes import started, wait_models

    until = time.perf_counter() + START_S
    for name, source in {"onnx_serving.py": HERE / "onnx_serving.py", **launch.files}.items():
        shutil.copy(source, work / name)
    settings = work / "peer.json"
    usual = {
        "port": launch.http,
        "models": {model.name: str(model.path) for model in models},
        "threads": threads,
    }
    settings.write_text(json.dumps({**usual, **launch.settings}))
    address = f"127.0.0.1:{launch.http}"
    with started(
        launch.label,
        launch.command,
        (address, f"127.0.0.1:{launch.grpc}", address),
        work / f"{launch.label}.log",
        env={SETTINGS: str(settings), "PYTHONPATH": str(work), "TMPDIR": str(work), **launch.env},
        ready_path=launch.ready_path,
        ready_timeout_s=START_S,
        poll_s=0.05,
        stop_grace_s=launch.stop_grace_s,
        cwd=work,
    ) as server:
        if launch.route is None:
            wait_models(server, [model.name for model in models], until - time.perf_counter())
        else:
            for model in models:
                wait_answer(server, launch.route, model, until)
        yield server


def wait_answer(server: Server, route: Route, model: Model, until: float) -> None:
    """Returns once the model answers a row of zeros. Raises `BenchError` if it does not ``until``
    then (`time.perf_counter`)."""
    shape = (1, *model.row_shape)
    whole = model.datatype == "INT64"
    rows: Rows = np.zeros(shape, np.int64) if whole else np.zeros(shape, np.float32)
    request = route.encode(model.name, rows)
    said = "nothing"
    while server.process.poll() is None and time.perf_counter() < until:
        connection = http.client.HTTPConnection(
            server.http, timeout=max(1.0, until - time.perf_counter())
        )
        try:
            connection.request("POST", request.path, request.body, request.headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                return
            said = f"HTTP {answer.status}: {body[:200]!r}"
        except (OSError, http.client.HTTPException) as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        time.sleep(0.1)
    raise BenchError(f"{server.label}: model {model.name} does not answer ({said})")


@contextmanager
def socket_folder(work: Path) -> Iterator[Path]:
    """A folder for Unix sockets: in ``work``, or a short-lived one where that path is too long."""
    near = work / "s"
    if len(str(near)) <= SOCKET_FOLDER:
        near.mkdir()
        yield near
        return
    with tempfile.TemporaryDirectory(prefix="peer", ignore_cleanup_errors=True) as short:
        yield Path(short)
