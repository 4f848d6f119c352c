"""A directory as a registry: Triton's layout, ``<model>/<version>/model.onnx``.

Beside the version folders a model may have ``config.pbtxt``, ``model.yaml`` and
``traffic.yaml``. A source may also be one model's folder, or a single ``.onnx`` file.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from gateway.config import RegistryConfig
from gateway.errors import InvalidModelSettings, RegistryError
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredModel, AspiredVersion, Snapshot
from gateway.registries.choice import loading_key, stand_ins, wanted_versions
from gateway.registries.files import (
    SETTLE_SECONDS,
    Cached,
    Folder,
    Mark,
    Settling,
    file_mark,
    fingerprint,
    in_order,
    is_folder,
    look_into,
)
from gateway.registries.model_documents import CONFIG_PBTXT, MODEL_YAML, read_settings
from gateway.registries.notices import notices_of
from gateway.registries.traffic import TRAFFIC_YAML, Traffic, read_traffic, write_traffic
from gateway.telemetry.logs import log

DOCUMENTS: Final = frozenset((MODEL_YAML, CONFIG_PBTXT, TRAFFIC_YAML))
NO_VERSIONS: Final = "it has no version folders such as 1/"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_LIKE_A_VERSION = re.compile(r"[vV]?[0-9].*")


class DirectoryRegistry:
    """Models below one local path."""

    def __init__(
        self, path: Path, config: RegistryConfig, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.source = str(path)
        self.ignored: dict[str, str] = {}
        """Folders that are no models or versions, and why."""
        self._path = path
        self._poll_seconds = config.poll_seconds
        self._now = now
        self._kind: Literal["file", "model", "models"] | None = None
        self._good: dict[str, AspiredModel] = {}
        self._settling: dict[str, Settling] = {}
        self._settings: Cached[ModelSettings] = Cached()
        self._traffic: Cached[Traffic] = Cached()
        self._writes = 0
        self._pinned: dict[str, frozenset[str]] = {}
        self._hint = asyncio.Event()
        self._trouble = ""

    # --- reading

    def scan(self) -> Snapshot:
        """See `Registry.scan`. What is found at the first look counts as settled."""
        first = self._kind is None
        folders = self._folders()
        snapshot: dict[str, AspiredModel] = {}
        for name in (*folders, *(self._good.keys() - folders.keys())):
            model = self._model(name, folders.get(name), settle=not first)
            if model is not None:
                snapshot[name] = model
                self._settling[name].looked()
        self._settling = {n: each for n, each in self._settling.items() if n in snapshot}
        self._good = {name: model for name, model in self._good.items() if name in snapshot}
        self._settings.keep(folders)
        self._traffic.keep(folders)
        return snapshot

    @property
    def unsettled(self) -> bool:
        """Whether something was still changing when it was last looked at."""
        return any(model.waiting for model in self._settling.values())

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
            if _NAME.fullmatch(entry.name):
                folders[entry.name] = entry.path
            else:
                self._ignore(entry.name, "a model's name has letters, digits, '.', '_' and '-'")
        return folders

    def _ignore(self, name: str, why: str) -> None:
        if name not in self.ignored:
            self.ignored[name] = why
            log.warning("%s: ignoring folder '%s': %s", self.source, name, why)

    def _model(self, name: str, path: str | None, *, settle: bool) -> AspiredModel | None:
        """One model; `path` is `None` when it is not there any more."""
        good = self._good.get(name)
        settling = self._settling.setdefault(name, Settling(self._now))
        try:
            folder = self._look_into(path)
        except OSError as error:
            text = f"its folder cannot be read: {error.strerror}"
            return replace(good, error=text) if good else AspiredModel(name, {}, error=text)
        folder = self._with_remote(name, path, folder)
        for other in folder.others:
            if _LIKE_A_VERSION.fullmatch(other):
                why = "a version is a whole number from 1 on, without zeros in front"
                self._ignore(f"{name}/{other}", why)
        missing = [
            version
            for version in settling.believed.keys() - folder.versions.keys()
            if settling.show(version, None) is None
        ]
        present = {v: p for v, p in settling.believed.items() if v not in missing}
        if not folder.versions and not folder.documents and not present:
            if path is not None:
                self._ignore(name, "it has no version folders such as 1/, and no model.yaml")
            return None
        self.ignored.pop(name, None)
        model = self._documented(name, path, folder, settling, settle=settle)
        if model.versions or not model.error:
            self._good[name] = replace(model, error="")
        return model

    def _with_remote(self, name: str, path: str | None, folder: Folder) -> Folder:
        """A model on another server needs no version folders: it has version 1."""
        if path is None or folder.versions or MODEL_YAML not in folder.documents:
            return folder
        own = only(folder.documents, MODEL_YAML, CONFIG_PBTXT)
        try:
            settings = self._settings.get(name, own, lambda: read_settings(Path(path), name))
        except InvalidModelSettings:
            # Said where the documents are read for good; what they said before still holds.
            settings = self._good[name].settings if name in self._good else ModelSettings()
        if settings.remote is None:
            return folder
        return replace(folder, versions={"1": os.path.join(path, "1")})

    def _look_into(self, path: str | None) -> Folder:
        if path is None:
            return Folder()
        if self._kind == "file":
            return Folder({"1": str(self._path.parent)})
        try:
            return look_into(path, DOCUMENTS)
        except FileNotFoundError:  # since the directory was listed
            return Folder()

    def _documented(
        self, name: str, path: str | None, folder: Folder, settling: Settling, *, settle: bool
    ) -> AspiredModel:
        """The model as its documents want it; where one cannot be read, as it was."""
        good = self._good.get(name)
        on_disk = tuple(folder.versions)
        marks = folder.documents
        traffic = good.traffic if good is not None else Traffic()
        settings = good.settings if good is not None else ModelSettings()
        errors = []
        if path is not None and self._kind != "file":
            at = Path(path)
            try:
                own = only(marks, TRAFFIC_YAML)
                traffic = self._traffic.get(name, own, lambda: read_traffic(at))
            except InvalidModelSettings as error:
                errors.append(str(error))
            try:
                own = only(marks, MODEL_YAML, CONFIG_PBTXT)
                settings = self._settings.get(name, own, lambda: read_settings(at, name))
            except InvalidModelSettings as error:
                errors.append(str(error))
                versions = good.versions if good is not None else {}
                return AspiredModel(
                    name, versions, settings, traffic, on_disk, "; ".join(errors),
                    good.stand_ins if good is not None else {},
                )  # fmt: skip
        elif path is not None:
            settings = ModelSettings(file=self._path.name)
        versions, stand_ins = self._versions(
            name, folder, settings, traffic, settling, settle=settle
        )
        if not on_disk and not versions:
            errors.append(NO_VERSIONS)
        elif not versions and not settling.waiting:
            errors.append(f"its version policy chooses none of the versions {', '.join(on_disk)}")
        return AspiredModel(
            name, versions, settings, traffic, on_disk, "; ".join(errors), stand_ins
        )

    def _versions(
        self,
        name: str,
        folder: Folder,
        settings: ModelSettings,
        traffic: Traffic,
        settling: Settling,
        *,
        settle: bool,
    ) -> tuple[dict[str, AspiredVersion], dict[str, AspiredVersion]]:
        """The versions to load, and those that may stand in for them."""
        key = loading_key(settings)
        pinned = self._pinned.get(name, frozenset())
        # What is missing, but not for long enough, is as it was.
        known = {v: a for v, a in settling.believed.items() if v not in folder.versions}
        present = dict(folder.versions)
        if known:
            present = dict(in_order({**present, **{v: str(a.path) for v, a in known.items()}}))
        while True:
            wanted = wanted_versions(present, settings, traffic, pinned)
            spare = stand_ins(present, wanted, settings.versions)
            new = [version for version in (*wanted, *spare) if version not in known]
            if not new:
                break
            for version in new:
                path = present[version]
                files = fingerprint(path) if self._kind != "file" else file_mark(str(self._path))
                believed = settling.believed.get(version)
                if believed is None or believed.fingerprint != (key, files):
                    found = AspiredVersion(version, Path(path), (key, files))
                    believed = settling.show(version, found) if settle else settling.believe(found)
                else:
                    settling.show(version, believed)
                if believed is not None:
                    known[version] = believed
                else:
                    # Not there yet, so that "the newest" is still the one before.
                    del present[version]
        settling.keep(known)
        return {v: known[v] for v in wanted}, {v: known[v] for v in spare}

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
                snapshot = await asyncio.to_thread(self.scan)
                if writes == self._writes:  # else a split may be older than the one in effect
                    break
        except RegistryError as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                log.error("%s; serving goes on with what is loaded", error)
            return None
        if self._trouble:
            self._trouble = ""
            log.info("%s can be read again", self.source)
        return snapshot

    def hint(self) -> None:
        """See `Registry.hint`."""
        self._hint.set()

    def pin(self, model: str, versions: frozenset[str]) -> None:
        """See `Registry.pin`."""
        if versions:
            self._pinned[model] = versions
        else:
            self._pinned.pop(model, None)

    # --- writing

    def write_traffic(self, model: str, traffic: Traffic) -> None:
        """See `Registry.write_traffic`."""
        if self._kind == "file":
            raise RegistryError(
                f"{self._path.name} is a single file with one version; put it into a directory "
                f"{model}/1/ to split traffic"
            )
        write_traffic(self._path if self._kind == "model" else self._path / model, traffic)
        self._writes += 1


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


def only(marks: Mapping[str, Mark], *names: str) -> dict[str, Mark]:
    """The marks of these documents."""
    return {name: marks[name] for name in names if name in marks}
