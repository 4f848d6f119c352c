"""From what is wanted of a model, and which of it is ready, to its route: pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gateway.lifecycle.model import DEFAULT, ManagedModel
from gateway.lifecycle.signature import signature_differences
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
    if model.on_demand and not answers_default(model, versions):
        # What is loaded was asked for by name: it does not answer those who name nothing.
        weights, stable, newest = {}, None, None
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
    model.refused = refused_versions(model, versions, weights, stable)
    return Route(
        model.name,
        versions,
        weights,
        stable,
        labels,
        sticky_of(traffic),
        known_versions=tuple(sorted({*aspired.versions, *versions}, key=by_age)),
        reason="" if versions else why_not_ready(model),
        on_demand=frozenset(aspired.versions) if model.on_demand else frozenset(),
        refused=frozenset(model.refused),
    )


def answers_default(model: ManagedModel, versions: Mapping[str, Servable]) -> bool:
    """Whether what is loaded of an on-demand model may answer those who name no version."""
    stable = model.traffic.stable_version()
    if stable in versions:
        return True
    needed = model.needed(DEFAULT)
    record = needed.get(stable) if stable is not None else None
    hopeless = record is not None and record.state == State.FAILED
    if (hopeless or stable not in model.aspired.versions) and not needed.keys().isdisjoint(
        versions
    ):
        return True
    # While what is needed is loading, or cannot be loaded, the version before goes on.
    return DEFAULT in model.demanded and model.acting in versions


def refused_versions(
    model: ManagedModel,
    versions: Mapping[str, Servable],
    weights: Mapping[str, float],
    stable: str | None,
) -> dict[str, str]:
    """Versions of the split that differ from the stable one in what they take or give, and how:
    they get no share, unless the model's settings allow it."""
    if stable is None or stable not in versions:
        return {}
    if model.aspired.settings.signature_change == "allow":
        return {}
    found: dict[str, str] = {}
    for version, weight in weights.items():
        if weight and version != stable and version in versions:
            differences = signature_differences(
                versions[stable].contract, versions[version].contract
            )
            if differences:
                found[version] = refusal(stable, differences)
    return found


def refusal(stable: str, differences: Iterable[str]) -> str:
    """Why a version gets no share of the split, and what to set if it should."""
    return (
        f"differs from stable version {stable}: {'; '.join(differences)}; it gets no share (set "
        "signature_change: allow in model.yaml to give it one)"
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
    if model.aspired.unloaded:
        return model.aspired.unloaded
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
