"""Models as they are found in a place, and what of that to believe: the part that directories
and object stores have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from gateway.errors import InvalidModelSettings
from gateway.model_settings import ModelSettings
from gateway.registries.base import AspiredModel, AspiredVersion, Snapshot
from gateway.registries.choice import loading_key, stand_ins, wanted_versions
from gateway.registries.files import TICK_NS, Cached, Folder, Mark, Settling, in_order
from gateway.registries.model_documents import CONFIG_PBTXT, MODEL_YAML
from gateway.registries.overlay import Overlays
from gateway.registries.still import Survey, steady_devices, survey
from gateway.registries.traffic import TRAFFIC_YAML, Traffic
from gateway.telemetry.logs import log

DOCUMENTS: Final = frozenset((MODEL_YAML, CONFIG_PBTXT, TRAFFIC_YAML))
NO_VERSIONS: Final = "it has no version folders such as 1/"
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
LIKE_A_VERSION: Final = re.compile(r"[vV]?[0-9].*")


class Place(Protocol):
    """Where models are found. All of it blocks."""

    source: str

    def look_into(self, path: str) -> Folder:
        """What a model's folder holds; nothing where it is gone. Raises `OSError`."""

    def read_settings(self, path: str, name: str) -> ModelSettings:
        """Raises `InvalidModelSettings`."""

    def read_traffic(self, path: str, name: str) -> Traffic:
        """Raises `InvalidModelSettings`."""

    def version(self, version: str, path: str, key: object) -> AspiredVersion:
        """The version in a folder as it is now; `key` is a part of its fingerprint."""


@dataclass
class _Still:
    """What a look found, to be found again without looking while nothing has changed."""

    model: AspiredModel
    path: str
    pinned: frozenset[str]
    survey: Survey
    since: float
    sure: bool = False
    """Whether a second look found the same, so long after the first that whatever changes from
    then on shows."""


class Catalogue:
    """What one place's models were and are.

    `local`: its paths are folders of this machine, which need not be looked into again and again.
    """

    def __init__(
        self, place: Place, overlays: Overlays, now: Callable[[], float], *, local: bool = False
    ) -> None:
        self.ignored: dict[str, str] = {}
        """Folders that are no models or versions, and why."""
        self._place = place
        self._overlays = overlays
        self._now = now
        self._good: dict[str, AspiredModel] = {}
        self._settling: dict[str, Settling] = {}
        self._settings: Cached[ModelSettings] = Cached()
        self._traffic: Cached[Traffic] = Cached()
        self._declared: dict[str, Traffic] = {}
        self._pinned: dict[str, frozenset[str]] = {}
        self._local = local
        self._still: dict[str, _Still] = {}
        self._steady: frozenset[int] | None = None
        """See `steady_devices`; read once a look, if it is needed."""

    @property
    def unsettled(self) -> bool:
        """Whether something was still changing when it was last looked at."""
        return any(model.waiting for model in self._settling.values())

    def pin(self, model: str, versions: frozenset[str]) -> None:
        """See `Registry.pin`."""
        if versions:
            self._pinned[model] = versions
        else:
            self._pinned.pop(model, None)

    def declared(self, model: str) -> Traffic:
        """The split that the place itself said when it was last looked at."""
        return self._declared.get(model, Traffic())

    def look(self, folders: Mapping[str, str], *, settle: bool) -> Snapshot:
        """The wanted state, from the folders (name → path) that may be models; what is new is
        believed at once, or only once it has settled."""
        snapshot: dict[str, AspiredModel] = {}
        self._steady = None
        for name in (*folders, *(self._good.keys() - folders.keys())):
            path = folders.get(name)
            still = self._still.get(name)
            if still is not None and not self._holds(name, path, still):
                still = None
            if still is not None and still.sure:
                snapshot[name] = still.model
                continue
            model = self._model(name, path, settle=settle)
            if model is not None:
                snapshot[name] = model
                self._settling[name].looked()
            if self._local:
                self._remember(name, path, model, still)
        self._settling = {n: each for n, each in self._settling.items() if n in snapshot}
        self._good = {name: model for name, model in self._good.items() if name in snapshot}
        self._settings.keep(folders)
        self._traffic.keep(folders)
        return snapshot

    def _holds(self, name: str, path: str | None, still: _Still) -> bool:
        """Whether nothing has changed of what a look depends on."""
        return (
            still.path == path
            and still.pinned == self._pinned.get(name, frozenset())
            and still.model.traffic == self._overlays.over(name, self.declared(name))
            and still.survey.holds()
        )

    def _remember(
        self, name: str, path: str | None, model: AspiredModel | None, still: _Still | None
    ) -> None:
        """Keeps what a look found for the next ones; `still` is what was kept before, if it
        held when the look began."""
        if path is None or model is None or model.error or self._settling[name].waiting:
            self._still.pop(name, None)
        elif still is not None and still.model == model:
            still.sure = self._now() - still.since > TICK_NS / 1e9
        else:
            if self._steady is None:
                self._steady = steady_devices()
            versions = [str(each.path) for each in model.versions.values()]
            versions += [str(each.path) for each in model.stand_ins.values()]
            found = survey(path, DOCUMENTS, versions, self._steady)
            if found is None:
                self._still.pop(name, None)
            else:
                pinned = self._pinned.get(name, frozenset())
                self._still[name] = _Still(model, path, pinned, found, self._now())

    def ignore(self, name: str, why: str) -> None:
        """Says once that a folder is no model, and why."""
        if name not in self.ignored:
            self.ignored[name] = why
            log.warning("%s: ignoring folder '%s': %s", self._place.source, name, why)

    def _model(self, name: str, path: str | None, *, settle: bool) -> AspiredModel | None:
        """One model; `path` is `None` when it is not there any more."""
        good = self._good.get(name)
        settling = self._settling.setdefault(name, Settling(self._now))
        try:
            folder = Folder() if path is None else self._place.look_into(path)
        except OSError as error:
            text = f"its folder cannot be read: {error.strerror}"
            return replace(good, error=text) if good else AspiredModel(name, {}, error=text)
        folder = self._with_remote(name, path, folder)
        for other in folder.others:
            if LIKE_A_VERSION.fullmatch(other):
                why = "a version is a whole number from 1 on, without zeros in front"
                self.ignore(f"{name}/{other}", why)
        missing = [
            version
            for version in settling.believed.keys() - folder.versions.keys()
            if version not in folder.withheld and settling.show(version, None) is None
        ]
        present = {v: p for v, p in settling.believed.items() if v not in missing}
        if not (folder.versions or folder.withheld or folder.documents or present):
            if path is not None:
                self.ignore(name, "it has no version folders such as 1/, and no model.yaml")
            return None
        self.ignored.pop(name, None)
        model = self._documented(name, path, folder, settling, settle=settle)
        if model.versions or not model.error:
            self._good[name] = replace(model, error="")
        return model

    def _with_remote(self, name: str, path: str | None, folder: Folder) -> Folder:
        """A model on another server needs no version folders: it has version 1."""
        if path is None or folder.versions or folder.withheld or MODEL_YAML not in folder.documents:
            return folder
        own = only(folder.documents, MODEL_YAML, CONFIG_PBTXT)
        try:
            settings = self._settings.get(name, own, lambda: self._place.read_settings(path, name))
        except InvalidModelSettings:
            # Said where the documents are read for good; what they said before still holds.
            settings = self._good[name].settings if name in self._good else ModelSettings()
        if settings.remote is None:
            return folder
        return replace(folder, versions={"1": f"{path}/1"})

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
        place = self._place
        if path is not None:
            try:
                own = only(marks, TRAFFIC_YAML)
                declared = self._traffic.get(name, own, lambda: place.read_traffic(path, name))
                self._declared[name] = declared
                traffic = self._overlays.over(name, declared)
            except InvalidModelSettings as error:
                errors.append(str(error))
            try:
                own = only(marks, MODEL_YAML, CONFIG_PBTXT)
                settings = self._settings.get(name, own, lambda: place.read_settings(path, name))
            except InvalidModelSettings as error:
                errors.append(str(error))
                versions = good.versions if good is not None else {}
                return AspiredModel(
                    name, versions, settings, traffic, on_disk, "; ".join(errors),
                    good.stand_ins if good is not None else {},
                )  # fmt: skip
        versions, stand_ins = self._versions(
            name, folder, settings, traffic, settling, settle=settle
        )
        errors += folder.withheld.values()
        if not on_disk and not versions:
            if not folder.withheld:
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
                found = self._place.version(version, present[version], key)
                believed = settling.believed.get(version)
                if believed is None or believed.fingerprint != found.fingerprint:
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


def only(marks: Mapping[str, Mark], *names: str) -> dict[str, Mark]:
    """The marks of these documents."""
    return {name: marks[name] for name in names if name in marks}
