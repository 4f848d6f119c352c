"""What a model answers with now, and why it is not what it was: pure."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from gateway.errors import text_of
from gateway.history.base import Served
from gateway.lifecycle.model import ManagedModel
from gateway.lifecycle.routes import by_age
from gateway.lifecycle.states import Record, State
from gateway.registries.traffic import Traffic
from gateway.routing import Route
from gateway.servable import Servable


def served_by(route: Route[Servable] | None, model: ManagedModel | None) -> Served:
    """What the route really answers with; nothing where there is none."""
    traffic = model.traffic if model is not None else Traffic()
    if route is None or model is None or not route.versions:
        return Served(traffic=traffic)
    total = sum(route.effective.values()) or 1.0
    shares = {
        version: round(weight / total * 100, 6)
        for version, weight in sorted(route.effective.items(), key=lambda item: by_age(item[0]))
    }
    labels = {
        label: version
        for label, version in sorted(route.labels.items())
        if version in route.versions and label != "stable"
    }
    stable = route.stable if route.stable in route.versions else None
    named = {*shares, *labels.values(), *([stable] if stable is not None else [])}
    records = {id(r.servable): r for r in model.records if r.servable is not None}
    versions: dict[str, Mapping[str, Any]] = {}
    for version in sorted(named, key=by_age):
        record = records.get(id(route.versions[version]))
        if record is not None:
            versions[version] = described(record)
    return Served(shares, stable, labels, versions, traffic)


def described(record: Record) -> dict[str, str]:
    """Where the files of a version come from, what runs them, and which ones they are."""
    aspired = record.aspired
    source = aspired.source or (
        aspired.origin.uri if aspired.origin is not None else str(aspired.path.absolute())
    )
    return {
        "source": without_secrets(source),
        "runtime": record.runtime,
        "digest": digest_of(aspired.fingerprint, str(aspired.path)),
    }


def digest_of(fingerprint: Hashable, folder: str = "") -> str:
    """A short text that is the same for the same fingerprint, in every process, and wherever the
    gateway was started (`folder` is where the files are)."""
    return sha256(plain(fingerprint, folder).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def plain(value: object, folder: str = "") -> str:
    """A text of a fingerprint in which nothing depends on the process."""
    if isinstance(value, tuple | list):
        return f"({','.join(plain(part, folder) for part in value)})"
    if isinstance(value, set | frozenset):
        return f"{{{','.join(sorted(plain(part, folder) for part in value))}}}"
    if isinstance(value, str):
        return repr(value.removeprefix(folder))
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def without_secrets(uri: str) -> str:
    """Without a user's name, a password or a query: signed addresses hold secrets there."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition("://")[0] + "://…"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def differs(before: Served, after: Served) -> bool:
    """Whether callers could tell; a split declared while nothing answers is no change yet."""
    if not before.shares and not after.shares:
        return False
    return before != after


def cause(before: Served, after: Served, model: ManagedModel | None) -> str:
    """Why nobody but the registry or a version itself changed it, in words."""
    return "; ".join(causes(before, after, model)) or "the routes changed"


def causes(before: Served, after: Served, model: ManagedModel | None) -> Iterator[str]:
    named = {*before.versions, *after.versions}
    for version in sorted(named, key=by_age):
        old, new = before.versions.get(version), after.versions.get(version)
        if old is not None and new is not None:
            if old != new:
                yield f"version {version} was loaded anew{from_where(old, new)}"
        elif new is not None:
            same = before.traffic == after.traffic or not before.shares
            yield f"version {version} {'became ready' if same else 'takes traffic'}"
        else:
            yield why_gone(model, version)
    if not before.shares or not after.shares:
        return
    if before.traffic != after.traffic:
        yield "the split or the labels changed in the source"
    elif before.labels != after.labels and before.versions == after.versions:
        yield "the labels changed in the source"
    if before.stable != after.stable and before.stable and after.stable:
        yield f"{after.stable} is the stable version"


def from_where(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if old.get("source") != new.get("source"):
        return f" from {new.get('source')}"
    if old.get("digest") != new.get("digest"):
        return " with other files or settings"
    return ""


def why_gone(model: ManagedModel | None, version: str) -> str:
    """Why a version answers no more."""
    if model is None:
        return f"version {version} is gone with its model"
    for record in reversed(model.records):
        if record.version != version:
            continue
        if record.state == State.FAILED:
            return f"version {version} failed: {text_of(Exception(record.cause))}"
        if record.state == State.READY:
            return f"version {version} takes no traffic any more"
    if not model.aspired.versions:
        return f"version {version} is unloaded: the model is gone from its source"
    if version not in model.desired:
        return f"version {version} is unloaded: it is not wanted any more"
    return f"version {version} is unloaded"
