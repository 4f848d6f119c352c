"""MLflow's own scoring server with any number of models, in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.environments import environment, python

SERVE = """
import socket, sys, warnings
warnings.simplefilter("ignore")
import uvicorn
from mlflow.pyfunc import load_model, scoring_server
from starlette.applications import Starlette
from starlette.routing import Mount
pairs = [each.split("=", 1) for each in sys.argv[1:]]
mounts = [Mount("/" + n, app=scoring_server.init(load_model(p))) for n, p in pairs]
listener = socket.create_server(("127.0.0.1", 0))
print("port", listener.getsockname()[1], flush=True)
config = uvicorn.Config(Starlette(routes=mounts), log_level="critical")
uvicorn.Server(config).run(sockets=[listener])
"""


class ScoringServer:
    """``mlflow models serve`` below ``/<name>`` for each of `models` (name → folder)."""

    def __init__(self, folder: Path, models: Mapping[str, Path]) -> None:
        command = [str(python(environment("mlflow"))), "-c", SERVE]
        command += [f"{name}={path}" for name, path in models.items()]
        self._log = (folder / "scoring.log").open("wb+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, cwd=folder
        )
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                word, _, port = line.decode().partition(" ")
                if word == "port":
                    self.url = f"http://127.0.0.1:{int(port)}"
                    return
            self._log.seek(0)
            raise AssertionError(f"the scoring server ended:\n{self._log.read().decode()}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
