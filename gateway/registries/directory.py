"""A directory as a registry: Triton's layout, ``<model>/<version>/model.onnx``.

Beside the version folders a model may have ``config.pbtxt``, ``model.yaml`` and
``traffic.yaml``. A source may also be one model's folder, or a single ``.onnx`` file.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Final

import msgspec
from watchfiles import DefaultFilter, awatch

from gateway.config import RegistryConfig
from gateway.errors import InvalidModelSettings, RegistryError
from gateway.model_settings import ModelSettings, VersionPolicy
from gateway.registries.base import AspiredModel, AspiredVersion, Snapshot
from gateway.registries.model_documents import CONFIG_PBTXT, MODEL_YAML, read_settings
from gateway.registries.traffic import Traffic, read_traffic, write_traffic
from gateway.telemetry.logs import log

SETTLE_SECONDS: Final = 0.3
"""A version that appears while serving must look the same for this long before it is loaded."""

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")


class DirectoryRegistry:
    """Models below one local path."""

    def __init__(self, path: Path, config: RegistryConfig) -> None:
        self.source = str(path)
        self._path = path
        self._config = config
        self._settled: dict[tuple[str, str], AspiredVersion] = {}
        self._seen: dict[tuple[str, str], Hashable] = {}
        self._good: dict[str, AspiredModel] = {}
        self.ignored: dict[str, str] = {}
        """Folders that are no models, and why."""
        self.unsettled = False

    # --- reading

    def scan(self) -> Snapshot:
        """See `Registry.scan`. What is found first counts as settled."""
        return self._scan(settle=False)

    def _scan(self, *, settle: bool) -> Snapshot:
        self.unsettled = False
        snapshot: dict[str, AspiredModel] = {}
        for name, folder in self._folders():
            model = self._model(name, folder, settle=settle)
            if model is not None:
                snapshot[name] = model
        self._good = {name: m for name, m in self._good.items() if name in snapshot}
        return snapshot

    def _folders(self) -> list[tuple[str, Path]]:
        path = self._path
        if path.is_file():
            return [(path.stem, path)]
        if not path.is_dir():
            raise RegistryError(f"'{path}' is no directory; give a directory of models")
        if version_folders(path):
            return [(path.resolve().name, path)]
        found: list[tuple[str, Path]] = []
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise RegistryError(f"cannot read '{path}': {error.strerror}") from None
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            if not _NAME.fullmatch(entry.name):
                self._ignore(entry.name, "a model's name has letters, digits, '.', '_' and '-'")
                continue
            found.append((entry.name, Path(entry.path)))
        return found

    def _ignore(self, name: str, why: str) -> None:
        if name not in self.ignored:
            self.ignored[name] = why
            log.warning("%s: ignoring folder '%s': %s", self.source, name, why)

    def _model(self, name: str, folder: Path, *, settle: bool) -> AspiredModel | None:
        if folder.is_file():
            return single_file(name, folder)
        versions = version_folders(folder)
        documents = any((folder / each).is_file() for each in (MODEL_YAML, CONFIG_PBTXT))
        if not versions and not documents:
            self._ignore(name, "it has no version folders such as 1/, and no model.yaml")
            return None
        try:
            settings = read_settings(folder, name)
            traffic = read_traffic(folder)
        except InvalidModelSettings as error:
            # What is served goes on as it was; the error shows in the model's status.
            good = self._good.get(name)
            if good is not None:
                return msgspec_replace(good, error=str(error))
            return AspiredModel(name, {}, on_disk=tuple(versions), error=str(error))
        wanted = wanted_versions(versions, settings.versions, traffic, settings)
        key = loading_key(settings)
        aspired: dict[str, AspiredVersion] = {}
        for version in wanted:
            path = versions[version]
            candidate = AspiredVersion(version, path, (key, fingerprint(path)))
            settled = self._settle(name, candidate) if settle else self._accept(name, candidate)
            if settled is not None:
                aspired[version] = settled
        error = "" if versions else "it has no version folders such as 1/"
        model = AspiredModel(
            name, aspired, settings, traffic, on_disk=tuple(versions), error=error
        )
        self._good[name] = model
        return model

    def _accept(self, name: str, candidate: AspiredVersion) -> AspiredVersion:
        key = (name, candidate.version)
        self._seen[key] = candidate.fingerprint
        self._settled[key] = candidate
        return candidate

    def _settle(self, name: str, candidate: AspiredVersion) -> AspiredVersion | None:
        """The version if it has stopped changing, else what it was before, if anything."""
        key = (name, candidate.version)
        if self._seen.get(key) == candidate.fingerprint:
            self._settled[key] = candidate
            return candidate
        self._seen[key] = candidate.fingerprint
        self.unsettled = True
        return self._settled.get(key)

    # --- watching

    async def watch(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """Follows the system's notices of change, and looks for itself now and then."""
        stop = asyncio.Event()
        notices = aiter(
            awatch(
                self._path,
                watch_filter=_NoTemporary(),
                debounce=200,
                step=50,
                stop_event=stop,
                yield_on_timeout=True,
                rust_timeout=int(self._config.poll_seconds * 1000),
                ignore_permission_denied=True,
            )
        )
        last: Snapshot | None = None
        try:
            while True:
                if not self.unsettled:
                    try:
                        await anext(notices)
                    except FileNotFoundError:
                        await asyncio.sleep(self._config.poll_seconds)
                else:
                    await asyncio.sleep(SETTLE_SECONDS)
                try:
                    snapshot = await asyncio.to_thread(self._scan, settle=True)
                except RegistryError as error:
                    # The registry being gone is no reason to stop serving.
                    log.error("%s; serving goes on with what is loaded", error)
                    await asyncio.sleep(self._config.poll_seconds)
                    continue
                if snapshot != last:
                    last = snapshot
                    await changed(snapshot)
        finally:
            stop.set()

    # --- writing

    def write_traffic(self, model: str, traffic: Traffic) -> None:
        if self._path.is_file():
            raise RegistryError(
                f"{self._path.name} is a single file with one version; put it into a directory "
                f"{model}/1/ to split traffic"
            )
        folder = self._path if version_folders(self._path) else self._path / model
        write_traffic(folder, traffic)


class _NoTemporary(DefaultFilter):
    """Everything but our own half-written traffic files and caches."""

    ignore_entity_patterns = (*DefaultFilter.ignore_entity_patterns, r"^\.traffic\.yaml\.")


def msgspec_replace(model: AspiredModel, *, error: str) -> AspiredModel:
    return AspiredModel(
        model.name, model.versions, model.settings, model.traffic, model.on_disk, error
    )


def single_file(name: str, path: Path) -> AspiredModel:
    """One file as a model with version 1."""
    settings = ModelSettings(file=path.name)
    version = AspiredVersion("1", path.parent, (loading_key(settings), file_mark(path)))
    return AspiredModel(name, {"1": version}, settings, on_disk=("1",), writable=False)


def version_folders(folder: Path) -> dict[str, Path]:
    """Version → folder, oldest first. Other names are no versions, nor are ``01`` and ``0``."""
    found: dict[str, Path] = {}
    try:
        for entry in os.scandir(folder):
            if _VERSION.fullmatch(entry.name) and entry.is_dir():
                found[entry.name] = Path(entry.path)
    except OSError:
        return {}
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def wanted_versions(
    versions: dict[str, Path], policy: VersionPolicy, traffic: Traffic, settings: ModelSettings
) -> list[str]:
    """The versions to load: those of the policy, and those that split or labels name."""
    if policy.all:
        return list(versions)
    names = list(versions)
    chosen = set(map(str, policy.specific))
    if policy.latest is not None:
        chosen.update(names[-policy.latest :])
    chosen |= traffic.named() | set(settings.labels.values())
    return [version for version in names if version in chosen]


def loading_key(settings: ModelSettings) -> Hashable:
    """What of the settings makes a version load anew when it changes."""
    still = msgspec.structs.replace(settings, labels={}, image=None, versions=VersionPolicy())
    return msgspec.json.encode(still)


def fingerprint(folder: Path) -> Hashable:
    """Names, sizes and times of all files of a version."""
    marks: list[Hashable] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if len(marks) > 10_000:
            break
        marks.extend((os.path.join(root, name), file_mark(Path(root, name))) for name in sorted(files))
    return tuple(marks)


def file_mark(path: Path) -> Hashable:
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino)
