"""``mlflow deployments run-local``: a gateway with one model, in the foreground."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

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
    """Serves the model until Ctrl-C. Code in a path of this machine is trusted.

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
    with tempfile.TemporaryDirectory(prefix="sluice-local-") as folder:
        path = _prepare(Path(folder), name, model_uri, flavor or "", body.get("settings", {}))
        if path and not trusted:
            trusted = path
        command = [sys.executable, "-m", "gateway", "serve", f"{folder}/models", "--strict"]
        command += ["--set", f"state_dir={folder}/state", *flags]
        command += ["--set", f"{TRUST}={trusted}"] if trusted else []
        process = subprocess.Popen(command)
        try:
            code = process.wait()
        except KeyboardInterrupt:  # it had the same signal
            code = process.wait()
        if code:
            raise MlflowException(f"the gateway ended with exit code {code}; its log says why")


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
