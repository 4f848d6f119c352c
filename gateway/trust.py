"""Whose artifacts may execute code: pure, but for resolving local paths."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gateway.errors import ModelLoadError


class Trust:
    """The sources in ``trust.code``: local directories and URIs, with all that is below them."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._folders: list[Path] = []
        self._uris: list[str] = []
        for source in sources:
            if "://" in source and not source.startswith("file://"):
                self._uris.append(source.rstrip("/"))
            else:
                self._folders.append(Path(source.removeprefix("file://")).expanduser().resolve())

    def covers(self, path: Path, source: str = "") -> bool:
        """Whether code at `path` may run; `source` is the URI that it was fetched from, if any.

        Links count as where they lead to: one out of a trusted directory is not trusted.
        """
        if source:
            return any(source == uri or source.startswith(f"{uri}/") for uri in self._uris)
        real = path.resolve()
        return any(real == folder or folder in real.parents for folder in self._folders)

    def check(self, what: str, path: Path, source: str = "") -> None:
        """Raises `ModelLoadError` unless code at `path` may run; `what` is the code."""
        if not self.covers(path, source):
            where = source or str(path.resolve().parent.parent)
            raise ModelLoadError(
                f"{what} executes code, and its source is not trusted; if you trust it, add it: "
                f"trust.code: ['{where}'] (or SLUICE_TRUST__CODE={where})"
            )
