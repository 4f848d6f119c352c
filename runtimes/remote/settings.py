"""Which server runs a version: its own ``remote.yaml``, or ``remote`` in ``model.yaml``."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from gateway.model_settings import RemoteSettings
from gateway.remote_document import REMOTE_RUNTIMES, REMOTE_YAML, check, read_remote_yaml
from runtimes.interface import Artifact


def remote_of(artifact: Artifact) -> tuple[str, RemoteSettings] | None:
    """The runtime (``oip`` or ``triton``) and settings of a version that is on another server.

    `None` for one that is not: there is no ``remote.yaml``, and either no ``remote`` in the
    model's settings or files of the version's own. ``ca_file`` comes out as a whole path; it
    is written relative to the document's folder. Raises `InvalidModelSettings`.
    """
    document = artifact.path / REMOTE_YAML
    if document.is_file():
        own = read_remote_yaml(document, f"{artifact.model}/{artifact.version}/{REMOTE_YAML}")
        return own.runtime, _located(own, artifact.path)
    remote = artifact.settings.remote
    if remote is None or _has_files(artifact.path):
        return None
    check(remote, f"{artifact.model}: remote")
    runtime = artifact.settings.runtime
    named = runtime if runtime in REMOTE_RUNTIMES else REMOTE_RUNTIMES[0]
    return named, _located(remote, artifact.path.parent)


def runtime_of(artifact: Artifact) -> str | None:
    """The runtime that the documents name for this version; `None` = whichever can load it."""
    runtime = artifact.settings.runtime
    if artifact.settings.remote is None and not (artifact.path / REMOTE_YAML).is_file():
        return runtime
    remote = remote_of(artifact)
    if remote is not None:
        return remote[0]
    # The model is on another server, but this version has files of its own.
    return None if runtime in REMOTE_RUNTIMES else runtime


def _located(settings: RemoteSettings, folder: Path) -> RemoteSettings:
    if settings.ca_file is None:
        return settings
    return msgspec.structs.replace(settings, ca_file=str(folder / settings.ca_file))


def _has_files(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(not entry.name.startswith(".") for entry in entries)
    except OSError:
        return False
