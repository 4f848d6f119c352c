"""The ``config`` of MLflow's deployments, as the admin API takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

PLAIN: Final = ("traffic", "weights", "stable", "settings", "message")
PREFIXES: Final = ("traffic.", "labels.", "sticky.", "settings.")
TRAFFIC: Final = ("traffic", "weights", "stable", "labels", "sticky")


def wrong(text: str) -> MlflowException:
    """An error of whoever called."""
    return MlflowException(text, error_code=INVALID_PARAMETER_VALUE)


def body_of(config: Mapping[str, Any] | None, *, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """``traffic``, ``settings`` and ``message`` of a request. Raises `MlflowException`.

    Values are as the command line has them (text) or already what they mean. `only` are the
    first parts of the keys that make sense; all of them where it is empty.
    """
    body: dict[str, Any] = {}
    for key, value in (config or {}).items():
        first, _, rest = key.partition(".")
        known = key in PLAIN or (rest and key.startswith(PREFIXES))
        if not known or (only and first not in only):
            kinds = sorted({*only} or {*PLAIN, *(f"{prefix}<...>" for prefix in PREFIXES)})
            raise wrong(
                f"unknown config key '{key}'; known: {', '.join(kinds)} (see `mlflow deployments "
                "help -t sluicegate`)"
            )
        if first == "settings":
            _put(body, key, "settings", rest, value)
        elif first == "message":
            body["message"] = str(value)
        else:
            _traffic(body.setdefault("traffic", {}), key, first, rest, value)
    return body


def _traffic(traffic: dict[str, Any], key: str, first: str, rest: str, value: Any) -> None:
    if first == "traffic" and rest:
        weights = traffic.setdefault("weights", {})
        _once(weights, rest, _weight(key, value), key)
    elif first == "traffic":
        for name, each in _mapping(key, value).items():
            _once(traffic, name, each, f"traffic.{name}")
    elif first == "weights":
        weights = traffic.setdefault("weights", {})
        for version, weight in _mapping(key, value).items():
            _once(weights, str(version), _weight(key, weight), key)
    elif first == "stable":
        _once(traffic, "stable", str(value), key)
    else:
        _once(traffic.setdefault(first, {}), rest, str(value), key)


def _once(tree: dict[str, Any], name: str, value: Any, key: str) -> None:
    if name in tree:
        raise wrong(f"config says '{name}' twice, the second time as '{key}'; say it once")
    tree[name] = value


def _weight(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise wrong(f"config '{key}' must be a weight such as 10, not '{value}'") from None


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        raise wrong(f'config \'{key}\' must be a JSON object, such as {{"1": 90, "2": 10}}')
    return dict(value)


def _put(body: dict[str, Any], key: str, first: str, rest: str, value: Any) -> None:
    """Sets a dotted key of ``settings``."""
    tree = body.setdefault(first, {})
    if not rest:
        for name, each in _mapping(key, value).items():
            _once(tree, name, each, key)
        return
    *path, last = rest.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise wrong(f"config '{key}': '{part}' has a value of its own already")
    _once(tree, last, parsed(key, value), key)


def parsed(key: str, value: Any) -> Any:
    """Text as YAML has it: ``8`` is a number, ``true`` is true. Raises `MlflowException`."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise wrong(f"config '{key}' is no YAML: '{value}'") from None
