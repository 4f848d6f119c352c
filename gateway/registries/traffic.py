"""``traffic.yaml``: the split of one model, written by the gateway, readable by people."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import yaml
from msgspec import Meta

from gateway.config import read_yaml
from gateway.errors import ConfigError, InvalidModelSettings, NotWritable, RegistryError
from gateway.known_keys import refuse_unknown_keys

TRAFFIC_YAML: Final = "traffic.yaml"
READ_ONLY: Final = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))


class StickyKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the routing key is: in a header (default ``x-sluice-key``) or a request parameter."""

    header: str | None = None
    parameter: str | None = None


class Traffic(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """The split of one model. Without weights, the newest ready version takes everything."""

    weights: dict[str, Annotated[float, Meta(ge=0)]] = {}
    stable: str | None = None
    """The version that takes the share of those that are not ready; default the heaviest."""
    sticky: StickyKey | None = None
    labels: dict[str, str] = {}
    """Label → version, besides those in model.yaml."""

    def stable_version(self) -> str | None:
        """The declared stable version, else the one with the largest weight."""
        if self.stable is not None or not self.weights:
            return self.stable
        return max(self.weights, key=lambda version: (self.weights[version], _number(version)))

    def canary_version(self) -> str | None:
        """The version with the smallest weight besides the stable one, if there is one."""
        stable = self.stable_version()
        others = [v for v, w in self.weights.items() if v != stable and w > 0]
        if not others:
            return None
        return min(others, key=lambda version: (self.weights[version], -_number(version)))

    def named(self) -> set[str]:
        """Every version that the document names."""
        stable = {self.stable} if self.stable is not None else set()
        return set(self.weights) | stable | set(self.labels.values())


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0


def parse_traffic(tree: Any, where: str) -> Traffic:
    """A `Traffic` from parsed YAML or JSON. Raises `InvalidModelSettings`."""
    refuse_unknown_keys(tree, Traffic, where)
    tree = dict(tree)
    # YAML reads 1: 90 as a number for a key; versions are strings.
    for key in ("weights", "labels"):
        if isinstance(tree.get(key), dict):
            tree[key] = {str(k): str(v) if key == "labels" else v for k, v in tree[key].items()}
    if isinstance(tree.get("stable"), int):
        tree["stable"] = str(tree["stable"])
    try:
        traffic = msgspec.convert(tree, Traffic)
    except msgspec.ValidationError as error:
        raise InvalidModelSettings(f"{where}: {error}") from None
    if traffic.weights and not sum(traffic.weights.values()) > 0:
        raise InvalidModelSettings(f"{where}: the weights add up to 0; give one version more")
    if any(weight > 1e9 or weight != weight for weight in traffic.weights.values()):
        raise InvalidModelSettings(f"{where}: weights must be numbers from 0 to 1e9")
    return traffic


def read_traffic(folder: Path) -> Traffic:
    """The traffic document of a model's folder, the default if there is none.

    Raises `InvalidModelSettings`.
    """
    path = folder / TRAFFIC_YAML
    if not path.is_file():
        return Traffic()
    try:
        tree = read_yaml(path)
        if not tree and not path.stat().st_size:
            # It is just being written: most editors empty a file first.
            raise ConfigError(f"{path} is empty; delete it for no split at all")
    except ConfigError as error:
        raise InvalidModelSettings(str(error)) from None
    return parse_traffic(tree, f"{folder.name}/{TRAFFIC_YAML}")


def traffic_tree(traffic: Traffic) -> dict[str, Any]:
    """As it is written: keys that say nothing are left out, whole weights are whole numbers."""
    tree: dict[str, Any] = msgspec.to_builtins(traffic)
    if "weights" in tree:
        tree["weights"] = {v: _plain(w) for v, w in tree["weights"].items()}
    return tree


def traffic_text(traffic: Traffic) -> str:
    """The document's text."""
    return (
        "# Owned by the gateway: change it with `sluice split` or `sluice promote`.\n"
        + yaml.safe_dump(traffic_tree(traffic), sort_keys=False)
    )


def write_traffic(folder: Path, traffic: Traffic) -> None:
    """Replaces the document in one step, so that a reader never sees half of it.

    Raises `RegistryError` when the folder cannot be written, `NotWritable` when it may not be.
    """
    text = traffic_text(traffic)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{TRAFFIC_YAML}.", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            os.replace(name, folder / TRAFFIC_YAML)
        except BaseException:
            os.unlink(name)
            raise
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        kind = NotWritable if error.errno in READ_ONLY else RegistryError
        raise kind(
            f"cannot write {folder.name}/{TRAFFIC_YAML}: {error.strerror}; make the directory "
            "writable, or change the file where it comes from"
        ) from None


def _plain(weight: float) -> int | float:
    return int(weight) if float(weight).is_integer() else weight
