"""From the SOURCE of ``sluice serve`` to a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.config import RegistryConfig
from gateway.errors import RegistryError
from gateway.registries.base import Registry
from gateway.registries.directory import DirectoryRegistry

FILES: Final = (".onnx", ".pt2", ".py")
"""Files that can be served by themselves: they have a signature (TorchScript has none)."""


def open_registry(source: str, config: RegistryConfig) -> Registry:
    """The registry for one source. Raises `RegistryError` for what cannot be one."""
    if "://" in source and not source.startswith("file://"):
        scheme = source.partition("://")[0]
        raise RegistryError(
            f"source '{source}': the scheme '{scheme}' is not supported; "
            "give a local directory of models"
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
    return DirectoryRegistry(path, config)
