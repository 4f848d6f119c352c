"""From the SOURCE of ``sluice serve`` to a registry."""

from __future__ import annotations

from pathlib import Path

from gateway.config import RegistryConfig
from gateway.errors import RegistryError
from gateway.registries.base import Registry
from gateway.registries.directory import DirectoryRegistry


def open_registry(source: str, config: RegistryConfig) -> Registry:
    """The registry for one source. Raises `RegistryError` for what cannot be one."""
    if "://" in source and not source.startswith("file://"):
        scheme = source.partition("://")[0]
        raise RegistryError(
            f"source '{source}': the scheme '{scheme}' is not supported; "
            "give a local directory of models"
        )
    path = Path(source.removeprefix("file://")).expanduser()
    if not path.exists():
        raise RegistryError(
            f"source '{source}' does not exist; give a directory that holds "
            "<model>/<version>/model.onnx, one model's folder, or an .onnx file"
        )
    if path.is_file() and path.suffix != ".onnx":
        raise RegistryError(f"source '{source}' is a file, but not an .onnx model")
    return DirectoryRegistry(path, config)
