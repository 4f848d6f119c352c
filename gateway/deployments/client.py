"""MLflow's deployment client for a running gateway.

A deployment is a model of the gateway whose versions were given by URI; an endpoint is any
model of the gateway.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode

from gateway.deployments.calls import PREDICT_SECONDS, calls_to, quoted
from gateway.deployments.payload import payload_of
from gateway.deployments.settings import TRAFFIC, body_of, wrong

BASE: Final = "/admin/v1/deployments"
MODELS: Final = "/admin/v1/models"


class SluicegateDeployments(BaseDeploymentClient):  # type: ignore[misc]
    """Target ``sluicegate`` or ``sluicegate:/http://HOST:PORT``."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        self._calls = calls_to(target_uri)

    # --- deployments

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Creates a deployment, and returns it when it is ready. Raises where it cannot be loaded
        (with the cause), and where the name is taken."""
        check_endpoint(name, endpoint)
        body = {"name": name, "uri": self._uri(model_uri), **body_of(config)}
        if flavor:
            body["flavor"] = flavor
        made: dict[str, Any] = self._calls.json("POST", BASE, body)
        return made

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: dict[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Adds a version (`model_uri`), or changes split and settings; returns when all of it is
        in effect. Where it fails, all is as it was."""
        check_endpoint(name, endpoint)
        body = body_of(config)
        if model_uri:
            body["uri"] = self._uri(model_uri)
        if flavor:
            body["flavor"] = flavor
        if not body:
            raise wrong("there is nothing to update: give a model URI or config")
        made: dict[str, Any] = self._calls.json("PUT", f"{BASE}/{quoted(name)}", body)
        return made

    def delete_deployment(
        self, name: str, config: dict[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Deletes a deployment; requests that are running are finished. One that is not there is
        deleted already."""
        check_endpoint(name, endpoint)
        message = body_of(config, only=("message",)).get("message", "")
        query = f"?message={quote(message)}" if message else ""
        try:
            self._calls.json("DELETE", f"{BASE}/{quoted(name)}{query}")
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(ENDPOINT_NOT_FOUND):
                raise

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Every deployment; with `endpoint`, the one of that name, if it is one."""
        found: list[dict[str, Any]] = self._calls.json("GET", BASE)["deployments"]
        return [each for each in found if endpoint in (None, each["name"])]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """One deployment: its versions with state and share, settings, split."""
        check_endpoint(name, endpoint)
        found: dict[str, Any] = self._calls.json("GET", f"{BASE}/{quoted(name)}")
        return found

    # --- predictions

    def predict(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> PredictionsResponse:
        """The predictions for a DataFrame, an array, a list, or a mapping of arrays by name (or of
        ``dataframe_split`` and the like), by any model of the gateway."""
        path = f"/models/{quoted(model_of(deployment_name, endpoint))}/invocations"
        answer = self._calls.json("POST", path, payload_of(inputs), PREDICT_SECONDS)
        return PredictionsResponse(answer)

    def predict_stream(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The answers of a model to one request, as they come. `inputs` are values by the names of
        inputs and parameters, as in Triton's generate extension."""
        model = model_of(deployment_name, endpoint)
        if not isinstance(inputs, dict):
            raise wrong("inputs must be a mapping of values by the names of the model's inputs")
        return self._calls.events(f"/v2/models/{quoted(model)}/generate_stream", inputs)

    def explain(
        self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None
    ) -> Any:
        """Not offered: the gateway runs models and knows nothing of what is in them."""
        raise MlflowException(
            "Sluicegate does not explain predictions; deploy the explainer as a model of its own "
            "and ask it with predict"
        )

    # --- endpoints: every model of the gateway

    def create_endpoint(self, name: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """Not offered: a model's endpoint comes with its first version."""
        raise MlflowException(
            f"an endpoint of Sluicegate is a model, and comes with its first version: use "
            f"create_deployment('{name}', MODEL_URI)"
        )

    def update_endpoint(self, endpoint: str, config: dict[str, Any] | None = None) -> None:
        """Sets the split of a model: ``traffic.VERSION``, ``weights``, ``stable``, ``sticky``."""
        keys = tuple(key for key in TRAFFIC if key != "labels")
        traffic = body_of(config, only=keys).get("traffic", {})
        if not traffic.get("weights"):
            raise wrong("config must say the split, such as traffic.1=90 and traffic.2=10")
        self._calls.json("PUT", f"{MODELS}/{quoted(endpoint)}/split", traffic)

    def delete_endpoint(self, endpoint: str) -> None:
        """Deletes the deployment of that name. A model of another source goes away there."""
        if not self.list_deployments(endpoint) and any(
            each["name"] == endpoint for each in self.list_endpoints()
        ):
            raise MlflowException(
                f"'{endpoint}' was not deployed here but comes from a source of the gateway; "
                "remove it there"
            )
        self.delete_deployment(endpoint)

    def list_endpoints(self) -> list[dict[str, Any]]:
        """Every model of the gateway, wherever it comes from."""
        found: list[dict[str, Any]] = self._calls.json("GET", MODELS)["models"]
        return found

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        """One model of the gateway."""
        found: dict[str, Any] = self._calls.json("GET", f"{MODELS}/{quoted(endpoint)}")
        return found

    # --- parts

    def _uri(self, uri: str) -> str:
        """A model's URI as the gateway reads it: paths are this machine's."""
        scheme = urlsplit(uri).scheme
        if scheme not in ("", "file"):
            return uri
        if not self._calls.is_here:
            raise wrong(
                f"'{uri}' is a path of this machine, and the gateway is at {self._calls.url}; "
                "register the model in MLflow, or put it into a store such as s3://"
            )
        return uri if scheme else str(Path(os.path.expanduser(uri)).absolute())


def check_endpoint(name: str, endpoint: str | None) -> None:
    """Raises `MlflowException` for an endpoint that is not the deployment itself."""
    if endpoint not in (None, name):
        raise wrong(
            f"an endpoint of Sluicegate is a model with one name: leave out endpoint '{endpoint}', "
            f"or deploy under that name; several versions share it with the config traffic.VERSION"
        )


def model_of(deployment: str | None, endpoint: str | None) -> str:
    """The model to ask. Raises `MlflowException` unless exactly one is named."""
    if (deployment is None) == (endpoint is None):
        raise wrong("give exactly one of deployment_name and endpoint")
    return str(deployment if deployment is not None else endpoint)
