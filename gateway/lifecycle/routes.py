"""From what is wanted of a model, and which of it is ready, to its route: pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gateway.lifecycle.model import ManagedModel
from gateway.lifecycle.states import State
from gateway.registries.traffic import Traffic
from gateway.routing import DEFAULT_STICKY_HEADER, Route, Sticky
from gateway.servable import Servable


def route_of(model: ManagedModel) -> Route[Servable]:
    """The split over what is ready. Without a declared one the newest takes everything."""
    aspired, traffic = model.aspired, model.traffic
    versions = model.servables()
    newest = newest_version(versions, model.desired)
    weights: Mapping[str, float] = traffic.weights
    stable = traffic.stable_version() or newest
    if not weights and stable is not None:
        weights = {stable: 1.0}
    if stable not in versions:
        # Until it is ready, the version that was stable before takes its part. (One that does
        # not exist will never be.)
        if stable in model.desired and model.acting in versions:
            stable = model.acting
        elif newest is not None and not any(weights[v] for v in weights if v in versions):
            stable = newest
    labels: dict[str, str] = {}
    if stable is not None:
        labels["stable"] = stable
    canary = traffic.canary_version()
    if canary is not None:
        labels["canary"] = canary
    labels.update(aspired.settings.labels)
    labels.update(traffic.labels)
    return Route(
        model.name,
        versions,
        weights,
        stable,
        labels,
        sticky_of(traffic),
        known_versions=tuple(sorted({*aspired.versions, *versions}, key=by_age)),
        reason="" if versions else why_not_ready(model),
    )


def lost_shares(route: Route[Servable]) -> dict[str, float]:
    """The versions of the split that cannot answer, and their parts of 1."""
    total = sum(route.weights.values()) or 1.0
    return {
        version: weight / total
        for version, weight in route.weights.items()
        if weight and version not in route.versions
    }


def lost_lines(
    model: ManagedModel, route: Route[Servable], lost: Mapping[str, float]
) -> Iterator[str]:
    """Lost shares in words: who has them now."""
    taker = "the others that are ready"
    if route.stable in route.versions:
        taker = f"version {route.stable}"
    failed = {r.version for r in model.records if r.state == State.FAILED}
    for version, share in lost.items():
        why = "has failed to load" if version in failed else "is not loaded"
        yield f"version {version} of the split {why}; its {share * 100:.4g} % go to {taker}"


def by_age(version: str) -> tuple[int, str]:
    """Sorts versions as numbers, oldest first."""
    return len(version), version


def newest_version(versions: Iterable[str], desired: Iterable[str]) -> str | None:
    """The newest ready version that is wanted, else the newest ready one."""
    ready = sorted(versions, key=by_age)
    wanted = [version for version in ready if version in set(desired)]
    newest = wanted or ready
    return newest[-1] if newest else None


def why_not_ready(model: ManagedModel) -> str:
    """Why no version can answer, for the callers' error."""
    causes = [r.cause for r in model.records if r.cause]
    if model.aspired.error or causes:
        return model.aspired.error or causes[0]
    return "it is still loading" if model.records else "none is there"


def sticky_of(traffic: Traffic) -> Sticky:
    own = traffic.sticky
    if own is None or (own.header is None and own.parameter is None):
        return Sticky(DEFAULT_STICKY_HEADER)
    return Sticky(own.header.lower() if own.header else None, own.parameter)


def traffic_line(traffic: Traffic) -> str:
    """A split in words, for the log."""
    if not traffic.weights:
        return "all traffic goes to the newest ready version"
    total = sum(traffic.weights.values())
    parts = [f"{v} {w / total:.4g}".replace("e+00", "") for v, w in traffic.weights.items()]
    return f"split {', '.join(parts)}; stable is {traffic.stable_version()}"
