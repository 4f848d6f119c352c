"""Whose artifacts may execute code: pure, but for resolving local paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from gateway.errors import ModelLoadError, printable

MOST_LINKS: Final = 10_000
"""Files of a version that are looked at; one with more is refused."""


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
        """Raises `ModelLoadError` unless code in the version's folder `path` may run.

        `what` is the code. Every link in the folder must lead to where code is trusted too.
        """
        if not source and (path / what).resolve() in self._folders:
            return  # the file itself was named
        if not self.covers(path, source):
            raise ModelLoadError(self._refusal(what, source or place_of(path)))
        if source:
            # What was fetched lies in a folder of ours, and may not point out of it.
            own = path.resolve()
            for link, target in links(path):
                if target != own and own not in target.parents:
                    raise ModelLoadError(
                        f"{what} executes code, and '{link}' beside it is a link out of its folder"
                    )
            return
        for link, target in links(path):
            if not self.covers(target):
                raise ModelLoadError(
                    f"{what} executes code, and '{link}' is a link out of the trusted directory; "
                    f"put the file itself there, or {self._add(str(target.parent))}"
                )

    def _refusal(self, what: str, where: str) -> str:
        return (
            f"{what} executes code, and its source is not trusted; if you trust it, "
            + self._add(where)
        )

    def _add(self, where: str) -> str:
        """How to trust one more source, beside those that are trusted already."""
        known = [*map(str, self._folders), *self._uris]
        everything = [*known, where]
        listed = ", ".join(f"'{each}'" for each in everything)
        return (
            f"set trust.code: [{listed}] in the configuration file "
            f"(or SLUICE_TRUST__CODE='{','.join(everything)}')"
        )


def place_of(path: Path) -> str:
    """The directory to trust for a version's folder, ``<models>/<model>/1``: that of the models."""
    return str(path.resolve().parent.parent)


def links(folder: Path) -> Iterator[tuple[str, Path]]:
    """The symbolic links below a folder (itself aside): name and where it leads.

    Raises `ModelLoadError` for a folder with too many files to look at.
    """
    count = 0
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            count += 1
            if count > MOST_LINKS:
                raise ModelLoadError(
                    f"the version holds more than {MOST_LINKS} files; too many for code"
                )
            path = Path(at, name)
            if path.is_symlink():
                yield printable(str(path.relative_to(folder))), path.resolve()
