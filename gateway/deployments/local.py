"""``mlflow deployments run-local``: a gateway with one model, in the foreground."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from mlflow.exceptions import MlflowException

from gateway.deployments.settings import body_of, wrong

ADDRESSES: Final = ("http", "grpc")
TRUST: Final = "trust.code"


def run_local(
    name: str,
    model_uri: str,
    flavor: str | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """Serves the model until Ctrl-C or SIGTERM. Code in a path of this machine is trusted.

    Config: ``http`` and ``grpc`` (addresses), ``trust.code``, ``settings.KEY``. Raises
    `MlflowException`.
    """
    own = dict(config or {})
    flags: list[str] = []
    for key in ADDRESSES:
        if key in own:
            flags += [f"--{key}", str(own.pop(key))]
    trusted = str(own.pop(TRUST, ""))
    body = body_of(own, only=("settings",))
    with Stopping() as stopping, tempfile.TemporaryDirectory(prefix="sluice-local-") as folder:
        path = _prepare(Path(folder), name, model_uri, flavor or "", body.get("settings", {}))
        command = [sys.executable, "-m", "gateway", "serve", f"{folder}/models", "--strict"]
        command += ["--set", f"state_dir={folder}/state", *flags]
        if trusted:
            command += ["--set", f"{TRUST}={trusted}"]
        elif path:  # in a file, where a comma is part of a path
            Path(folder, "sluice.yaml").write_text(json.dumps({"trust": {"code": [path]}}))
            command += ["--config", f"{folder}/sluice.yaml"]
        code = stopping.run(command)
        if code:
            raise MlflowException(f"the gateway ended with exit code {code}; its log says why")


class Stopping:
    """Passes SIGTERM on to the gateway, so that neither it nor its folder is left behind.

    Before there is a gateway the signal ends the block with `SystemExit`. In a thread other than
    the main one no signals are heard.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _heard(self, number: int, frame: object) -> None:
        self._asked = True
        if self._process is not None:
            self._process.terminate()
        elif not self._starting:
            raise SystemExit(128 + number)

    def run(self, command: Sequence[str]) -> int:
        """The exit code of a command, 0 if it was stopped; it has ended, whatever ends this."""
        self._starting = True
        process = self._process = subprocess.Popen(command)
        if self._asked:
            process.terminate()
        try:
            try:
                code = process.wait()
            except KeyboardInterrupt:  # it had the same signal
                code = process.wait()
            return 0 if self._asked and code == -signal.SIGTERM else code
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _prepare(folder: Path, name: str, uri: str, flavor: str, settings: dict[str, Any]) -> str:
    """Writes the deployment that the gateway then finds; the model's path, if it is one here."""
    from gateway.config import Config
    from gateway.errors import SluiceError
    from gateway.registries.deployment_documents import Deployment, Version, check_name
    from gateway.registries.deployment_mlflow import MlflowUris
    from gateway.registries.deployment_sources import pinned
    from gateway.registries.deployments import FILE, DeploymentsRegistry
    from gateway.state import StateDir

    if ":" not in uri:
        uri = str(Path(uri).expanduser().absolute())
    in_mlflow = MlflowUris(Config())
    now = time.time()
    try:
        source = pinned(uri, in_mlflow.resolve, local=True)
        deployment = Deployment(
            name=check_name(name),
            versions={"1": Version(uri=uri, source=source, created=now)},
            settings=settings,
            traffic={"weights": {"1": 100}, "stable": "1"},
            flavor=flavor,
            created=now,
            updated=now,
        )
        deployment.model_settings()
        (folder / "models").mkdir()
        DeploymentsRegistry(StateDir(folder / "state"), in_mlflow.origin).put(deployment)
    except SluiceError as error:
        raise wrong(str(error)) from None
    return source.removeprefix(FILE) if source.startswith(FILE) else ""
