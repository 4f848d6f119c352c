"""Aliases and tags of a registered model ↔ its `Traffic` here: pure.

| in MLflow | here |
|---|---|
| the alias ``champion`` (``mlflow.stable``) | the stable version |
| the alias ``challenger`` (``mlflow.canary``) | the canary; without a weight, by its label alone |
| the tag ``sluice.traffic`` | weights: ``champion=90, challenger=10`` |
| the tag ``sluice.sticky`` | ``header=x-user`` or ``parameter=user`` |
| each alias | a label |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from gateway.errors import InvalidModelSettings, RegistryError, printable
from gateway.registries.mlflow.documents import Registered
from gateway.registries.mlflow.uri import is_version
from gateway.registries.traffic import StickyKey, Traffic

TRAFFIC: Final = "sluice.traffic"
STICKY: Final = "sluice.sticky"
SETTINGS: Final = "sluice.settings"
EXAMPLE: Final = "champion=90, challenger=10"
MOST_WEIGHT: Final = 1e9

_ALIAS: Final = re.compile(r"[\w-]+")
"""What MLflow takes for an alias."""
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Roles:
    """Which aliases say what the stable version is, and the canary."""

    stable: str = "champion"
    canary: str = "challenger"


@dataclass(frozen=True)
class Read:
    """The traffic that a registered model declares, and names in it that stand for nothing."""

    traffic: Traffic
    lost: tuple[str, ...] = ()


def traffic_of(model: Registered, roles: Roles) -> Read:
    """Raises `InvalidModelSettings` for a tag that cannot be read."""
    aliases = model.by_alias
    tags = model.by_tag
    stable = aliases.get(roles.stable)
    weights: dict[str, float] = {}
    lost: list[str] = []
    if TRAFFIC in tags:
        for name, weight in parse_weights(tags[TRAFFIC], f"tag {TRAFFIC}").items():
            version = name if is_version(name) else aliases.get(name)
            if version is None:
                lost.append(name)
            else:
                weights[version] = weights.get(version, 0.0) + weight
    if not sum(weights.values()) > 0:
        weights = {stable: 100.0} if stable is not None else {}
    sticky = parse_sticky(tags[STICKY], f"tag {STICKY}") if STICKY in tags else None
    labels = {each: version for each, version in aliases.items() if not is_version(each)}
    traffic = Traffic(weights=weights, stable=stable, sticky=sticky, labels=labels)
    return Read(traffic, tuple(lost))


def parse_weights(text: str, where: str) -> dict[str, float]:
    """``champion=90, challenger=10`` (or versions' numbers). Raises `InvalidModelSettings`."""
    weights: dict[str, float] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, number = (each.strip() for each in part.partition("="))
        number = number.removesuffix("%").strip()
        if not equals or not name or not _NUMBER.fullmatch(number):
            raise InvalidModelSettings(
                f"{where}: '{printable(part)}' must be NAME=WEIGHT; write it as '{EXAMPLE}'"
            )
        if name in weights:
            raise InvalidModelSettings(f"{where}: '{printable(name)}' has two weights")
        weights[name] = float(number)
        if not weights[name] <= MOST_WEIGHT:
            raise InvalidModelSettings(f"{where}: weights must be numbers from 0 to 1e9")
    if not sum(weights.values()) > 0:
        raise InvalidModelSettings(
            f"{where}: the weights add up to 0; write it as '{EXAMPLE}', or delete the tag"
        )
    return weights


def parse_sticky(text: str, where: str) -> StickyKey:
    """``header=NAME``, ``parameter=NAME``, or both with a comma. Raises `InvalidModelSettings`."""
    found: dict[str, str] = {}
    for part in text.split(","):
        kind, _, name = (each.strip() for each in part.partition("="))
        if kind not in ("header", "parameter") or not name or kind in found:
            raise InvalidModelSettings(
                f"{where}: '{printable(text)}' must be header=NAME or parameter=NAME"
            )
        found[kind] = name
    return StickyKey(**found)


# --- writing


@dataclass(frozen=True)
class Write:
    """One change of a registered model in MLflow; without a value it deletes."""

    kind: str
    """``alias`` or ``tag``."""
    name: str
    value: str | None

    def __str__(self) -> str:
        if self.value is None:
            return f"delete {self.kind} '{self.name}'"
        return f"set {self.kind} '{self.name}' to '{self.value}'"


def plan(model: Registered, wanted: Traffic, roles: Roles) -> list[Write]:
    """The changes that make a registered model declare `wanted`, in the order to make them.

    MLflow takes one at a time. So the tag first says the whole split in versions' numbers, then
    aliases move (which changes nothing in such a split), and then the tag says it in aliases: a
    crash between any two leaves the old split or the new one.

    Raises `RegistryError` for what MLflow cannot hold.
    """
    before = model.by_alias
    aliases = dict(_labels(model, wanted, roles))
    stable, canary = wanted.stable_version(), wanted.canary_version()
    if stable is not None:
        aliases[roles.stable] = stable
    if canary is not None:
        aliases[roles.canary] = canary
    elif stable is not None and aliases.get(roles.canary) == stable:
        del aliases[roles.canary]
    moved = {each for each in {*before, *aliases} if before.get(each) != aliases.get(each)}
    old = model.by_tag.get(TRAFFIC)
    last = _tag(wanted, aliases, roles)
    if not moved & _in_use(old, None, roles) and _same_split(model, wanted, roles):
        last = old  # as somebody has written it
    writes: list[Write] = []
    # Moves of labels alone change no split.
    if moved & _in_use(old, last, roles) and (old is not None or moved & {roles.stable}):
        first = in_numbers(wanted.weights)
        if first is not None and first != old:
            writes.append(Write("tag", TRAFFIC, first))
            old = first
    writes += [Write("alias", each, aliases[each]) for each in sorted(moved) if each in aliases]
    writes += [Write("alias", each, None) for each in sorted(moved) if each not in aliases]
    if old != last:
        writes.append(Write("tag", TRAFFIC, last))
    sticky = _sticky_text(wanted.sticky)
    if sticky != model.by_tag.get(STICKY):
        writes.append(Write("tag", STICKY, sticky))
    return writes


def in_numbers(weights: Mapping[str, float]) -> str | None:
    """The tag that depends on no alias; `None` without weights."""
    return ", ".join(f"{v}={plain(w)}" for v, w in weights.items()) or None


def plain(weight: float) -> str:
    """A weight as people write it."""
    return str(int(weight)) if float(weight).is_integer() else repr(float(weight))


def _labels(model: Registered, wanted: Traffic, roles: Roles) -> Mapping[str, str]:
    """The aliases that the labels ask for: those of the two roles follow the split instead."""
    before = model.by_alias
    aliases = dict(wanted.labels)
    for role in (roles.stable, roles.canary):
        asked, now = aliases.pop(role, None), before.get(role)
        # One that is as it was has only been carried along.
        meant = wanted.stable_version() if role == roles.stable else wanted.canary_version()
        if asked is not None and asked not in (now, meant):
            raise RegistryError(
                f"label '{role}' is the alias in MLflow that decides the split; promote or split "
                f"to version {asked} instead"
            )
        if now is not None:
            aliases[role] = now
    # What looks like a version is no label, and stays as it is.
    aliases.update({each: version for each, version in before.items() if is_version(each)})
    for label in aliases.keys() - before.keys():
        if not _ALIAS.fullmatch(label) or label.lower() == "latest" or is_reserved(label):
            raise RegistryError(
                f"label '{printable(label)}' cannot be an alias in MLflow: letters, digits, '_' "
                "and '-', and neither 'latest' nor 'v' with a number"
            )
    return aliases


def is_reserved(label: str) -> bool:
    """Whether MLflow takes it for a version."""
    return re.fullmatch(r"[vV][0-9]+", label) is not None


def _tag(wanted: Traffic, aliases: Mapping[str, str], roles: Roles) -> str | None:
    """The tag's final text: in aliases where they say it; none where the alias says everything."""
    if wanted.weights.keys() <= {wanted.stable_version()}:
        return None
    names = {aliases[r]: r for r in (roles.canary, roles.stable) if r in aliases}
    return in_numbers({names.get(v, v): weight for v, weight in wanted.weights.items()})


def _same_split(model: Registered, wanted: Traffic, roles: Roles) -> bool:
    try:
        now = traffic_of(model, roles).traffic
    except InvalidModelSettings:
        return False
    return replace(now, labels={}) == replace(wanted, labels={})


def _in_use(old: str | None, last: str | None, roles: Roles) -> set[str]:
    """The aliases that a split depends on."""
    names = {roles.stable, roles.canary}
    for text in (old, last):
        names.update(part.partition("=")[0].strip() for part in (text or "").split(","))
    return names


def _sticky_text(sticky: StickyKey | None) -> str | None:
    if sticky is None:
        return None
    pairs = (("header", sticky.header), ("parameter", sticky.parameter))
    return ", ".join(f"{kind}={name}" for kind, name in pairs if name) or None
