"""Deployments as they are kept and asked for: ``deployments/<name>.yaml`` in the state directory.

A deployment is a model whose versions were named by URI, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import yaml
from msgspec import field

from gateway.errors import InvalidModelSettings, InvalidRequest, RegistryError, printable
from gateway.model_settings import Document, ModelSettings
from gateway.registries.model_documents import merge
from gateway.registries.traffic import Traffic, parse_traffic, traffic_tree

NEW: Final = "new"
"""In a split that is asked for: the version that comes with it."""
KEPT: Final = 10
"""Newest versions that a deployment remembers, besides those that split or labels name."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class Version(Document, frozen=True, kw_only=True):
    """One version: its URI as it was given, and what that meant then, for good."""

    uri: str
    source: str
    created: float
    """Unix seconds."""


class Deployment(Document, frozen=True, kw_only=True):
    """One deployment. `versions` are oldest first; `settings` is a ``model.yaml``."""

    name: str
    versions: dict[str, Version]
    settings: dict[str, Any] = field(default_factory=dict)
    traffic: dict[str, Any] = field(default_factory=dict)
    flavor: str = ""
    """MLflow flavour that was asked for; empty: the first one that can be served."""
    created: float = 0.0
    updated: float = 0.0

    @property
    def newest(self) -> str:
        """The version that came last."""
        return list(self.versions)[-1]

    def split(self) -> Traffic:
        """Raises `InvalidModelSettings`."""
        return parse_traffic(self.traffic, f"deployment '{self.name}': traffic")

    def model_settings(self) -> ModelSettings:
        """The settings, with code in a process of its own unless they say otherwise.

        Raises `InvalidModelSettings`.
        """
        tree = {"isolation": "code", **self.settings}
        if self.flavor:
            tree["options"] = {**_options(tree), "flavor": self.flavor}
        return merge(ModelSettings(), tree, f"deployment '{self.name}': settings")


def _options(tree: Mapping[str, Any]) -> dict[str, Any]:
    options = tree.get("options") or {}
    if not isinstance(options, dict):
        raise InvalidModelSettings("settings: 'options' must hold keys and values")
    if "flavor" in options:
        raise InvalidModelSettings(
            "settings: 'options.flavor' is given and the deployment's flavor too; say it once"
        )
    return options


class Asked(Document, frozen=True, kw_only=True):
    """The body of a request: what to create, or what to change; `None` leaves it as it is."""

    name: str | None = None
    uri: str | None = None
    flavor: str | None = None
    settings: dict[str, Any] | None = None
    traffic: dict[str, Any] | None = None
    message: str = ""
    """Why, for the history."""


def asked(tree: Mapping[str, Any]) -> Asked:
    """What a request asks for. Raises `InvalidRequest`."""
    unknown = [key for key in tree if key not in Asked.__struct_fields__]
    if unknown:
        raise InvalidRequest(
            f"the request has an unknown key '{printable(unknown[0])}'; known: "
            f"{', '.join(Asked.__struct_fields__)}"
        )
    try:
        found = msgspec.convert(tree, Asked)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request: {error}") from None
    if found.flavor is not None and found.uri is None:
        raise InvalidRequest("'flavor' says how a model is served: give its 'uri' as well")
    return found


def check_name(name: str | None) -> str:
    """A model's name. Raises `InvalidRequest`."""
    if not name:
        raise InvalidRequest('the body needs \'name\', such as {"name": "iris", "uri": "..."}')
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"'{printable(name)}' cannot be a model's name; it has letters, digits, '.', '_' and "
            "'-', begins with a letter or digit, and is not longer than 200"
        )
    return name


def new_traffic(
    given: Mapping[str, Any] | None, old: Traffic, versions: Mapping[str, Version], new: str | None
) -> Traffic:
    """The split after a change; `new` is the version that comes with it, if one does.

    Without one in the request all traffic goes to the new version. ``new`` in its weights stands
    for that version, and alone there leaves the others the rest. Raises `InvalidRequest`.
    """
    if given is None:
        if new is None:
            return old
        return msgspec.structs.replace(old, weights={new: 100.0}, stable=new)
    tree = dict(given)
    weights = tree.get("weights")
    if isinstance(weights, dict) and NEW in weights:
        if new is None:
            raise InvalidRequest("traffic: 'new' is a version that comes with a 'uri'; give one")
        tree["weights"] = _with_new(weights, old, new)
    try:
        traffic = parse_traffic(tree, "traffic")
    except InvalidModelSettings as error:
        raise InvalidRequest(str(error)) from None
    if "weights" not in tree:
        weights = {new: 100.0} if new is not None else old.weights
        traffic = msgspec.structs.replace(traffic, weights=weights)
    if traffic.stable is None:
        kept = old.stable if old.stable in traffic.weights else None
        traffic = msgspec.structs.replace(traffic, stable=kept)
        traffic = msgspec.structs.replace(traffic, stable=traffic.stable_version())
    if traffic.sticky is None:
        traffic = msgspec.structs.replace(traffic, sticky=old.sticky)
    if "labels" not in tree:
        traffic = msgspec.structs.replace(traffic, labels=old.labels)
    for version in sorted(traffic.named()):
        if version not in versions:
            raise InvalidRequest(
                f"traffic: there is no version '{printable(version)}'; it has: "
                f"{', '.join(versions)}"
            )
    return traffic


def _with_new(weights: dict[str, Any], old: Traffic, new: str) -> dict[str, Any]:
    share = weights[NEW]
    others = {version: weight for version, weight in weights.items() if version != NEW}
    if others or not old.weights:
        return {**others, new: share}
    if type(share) not in (int, float) or not 0 <= share <= 100:
        raise InvalidRequest("traffic: the weight of 'new' alone is a share from 0 to 100")
    total = sum(old.weights.values())
    rest = {v: (100 - share) * weight / total for v, weight in old.weights.items()}
    return {**rest, new: share}


def without_old(deployment: Deployment) -> Deployment:
    """The deployment without versions that are too old to go back to."""
    named = deployment.split().named()
    newest = list(deployment.versions)[-KEPT:]
    kept = {v: each for v, each in deployment.versions.items() if v in newest or v in named}
    return msgspec.structs.replace(deployment, versions=kept)


def to_text(deployment: Deployment) -> bytes:
    """The document's text."""
    head = "# Owned by the gateway: change it with `mlflow deployments update -t sluicegate`.\n"
    tree = msgspec.to_builtins(deployment)
    tree["traffic"] = traffic_tree(deployment.split())
    return (head + yaml.safe_dump(tree, sort_keys=False)).encode()


def of_text(content: bytes, where: str) -> Deployment:
    """The deployment in a document. Raises `RegistryError` for one that is none."""
    try:
        tree = yaml.safe_load(content)
        found = msgspec.convert(tree, Deployment)
        found.split()
        found.model_settings()
    except (yaml.YAMLError, msgspec.ValidationError, InvalidModelSettings, RecursionError) as error:
        cause = printable(" ".join(str(error).split()), 300)
        raise RegistryError(f"{where} cannot be read: {cause}") from None
    if not found.versions or not all(v.isdigit() for v in found.versions):
        raise RegistryError(f"{where} cannot be read: its versions must be whole numbers")
    return found
