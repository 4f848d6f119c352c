"""tritonserver 2.51.0 (nvidia-pytriton, Python backend): its repository, start and stop.

One server holds every model twice: ``add_1x`` with one instance and ``add_2x`` with two, so
that the better of the two can count, cell by cell.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.errors import BenchError

from .models import Model
from .processes import Server, free_port, started, wait_models

NAME = "tritonserver 2.51.0 (nvidia-pytriton, Python backend)"
MAX_BATCH = 64
BOTH = (1, 2)
"""Instances of a model: the better of the two counts."""

CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {max_batch}
input [{{ name: "x", data_type: TYPE_{datatype}, dims: [{dims_in}] }}]
output [{{ name: "y", data_type: TYPE_FP32, dims: [{dims_out}] }}]
instance_group [{{ count: {instances}, kind: KIND_CPU }}]
dynamic_batching {{ }}
parameters [{{ key: "path", value: {{ string_value: "{path}" }} }}]
parameters [{{ key: "threads", value: {{ string_value: "{threads}" }} }}]
"""

BACKEND_MODEL = '''\
"""All requests of a batch in one onnxruntime call, then each its own rows."""
import json

import numpy
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            parameters["path"]["string_value"],
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )

    def execute(self, requests):
        rows = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        joined = rows[0] if len(rows) == 1 else numpy.concatenate(rows)
        (y,) = self.session.run(["y"], {"x": joined})
        answers, start = [], 0
        for part in rows:
            end = start + len(part)
            tensor = pb_utils.Tensor("y", y[start:end])
            answers.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
            start = end
        return answers
'''

_ASK = """\
import importlib.metadata, json, sys, sysconfig
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
print(json.dumps({
    "site": sysconfig.get_paths()["purelib"],
    "libdir": sysconfig.get_config_var("LIBDIR"),
    "python": "%d.%d" % sys.version_info[:2],
    "versions": {n: version(n) for n in ("nvidia-pytriton", "onnxruntime", "numpy")},
}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with nvidia-pytriton in it."""

    folder: Path
    site: Path
    libdir: str
    python: str
    versions: dict[str, str | None]

    @property
    def server(self) -> Path:
        """The folder with ``bin``, ``backends`` and the stubs."""
        return self.site / "pytriton" / "tritonserver"

    def variables(self) -> dict[str, str]:
        """What the server and its Python backend need to find.

        The backend's stub ignores ``PYTHONPATH``; it takes the packages of the environment whose
        ``python3`` comes first in ``PATH``.
        """
        libraries = [str(self.site / "nvidia_pytriton.libs"), self.libdir]
        return {
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
            "PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        }


def find(venv: Path | None) -> Environment:
    """The environment in ``venv``, or an error that says how to make one."""
    make = "make one with: python -m loadtests.compare.triton_env DIR"
    if venv is None:
        raise BenchError(
            f"no Triton environment: give --triton-venv DIR or set TRITON_VENV ({make}), "
            "or run with --only sluicegate"
        )
    python = venv / "bin" / "python"
    if not python.exists():
        raise BenchError(f"{venv} is not a virtual environment; {make}")
    said = subprocess.run(
        [str(python), "-c", _ASK], capture_output=True, text=True, timeout=30, check=True
    )
    facts = json.loads(said.stdout)
    found = Environment(
        folder=venv,
        site=Path(facts["site"]),
        libdir=facts["libdir"] or "",
        python=facts["python"],
        versions=facts["versions"],
    )
    if not (found.server / "bin" / "tritonserver").exists():
        raise BenchError(f"{venv} holds no tritonserver; {make}")
    return found


def copy_backend(env: Environment, folder: Path) -> None:
    """The Python backend, with the stub of the environment's own Python beside it."""
    target = folder / "python"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(env.server / "backends" / "python" / name, target)
    stub = env.server / "python_backend_stubs" / env.python / "triton_python_backend_stub"
    if not stub.exists():
        raise BenchError(f"nvidia-pytriton has no backend stub for Python {env.python}")
    shutil.copy(stub, target)


def write_repository(
    folder: Path, models: Sequence[Model], threads: int, counts: Sequence[int] = BOTH
) -> list[str]:
    """Each model once for each number of instances; returns the names."""
    names = []
    for model in models:
        for instances in counts:
            name = f"{model.name}_{instances}x"
            (folder / name / "1").mkdir(parents=True)
            (folder / name / "1" / "model.py").write_text(BACKEND_MODEL)
            text = CONFIG.format(
                name=name,
                max_batch=MAX_BATCH,
                datatype=model.datatype,
                dims_in=", ".join(map(str, model.row_shape)),
                dims_out=", ".join(map(str, model.output_shape)),
                instances=instances,
                path=model.path,
                threads=threads,
            )
            (folder / name / "config.pbtxt").write_text(text)
            names.append(name)
    return names


@contextmanager
def serve(
    env: Environment,
    models: Sequence[Model],
    work: Path,
    threads: int,
    instances: Sequence[int] = BOTH,
    ready_timeout_s: float = 120.0,
) -> Iterator[Server]:
    """A running tritonserver that holds all models, once for each number of instances."""
    names = write_repository(work / "repository", models, threads, instances)
    copy_backend(env, work / "backends")
    http, grpc, metrics = free_port(), free_port(), free_port()
    shared = f"compare{os.getpid()}_"
    command = [
        str(env.server / "bin" / "tritonserver"),
        f"--model-repository={work / 'repository'}",
        f"--backend-directory={work / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={shared}",
        "--http-address=127.0.0.1",
        f"--http-port={http}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics}",
    ]

    def sweep() -> None:
        for left in Path("/dev/shm").glob(f"{shared}*"):
            left.unlink(missing_ok=True)

    addresses = (f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"127.0.0.1:{metrics}")
    log = work / "triton.log"
    with started(
        "triton",
        command,
        addresses,
        log,
        env=env.variables(),
        after=sweep,
        ready_timeout_s=ready_timeout_s,
    ) as server:
        wait_models(server, names, ready_timeout_s)
        yield server
