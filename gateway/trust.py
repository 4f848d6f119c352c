"""Whose artifacts may execute code: pure, but for resolving local paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Final

from gateway.errors import ConfigError, ModelLoadError, printable
from gateway.uris import has_dots, public

MOST_LINKS: Final = 10_000
"""Files of a version that are looked at; one with more is refused."""


class Trust:
    """The sources in ``trust.code``: local directories and URIs, with all that is below them.

    Raises `ConfigError` for a source that names nothing: it would be the working directory.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self._folders: list[Path] = []
        self._uris: list[str] = []
        for source in sources:
            if not source.strip().removeprefix("file://"):
                raise ConfigError(
                    f"trust.code: '{source}' names no directory; write its path, '.' for the "
                    "working directory, or an empty list to trust nothing"
                )
            if source.startswith("models:/"):
                raise ConfigError(
                    f"trust.code: '{source}' names no registry; write mlflow+http://HOST:PORT, or "
                    f"mlflow+http://HOST:PORT/{source}"
                )
            if "://" in source and not source.startswith("file://"):
                if has_dots(source):
                    raise ConfigError(
                        f"trust.code: '{public(source)}' holds '.' or '..'; write the URI that "
                        "it means"
                    )
                self._uris.append(source.rstrip("/"))
            else:
                self._folders.append(Path(source.removeprefix("file://")).expanduser().resolve())

    def covers(self, path: Path, source: str = "") -> bool:
        """Whether code at `path` may run; `source` is the URI that it was fetched from, if any.

        Links count as where they lead to: one out of a trusted directory is not trusted. A URI
        with ``..`` in it leads somewhere else than it says, and is not trusted either.
        """
        if source.startswith("file://"):  # here, and named by its URI
            path = Path(source.removeprefix("file://"))
        elif source:
            return not has_dots(source) and any(
                source == uri or source.startswith(f"{uri}/") for uri in self._uris
            )
        real = path.resolve()
        return any(real == folder or folder in real.parents for folder in self._folders)

    def check(
        self,
        what: str,
        path: Path,
        source: str = "",
        *,
        file: Path | None = None,
        beside: Iterable[Path] = (),
    ) -> bool:
        """Raises `ModelLoadError` unless code in the version's folder `path` may run.

        `what` says what the code is, `file` is where all of it starts, if it is one file, and
        `beside` are other folders that it imports modules from. Every link in the folders must
        lead to where code is trusted too. True where the file alone is trusted, because it was
        named itself: then nothing else may be imported.
        """
        if source.startswith("file://") and is_at(path, Path(source.removeprefix("file://"))):
            source = ""  # read where it is, so it is what its path is
        named = not source and file is not None and file.resolve() in self._folders
        if named and not self.covers(path):
            return True
        self._check_folder(what, path, source)
        for folder in beside:
            self._check_folder(what, folder, source, importable=True)
        return False

    def check_remote(self, path: Path, source: str) -> None:
        """Raises `ModelLoadError` unless a version that was fetched from the URI `source` may send
        its requests, with headers of its choice, to servers of its choice."""
        if not self.covers(path, source):
            raise ModelLoadError(
                "it is a model on another server, which its source may not name, as it is not "
                "trusted; if you trust it, " + self._add(registry_of(source) or place_of(path))
            )

    def _check_folder(
        self, what: str, path: Path, source: str, *, importable: bool = False
    ) -> None:
        if not self.covers(path, source):
            where = str(path.resolve()) if importable else place_of(path)
            raise ModelLoadError(self._refusal(what, registry_of(source) or where))
        if source:
            # What was fetched lies in a folder of ours, and may not point out of it.
            own = path.resolve()
            for link, target in links(path, importable=importable):
                if target != own and own not in target.parents:
                    raise ModelLoadError(
                        f"{what} executes code, and '{link}' beside it is a link out of its folder"
                    )
            return
        for link, target in links(path, importable=importable):
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


def local_sources(sources: Iterable[str]) -> tuple[str, ...]:
    """Those of `sources` that are on this machine: who names them on a command line means their
    models; a URL may hold anybody's. Empty ones are left out."""
    return tuple(
        source
        for source in sources
        if source.strip().removeprefix("file://")
        and ("://" not in source or source.startswith("file://"))
        and not source.startswith("models:/")
    )


def is_at(folder: Path, named: Path) -> bool:
    """Whether a version's folder is what was named, or holds the one file that was."""
    here, there = folder.resolve(), named.resolve()
    return here in (there, there.parent, named.parent.resolve())


def registry_of(source: str) -> str:
    """What to trust for a version that was fetched: all of an MLflow registry, as every version
    has a URI of its own, else its own URI."""
    return source.partition("/models:/")[0]


def place_of(path: Path) -> str:
    """The directory to trust for a version's folder, ``<models>/<model>/1``: that of the models."""
    return str(path.resolve().parent.parent)


def links(folder: Path, *, importable: bool = False) -> Iterator[tuple[str, Path]]:
    """The symbolic links below a folder (itself aside): name and where it leads.

    `importable`: without what lies in it and is no module, such as folders of versions.
    Raises `ModelLoadError` for a folder with too many files to look at.
    """
    count = 0
    for at, folders, files in os.walk(folder):
        if importable and Path(at) == folder:
            folders[:] = [name for name in folders if name.isidentifier()]
            files = [name for name in files if name.endswith(tuple(all_suffixes()))]
        for name in (*folders, *files):
            count += 1
            if count > MOST_LINKS:
                raise ModelLoadError(
                    f"the version holds more than {MOST_LINKS} files; too many for code"
                )
            path = Path(at, name)
            if path.is_symlink():
                yield printable(str(path.relative_to(folder))), path.resolve()
