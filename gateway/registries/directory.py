"""A directory as a registry: Triton's layout, ``<model>/<version>/model.onnx``.

Beside the version folders a model may have ``config.pbtxt``, ``model.yaml`` and
``traffic.yaml``. A source may also be one model's folder, or a single ``.onnx`` file.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from gateway.config import RegistryConfig
from gateway.errors import InvalidModelSettings, NotWritable, RegistryError
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredVersion, Snapshot
from gateway.registries.catalogue import DOCUMENTS, NAME, NO_VERSIONS, Catalogue
from gateway.registries.files import (
    SETTLE_SECONDS,
    Folder,
    file_mark,
    fingerprint,
    is_folder,
    look_into,
)
from gateway.registries.model_documents import MODEL_YAML, read_settings
from gateway.registries.notices import notices_of
from gateway.registries.overlay import Overlays
from gateway.registries.traffic import Traffic, read_traffic, write_traffic
from gateway.state import StateDir
from gateway.telemetry.logs import log
from gateway.threads import in_thread

__all__ = ["DOCUMENTS", "NO_VERSIONS", "DirectoryRegistry", "kind_of"]


class DirectoryRegistry:
    """Models below one local path."""

    def __init__(
        self,
        path: Path,
        config: RegistryConfig,
        now: Callable[[], float] = time.monotonic,
        state: StateDir | None = None,
    ) -> None:
        self.source = str(path)
        self._path = path
        self._poll_seconds = config.poll_seconds
        self._now = now
        self._kind: Literal["file", "model", "models"] | None = None
        self._overlays = Overlays(state, str(path.absolute()))
        self._catalogue = Catalogue(self, self._overlays, now, local=True)
        self._writes = 0
        self._hint = asyncio.Event()
        self.trouble = ""
        self._scanning = threading.Lock()
        """Somebody may ask for a look while `watch` has one."""

    @property
    def ignored(self) -> dict[str, str]:
        """Folders that are no models or versions, and why."""
        return self._catalogue.ignored

    # --- reading

    def scan(self) -> Snapshot:
        """See `Registry.scan`. What is found at the first look counts as settled."""
        with self._scanning:
            return self._scan()

    def _scan(self) -> Snapshot:
        first = self._kind is None
        return self._catalogue.look(self._folders(), settle=not first)

    @property
    def unsettled(self) -> bool:
        """Whether something was still changing when it was last looked at."""
        return self._catalogue.unsettled

    def _folders(self) -> dict[str, str]:
        """Name → folder (or file) of everything that may be a model."""
        path = self._path
        try:
            if self._kind is None:
                self._kind = kind_of(path)
            if not path.exists():
                raise RegistryError(f"'{path}' does not exist")
            if self._kind == "file":
                return {path.stem: str(path)}
            if self._kind == "model":
                # As it was given: what a link leads to changes.
                return {os.path.basename(os.path.abspath(path)): str(path)}
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except NotADirectoryError:
            raise RegistryError(f"'{path}' is no directory; give a directory of models") from None
        except OSError as error:
            raise RegistryError(f"cannot read '{path}': {error.strerror}") from None
        folders: dict[str, str] = {}
        for entry in entries:
            if entry.name.startswith(".") or not is_folder(entry):
                continue
            if NAME.fullmatch(entry.name):
                folders[entry.name] = entry.path
            else:
                self._catalogue.ignore(
                    entry.name, "a model's name has letters, digits, '.', '_' and '-'"
                )
        return folders

    # --- see `Place`

    def look_into(self, path: str) -> Folder:
        """See `Place.look_into`."""
        if self._kind == "file":
            return Folder({"1": str(self._path.parent)})
        try:
            return look_into(path, DOCUMENTS)
        except FileNotFoundError:  # since the directory was listed
            return Folder()

    def read_settings(self, path: str, name: str) -> ModelSettings:
        """See `Place.read_settings`."""
        if self._kind == "file":
            return ModelSettings(file=self._path.name)
        return read_settings(Path(path), name)

    def read_traffic(self, path: str, name: str) -> Traffic:
        """See `Place.read_traffic`."""
        return Traffic() if self._kind == "file" else read_traffic(Path(path))

    def version(self, version: str, path: str, key: object) -> AspiredVersion:
        """See `Place.version`."""
        files = fingerprint(path) if self._kind != "file" else file_mark(str(self._path))
        return AspiredVersion(version, Path(path), (key, files))

    # --- watching

    async def watch(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """Follows the system's notices of change, and looks for itself now and then."""
        last: Snapshot | None = None
        notices = notices_of(self._path, self._poll_seconds, recursive=self._kind != "file")
        # Asked for before looking, so that nothing falls between the two.
        notice = asyncio.ensure_future(anext(notices))
        try:
            while True:
                await asyncio.sleep(0)
                started = self._now()
                snapshot = await self._look()
                if snapshot is not None and snapshot != last:
                    last = snapshot
                    await changed(snapshot)
                if snapshot is not None and self.unsettled:
                    # A long copy into a large directory must not keep a processor busy.
                    await asyncio.sleep(max(SETTLE_SECONDS, 4 * (self._now() - started)))
                else:
                    hinted = asyncio.ensure_future(self._hint.wait())
                    await asyncio.wait({notice, hinted}, return_when=asyncio.FIRST_COMPLETED)
                    hinted.cancel()
                    self._hint.clear()
                    if notice.done():
                        notice.result()
                        notice = asyncio.ensure_future(anext(notices))
        finally:
            notice.cancel()
            await asyncio.gather(notice, return_exceptions=True)
            await notices.aclose()

    async def _look(self) -> Snapshot | None:
        """A new snapshot; `None`, with one line in the log, while the source cannot be read."""
        try:
            while True:
                writes = self._writes
                snapshot = await in_thread(self.scan)
                if writes == self._writes:  # else a split may be older than the one in effect
                    break
        except RegistryError as error:
            if self.trouble != str(error):
                self.trouble = str(error)
                log.error("%s; serving goes on with what is loaded", error)
            return None
        if self.trouble:
            self.trouble = ""
            log.info("%s can be read again", self.source)
        return snapshot

    def hint(self) -> None:
        """See `Registry.hint`."""
        self._hint.set()

    def pin(self, model: str, versions: frozenset[str]) -> None:
        """See `Registry.pin`."""
        self._catalogue.pin(model, versions)

    # --- writing

    def write_traffic(self, model: str, traffic: Traffic) -> Traffic:
        """See `Registry.write_traffic`. Where the directory may not be written, the split is kept
        in the state directory."""
        if self._kind == "file":
            raise RegistryError(
                f"{self._path.name} is a single file with one version; put it into a directory "
                f"{model}/1/ to split traffic"
            )
        try:
            write_traffic(self._path if self._kind == "model" else self._path / model, traffic)
        except NotWritable:
            if not self._overlays.possible:
                raise
            self._overlays.put(model, self._catalogue.declared(model), traffic)
        else:
            self._overlays.drop(model)
        self._writes += 1
        return traffic


def kind_of(path: Path) -> Literal["file", "model", "models"]:
    """What a source is. Raises `OSError` for what cannot be read.

    Decided once: a folder ``1`` that appears later must not turn a directory of models into
    one model.
    """
    if path.is_file():
        return "file"
    found = look_into(str(path), DOCUMENTS)
    if not found.versions:
        return "model" if is_remote(path, found) else "models"
    if found.documents:
        return "model"
    for name in found.others:
        inner = look_into(str(path / name), DOCUMENTS)
        if inner.versions or inner.documents:
            return "models"
    return "model"


def is_remote(path: Path, found: Folder) -> bool:
    """Whether a folder without versions is a model on another server."""
    if MODEL_YAML not in found.documents:
        return False
    try:
        return read_settings(path, path.name).remote is not None
    except InvalidModelSettings:
        return False
