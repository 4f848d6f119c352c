"""A model's own documents, ``model.yaml`` and ``config.pbtxt``, as one `ModelSettings`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from gateway.config import read_yaml
from gateway.errors import ConfigError, InvalidModelSettings
from gateway.known_keys import refuse_unknown_keys
from gateway.model_settings import ModelSettings
from gateway.registries.config_pbtxt import parse_config_pbtxt
from gateway.remote_document import REMOTE_RUNTIMES, check, normalised
from gateway.tensors import DATATYPES

MODEL_YAML: Final = "model.yaml"
CONFIG_PBTXT: Final = "config.pbtxt"

_INTERNAL: Final = frozenset({"declared", "triton_config"})


def read_settings(folder: Path, name: str) -> ModelSettings:
    """The settings of the model in `folder`. Raises `InvalidModelSettings`."""
    settings = ModelSettings()
    pbtxt = folder / CONFIG_PBTXT
    if pbtxt.is_file():
        try:
            text = pbtxt.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidModelSettings(f"{name}/{CONFIG_PBTXT} cannot be read: {error}") from None
        settings = parse_config_pbtxt(text, name, file=f"{name}/{CONFIG_PBTXT}")
    document = folder / MODEL_YAML
    if document.is_file():
        try:
            tree = read_yaml(document)
        except ConfigError as error:
            raise InvalidModelSettings(str(error)) from None
        settings = merge(settings, tree, f"{name}/{MODEL_YAML}")
    return settings


def parse_settings(documents: Mapping[str, bytes], name: str) -> ModelSettings:
    """The settings of the model `name` from its documents' contents.

    Raises `InvalidModelSettings`.
    """
    settings = ModelSettings()
    if CONFIG_PBTXT in documents:
        where = f"{name}/{CONFIG_PBTXT}"
        settings = parse_config_pbtxt(text_of(documents[CONFIG_PBTXT], where), name, file=where)
    if MODEL_YAML in documents:
        where = f"{name}/{MODEL_YAML}"
        settings = merge(settings, parse_tree(documents[MODEL_YAML], where), where)
    return settings


def parse_tree(content: bytes, where: str) -> dict[str, Any]:
    """A YAML document of keys and values. Raises `InvalidModelSettings`."""
    try:
        tree = yaml.safe_load(text_of(content, where))
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidModelSettings(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InvalidModelSettings(
            f"{where} must hold keys and values, not a {type(tree).__name__}"
        )
    return tree


def text_of(content: bytes, where: str) -> str:
    """Raises `InvalidModelSettings` for what is no UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidModelSettings(f"{where} is no UTF-8 text") from None


def merge(settings: ModelSettings, tree: dict[str, Any], where: str) -> ModelSettings:
    """`settings` with what ``model.yaml`` adds. Raises `InvalidModelSettings` for unknown keys,
    for wrong values, and for what ``config.pbtxt`` has said already."""
    default = ModelSettings()
    if "remote" in tree:
        tree = {**tree, "remote": normalised(tree["remote"], f"{where}: remote")}
    refuse_unknown_keys(tree, ModelSettings, where, without=_INTERNAL)
    for key in tree:
        if getattr(settings, key) != getattr(default, key):
            raise InvalidModelSettings(
                f"{where}: '{key}' is set in {CONFIG_PBTXT} too; say it in one of the two"
            )
    if isinstance(tree.get("labels"), dict):
        tree = {**tree, "labels": {str(k): str(v) for k, v in tree["labels"].items()}}
    try:
        own = msgspec.convert(tree, ModelSettings)
    except msgspec.ValidationError as error:
        raise InvalidModelSettings(f"{where}: {error}") from None
    for tensor in (*own.inputs, *own.outputs):
        if tensor.datatype not in DATATYPES:
            raise InvalidModelSettings(
                f"{where}: tensor '{tensor.name}' has unknown datatype '{tensor.datatype}'; "
                f"known: {', '.join(DATATYPES)}"
            )
    if own.remote is not None:
        check(own.remote, f"{where}: remote")
        if own.runtime not in (None, *REMOTE_RUNTIMES):
            raise InvalidModelSettings(
                f"{where}: 'remote' is for the runtimes {' and '.join(REMOTE_RUNTIMES)}, not for "
                f"'{own.runtime}'"
            )
    merged = msgspec.structs.replace(settings, **{key: getattr(own, key) for key in tree})
    if merged.declared == "nothing":
        merged = msgspec.structs.replace(merged, declared="model.yaml")
    return merged
