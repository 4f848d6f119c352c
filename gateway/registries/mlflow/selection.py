"""Which registered models are served, and which of their versions: pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from gateway.errors import RegistryError, printable
from gateway.registries.mlflow.documents import PROMPT, READY, Registered, Version
from gateway.registries.mlflow.uri import is_version

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
NO_NAME: Final = "a model's name in a URL has letters, digits, '.', '_' and '-'"


@dataclass(frozen=True)
class Selector:
    """One entry of ``mlflow.versions``; exactly one of the three is set."""

    alias: str = ""
    """``*`` is every alias."""
    version: str = ""
    latest: int = 0

    def __str__(self) -> str:
        if self.alias:
            return f"@{self.alias}"
        return self.version or ("latest" if self.latest == 1 else f"latest:{self.latest}")


def parse_selector(text: str) -> Selector:
    """Raises `RegistryError`."""
    if text.startswith("@") and len(text) > 1:
        return Selector(alias=text[1:])
    if is_version(text):
        return Selector(version=text)
    name, colon, count = text.partition(":")
    if name == "latest" and (not colon or is_version(count)):
        return Selector(latest=int(count or 1))
    raise RegistryError(
        f"mlflow.versions: '{printable(text)}' is no choice of versions; "
        "give @ALIAS, @* (every alias), latest, latest:N or a number"
    )


def is_selected(model: Registered, patterns: Iterable[str], tags: Iterable[str]) -> bool:
    """Whether a registered model is one to serve: a pattern fits, and it has all the tags."""
    own = model.by_tag
    if own.get(PROMPT, "").lower() == "true":
        return False
    if not any(fnmatchcase(model.name, pattern) for pattern in patterns):
        return False
    for tag in tags:
        key, equals, value = tag.partition("=")
        if key not in own or (equals and own[key] != value):
            return False
    return True


def bad_name(name: str) -> str:
    """Why a name cannot be a model's here; empty if it can."""
    return "" if _NAME.fullmatch(name) else NO_NAME


@dataclass(frozen=True)
class Choice:
    """What is chosen of a model's versions, oldest first."""

    usable: list[Version]
    unready: list[Version]
    """Chosen by alias or number, with a registration that is not finished or has failed."""
    missing: dict[str, str]
    """Chosen by alias, and not in MLflow's list of versions: version → alias."""


def choose(
    model: Registered,
    versions: Iterable[Version],
    selectors: Iterable[Selector],
    named: Iterable[str],
) -> Choice:
    """The versions to serve: those selected and those `named`, where they are there."""
    there = in_order(versions)
    usable = [each for each in there if each.status == READY]
    chosen = set(named)
    aliases = model.by_alias
    for selector in selectors:
        if selector.latest:
            chosen.update(each.version for each in usable[-selector.latest :])
        elif selector.alias == "*":
            chosen.update(aliases.values())
        else:
            chosen.add(selector.version or aliases.get(selector.alias, ""))
    listed = {each.version for each in there}
    return Choice(
        [each for each in usable if each.version in chosen],
        [each for each in there if each.version in chosen and each.status != READY],
        {v: alias for alias, v in aliases.items() if v in chosen and v not in listed},
    )


def in_order(versions: Iterable[Version]) -> list[Version]:
    """Oldest first, without what is no version."""
    real = [each for each in versions if is_version(each.version)]
    return sorted(real, key=lambda each: int(each.version))
