"""Which version answers: a pure function over an immutable table.

The table is replaced as a whole by one assignment (`Router.publish`), so a request sees
either all of a change or nothing of it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import blake2b
from itertools import accumulate
from random import random
from types import MappingProxyType
from typing import Final, Generic, TypeVar

from gateway.errors import (
    ModelNotReady,
    NotLoaded,
    UnknownModel,
    UnknownVersion,
    without_folders,
)

DEFAULT_STICKY_HEADER: Final = "x-sluice-key"
MAX_SUGGESTED: Final = 64
"""Most models among which the nearest name is looked for: it takes 0.1 ms each."""

S = TypeVar("S")
"""The servable; routing never looks into it."""


@dataclass(frozen=True)
class Sticky:
    """Where the routing key of a request is: a header (lower case) or a request parameter."""

    header: str | None = DEFAULT_STICKY_HEADER
    parameter: str | None = None


@dataclass(frozen=True)
class Route(Generic[S]):
    """One model's versions that can answer, and the split over them.

    `versions` holds every ready version. `weights` are those of the declared split, of
    ready and other versions; what is not ready, or is `refused`, passes its share to `stable`.
    """

    model: str
    versions: Mapping[str, S]
    weights: Mapping[str, float] = field(default_factory=dict)
    stable: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    sticky: Sticky = Sticky()
    known_versions: tuple[str, ...] = ()
    reason: str = ""
    """Why nothing is ready, for the error."""
    on_demand: frozenset[str] = frozenset()
    """Versions that are loaded when somebody asks for them."""
    refused: frozenset[str] = frozenset()
    """Versions that answer those who name them, and nobody else."""

    def __post_init__(self) -> None:
        # Copies that nobody can write to: a route is a snapshot whatever its maker does next.
        for name in ("versions", "weights", "labels"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        able = self.versions
        if self.refused:
            able = {v: each for v, each in able.items() if v not in self.refused}
        effective = effective_weights(self.weights, self.stable, able)
        targets = tuple(self.versions[version] for version in effective)
        declared = {v: float(w) for v, w in self.weights.items() if w > 0}
        object.__setattr__(self, "declared", MappingProxyType(declared))
        object.__setattr__(self, "effective", MappingProxyType(effective))
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "bounds", tuple(accumulate(effective.values())))
        object.__setattr__(self, "only", targets[0] if len(targets) == 1 else None)
        object.__setattr__(
            self, "fallback", any(w and v not in able for v, w in self.weights.items())
        )
        object.__setattr__(self, "able", able)

    able: Mapping[str, S] = field(init=False, repr=False)
    declared: Mapping[str, float] = field(init=False, repr=False)
    effective: Mapping[str, float] = field(init=False, repr=False)
    targets: tuple[S, ...] = field(init=False, repr=False)
    bounds: tuple[float, ...] = field(init=False, repr=False)
    only: S | None = field(init=False, repr=False)
    fallback: bool = field(init=False, repr=False)

    def default(self, key: str | None, rng: Callable[[], float] = random) -> tuple[S, str]:
        """The servable for a request that names no version, and why it.

        Raises `ModelNotReady` when no version can answer; `NotLoaded` where one may soon.
        """
        only = self.only
        if only is not None:
            return only, "fallback" if self.fallback else "split"
        if not self.targets:
            raise not_ready(self)
        if key is not None:
            # Among the declared versions, so that one that is not ready moves no other keys.
            servable = self.able.get(rendezvous(self.model, key, self.declared))
            if servable is not None:
                return servable, "sticky"
            servable = None if self.stable is None else self.versions.get(self.stable)
            if servable is None:
                servable = self.versions[rendezvous(self.model, key, self.effective)]
            return servable, "fallback"
        bounds = self.bounds
        index = bisect_right(bounds, rng() * bounds[-1])
        return self.targets[min(index, len(bounds) - 1)], "split"

    def named(self, name: str) -> tuple[S, str]:
        """The servable of a version or label.

        Raises `UnknownVersion`, or `ModelNotReady` for a known version that cannot answer;
        `NotLoaded` where it may soon.
        """
        servable = self.versions.get(name)
        if servable is not None:
            return servable, "version"
        version = self.labels.get(name)
        if version is not None:
            servable = self.versions.get(version)
            if servable is not None:
                return servable, "label"
            if version in self.on_demand:
                raise not_loaded(self.model, version)
            raise ModelNotReady(f"version {version} (label '{name}') of {self.model} is not ready")
        if name in self.on_demand:
            raise not_loaded(self.model, name)
        if name in self.known_versions:
            raise ModelNotReady(f"version {name} of model '{self.model}' is not ready")
        raise UnknownVersion(self.model, name, (*self.known_versions, *self.labels))


def not_loaded(model: str, version: str) -> NotLoaded:
    which = f"version {version} of model" if version else "model"
    return NotLoaded(f"{which} '{model}' is loaded on demand and not loaded now", model, version)


def not_ready(route: Route[S]) -> ModelNotReady:
    if route.on_demand:
        return not_loaded(route.model, "")
    why = f": {without_folders(route.reason)}" if route.reason else ""
    return ModelNotReady(f"model '{route.model}' has no version that is ready{why}")


def effective_weights(
    weights: Mapping[str, float], stable: str | None, ready: Mapping[str, object]
) -> dict[str, float]:
    """The split over ready versions: the share of the others goes to the stable one.

    Where the stable version is not ready either, the ready ones share in proportion.
    """
    result = {v: float(w) for v, w in weights.items() if w > 0 and v in ready}
    missing = sum(w for v, w in weights.items() if w > 0 and v not in ready)
    if stable is not None and stable in ready and (missing or not result):
        result[stable] = result.get(stable, 0.0) + (missing or 1.0)
    return result


def rendezvous(model: str, key: str, weights: Mapping[str, float]) -> str:
    """The version for a routing key: the same on every replica, and when weights change only
    the keys that have to move do.

    Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights after Schindelhauer and
    Schomaker 2005): the highest of ``-weight / ln(hash)``, the hash blake2b-64 over model, NUL
    and key, keyed by the version, taken to be in (0, 1).
    """
    text = f"{model}\0{key}".encode("utf-8", "surrogateescape")
    best = ""
    best_score = -1.0
    for version, weight in weights.items():
        digest = blake2b(text, digest_size=8, key=version.encode()[:64]).digest()
        unit = (int.from_bytes(digest, "big") + 0.5) / 2**64
        # 1 - 2^-65 rounds to 1.0, whose logarithm is 0.
        score = -weight / (math.log(unit) or -5e-20)
        if score > best_score:
            best, best_score = version, score
    return best


class Router(Generic[S]):
    """Holds the current table."""

    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table: Mapping[str, Route[S]] = {}

    def publish(self, route: Route[S]) -> None:
        """Replaces one model's route."""
        self.table = {**self.table, route.model: route}

    def publish_all(self, routes: Iterable[Route[S]]) -> None:
        """Replaces the routes of many models at once: the table is copied once."""
        self.table = {**self.table, **{route.model: route for route in routes}}

    def withdraw(self, *models: str) -> None:
        """Forgets models: the table is copied once."""
        gone = set(models)
        self.table = {name: route for name, route in self.table.items() if name not in gone}

    def route(self, model: str) -> Route[S]:
        """Raises `UnknownModel`."""
        try:
            return self.table[model]
        except KeyError:
            pass
        raise unknown_model(model, self.table)


def unknown_model(model: str, known: Iterable[str]) -> UnknownModel:
    """The error that names the nearest of the models there are."""
    close = get_close_matches(model[:100], list(known)[:MAX_SUGGESTED], n=1)
    return UnknownModel(model, tuple(close))
