"""The settings of a registered model, in its tag ``sluice.settings``."""

from __future__ import annotations

from typing import Final

import yaml

from gateway.errors import InvalidModelSettings
from gateway.model_settings import ModelSettings
from gateway.registries.mlflow.documents import Registered
from gateway.registries.mlflow.traffic import SETTINGS
from gateway.registries.model_documents import merge

DEFAULTS: Final = ModelSettings(isolation="code")
"""Code of models from a registry runs in processes of its own."""


def settings_of(registered: Registered) -> ModelSettings:
    """The settings in a registered model's tag ``sluice.settings``, what ``model.yaml`` holds
    elsewhere. Raises `InvalidModelSettings`."""
    text = registered.by_tag.get(SETTINGS, "")
    if not text.strip():
        return DEFAULTS
    where = f"tag {SETTINGS}"
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise InvalidModelSettings(f"{where} is no YAML: {line[:200]}") from None
    if not isinstance(document, dict):
        raise InvalidModelSettings(f"{where} must hold keys of model.yaml, such as 'runtime: onnx'")
    document = {str(key): value for key, value in document.items()}
    if "versions" in document:
        raise InvalidModelSettings(
            f"{where}: 'versions' is not for models in MLflow; set mlflow.versions of the gateway"
        )
    if "remote" in document:
        raise InvalidModelSettings(
            f"{where}: 'remote' is not for models in MLflow, whose versions are files; put a "
            "remote model into a directory of models"
        )
    return merge(ModelSettings(), {"isolation": "code", **document}, where)
