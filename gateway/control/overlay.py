"""What a registry wants of a model, with what people have decided laid over it: pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from gateway.control.documents import Control
from gateway.model_settings import ModelSettings, VersionPolicy
from gateway.registries.base import AspiredModel, AspiredVersion
from gateway.registries.choice import loading_key, wanted_versions
from gateway.registries.config_pbtxt import parse_config_pbtxt
from gateway.registries.files import in_order
from gateway.registries.traffic import Traffic

UPLOADED: Final = "upload://"
"""Scheme of what came with a load request, as ``trust.code`` names it."""
UNLOADED: Final = "it is unloaded; load it with 'sluice load {}' or the repository API"
FROM_CONFIG: Final = (
    "runtime", "file", "max_batch_size", "inputs", "outputs", "instances", "device", "gpus",
    "batching", "warmup", "decoupled", "options", "declared", "triton_config",
)  # fmt: skip
"""What a ``ModelConfig`` says; the rest of the settings stays the registry's."""
POLICY: Final = re.compile(r"(?m)^version_policy\b")


def overlaid(
    aspired: AspiredModel,
    control: Control,
    *,
    explicit: bool = False,
    files: Mapping[str, Path] | None = None,
) -> AspiredModel:
    """The model as it should be loaded.

    `explicit`: nothing is loaded that nobody asked for. `files` are the version folders of
    ``control.files``, the oldest first.
    """
    if files is None and not explicit and control.empty:
        return aspired
    if control.pause is not None and files is None:
        return paused(aspired, control)
    if control.loaded is False or (control.loaded is None and explicit):
        return replace(
            aspired, versions={}, stand_ins={}, error="", unloaded=UNLOADED.format(aspired.name)
        )
    settings = overridden(aspired.settings, control, aspired.name)
    if files is not None:
        return uploaded(aspired, control, settings, files)
    versions = dict(aspired.versions)
    if settings.versions != aspired.settings.versions:
        chosen = wanted_versions(
            aspired.on_disk, settings, aspired.traffic, frozenset(control.with_versions)
        )
        versions = {v: each for v, each in versions.items() if v in chosen}
    left_out = set(control.without_versions)
    return replace(
        aspired,
        versions=with_settings(without(versions, left_out), aspired.settings, settings),
        stand_ins=with_settings(without(aspired.stand_ins, left_out), aspired.settings, settings),
        settings=settings,
    )


def pins(aspired: AspiredModel, control: Control) -> frozenset[str]:
    """Versions that the registry has to hold for this document, besides those it holds anyway."""
    if control.pause is not None:
        return frozenset((*control.pause.versions, *control.pause.stand_ins))
    if control.files or control.loaded is False:
        return frozenset()
    chosen = frozenset(control.with_versions)
    settings = overridden(aspired.settings, control, aspired.name)
    if settings.versions != aspired.settings.versions:
        chosen |= set(wanted_versions(aspired.on_disk, settings, aspired.traffic, chosen))
    return chosen


def paused(aspired: AspiredModel, control: Control) -> AspiredModel:
    """As it was at the pause, as far as the registry still has it: for a start while paused."""
    pause = control.pause
    assert pause is not None
    there = {**aspired.stand_ins, **aspired.versions}
    versions = {v: there[v] for v in pause.versions if v in there}
    stand_ins = {v: there[v] for v in pause.stand_ins if v in there}
    unloaded = "" if pause.versions else UNLOADED.format(aspired.name)
    return replace(
        aspired,
        versions=with_settings(versions, aspired.settings, pause.settings),
        stand_ins=with_settings(stand_ins, aspired.settings, pause.settings),
        settings=pause.settings,
        traffic=pause.traffic,
        unloaded=unloaded,
    )


def overridden(settings: ModelSettings, control: Control, model: str) -> ModelSettings:
    """The registry's settings with the override of the document.

    Raises `InvalidModelSettings`; what was accepted once is accepted again.
    """
    if not control.config:
        return settings
    own = parse_config_pbtxt(control.config, model, file="config")
    changed = {name: getattr(own, name) for name in FROM_CONFIG}
    changed["runtime"] = own.runtime or settings.runtime
    if POLICY.search(control.config):
        changed["versions"] = own.versions
    return msgspec.structs.replace(settings, **changed)


def uploaded(
    aspired: AspiredModel, control: Control, settings: ModelSettings, files: Mapping[str, Path]
) -> AspiredModel:
    """The model made of the files that came with a load; the newest version takes everything."""
    key = loading_key(settings)
    policy = settings if POLICY.search(control.config) else msgspec.structs.replace(
        settings, versions=VersionPolicy(latest=1)
    )  # fmt: skip
    policy = msgspec.structs.replace(policy, labels={})
    ordered = list(in_order(dict.fromkeys(files, "")))
    chosen = wanted_versions(ordered, policy, Traffic(), frozenset(control.with_versions))
    versions = {
        version: AspiredVersion(
            version,
            files[version],
            (key, control.files),
            source=f"{UPLOADED}{aspired.name}/{version}",
        )
        for version in chosen
        if version not in control.without_versions
    }
    return AspiredModel(aspired.name, versions, policy, Traffic(), tuple(ordered))


def without(
    versions: Mapping[str, AspiredVersion], left_out: set[str]
) -> dict[str, AspiredVersion]:
    return {v: each for v, each in versions.items() if v not in left_out}


def with_settings(
    versions: Mapping[str, AspiredVersion], before: ModelSettings, after: ModelSettings
) -> dict[str, AspiredVersion]:
    """The versions, to be loaded anew where other settings than the registry's apply."""
    if after is before:
        return dict(versions)
    key = loading_key(after)
    if key == loading_key(before):
        return dict(versions)
    return {v: replace(each, fingerprint=(each.fingerprint, key)) for v, each in versions.items()}
