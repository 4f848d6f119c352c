"""From the SOURCE of ``sluice serve`` to a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.config import Config
from gateway.errors import RegistryError
from gateway.registries.base import Registry
from gateway.registries.directory import DirectoryRegistry
from gateway.state import StateDir

FILES: Final = (".onnx", ".pt2", ".py")
"""Files that can be served by themselves: they have a signature (TorchScript has none)."""


STORES: Final = ("s3", "gs", "az", "hf", "http", "https", "oci")
"""Schemes of sources that are object stores, or files on a web server."""
OTHER_NAMES: Final = ("s3a", "abfs", "abfss", "wasb", "wasbs", "oci+http")
"""Other tools' names for them."""


def open_registry(source: str, config: Config, state: StateDir | None = None) -> Registry:
    """The registry for one source; without `state` it remembers and overlays nothing.

    Raises `RegistryError` for what cannot be one.
    """
    scheme = source.partition(":")[0] if ":" in source else ""
    if scheme == "models" or scheme.startswith("mlflow"):
        from gateway.registries.mlflow.registry import MlflowRegistry

        return MlflowRegistry(source, config, state)
    if "://" in source and scheme in (*STORES, *OTHER_NAMES):
        from gateway.registries.stores import StoreRegistry

        return StoreRegistry(source, config, state)
    if "://" in source and scheme != "file":
        raise RegistryError(
            f"source '{source}': the scheme '{scheme}' is not known; give a directory of models, "
            f"mlflow+http://HOST:PORT, or one of {', '.join(f'{name}://' for name in STORES)}"
        )
    if not source.strip().removeprefix("file://"):
        raise RegistryError(
            f"source '{source}' names no directory; give its path, '.' for the working directory"
        )
    path = Path(source.removeprefix("file://")).expanduser()
    if not path.exists():
        raise RegistryError(
            f"source '{source}' does not exist; give a directory that holds "
            "<model>/<version>/model.onnx, one model's folder, or a model's file"
        )
    if path.is_file() and path.suffix not in FILES:
        raise RegistryError(
            f"source '{source}' is a file, but no model that says all by itself: "
            f"{', '.join(FILES)}; put it into a directory <model>/1/, with a model.yaml beside"
        )
    return DirectoryRegistry(path, config.registry, state=state)
