"""Which of the versions that are there should be loaded: pure."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from hashlib import blake2b
from typing import Final

import msgspec

from gateway.model_settings import ModelSettings, VersionPolicy
from gateway.registries.traffic import Traffic

STAND_INS: Final = 2
"""Older versions that may stand in for a newest one that cannot be loaded."""


def wanted_versions(
    versions: Collection[str],
    settings: ModelSettings,
    traffic: Traffic,
    pinned: frozenset[str] = frozenset(),
) -> list[str]:
    """The versions to load: those of the policy, and those that split or labels name, or that
    are pinned."""
    policy = settings.versions
    names = list(versions)
    if policy.all:
        return names
    chosen = set(map(str, policy.specific))
    if policy.latest is not None:
        chosen.update(names[-policy.latest :])
    chosen |= traffic.named() | set(settings.labels.values()) | pinned
    return [version for version in names if version in chosen]


def stand_ins(
    versions: Collection[str], wanted: Collection[str], policy: VersionPolicy
) -> list[str]:
    """Versions older than those wanted, the newest first, where "the latest" is asked for."""
    if policy.latest is None:
        return []
    spare = [version for version in versions if version not in wanted]
    return spare[::-1][:STAND_INS]


def loading_key(settings: ModelSettings) -> Hashable:
    """What of the settings makes a version load anew when it changes."""
    lasting = msgspec.structs.replace(
        settings, labels={}, image=None, versions=VersionPolicy(), declared="nothing",
        on_demand=False, signature_change="refuse", memory_mb=0,
    )  # fmt: skip
    return blake2b(msgspec.json.encode(lasting), digest_size=16).digest()
