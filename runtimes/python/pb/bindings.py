"""What ``pb_utils`` has to know of the model it is imported by."""

from __future__ import annotations

import logging
from concurrent.futures import Future

from gateway.errors import InferenceFailed
from gateway.tensors import InferenceRequest, InferenceResponse
from runtimes.interface import Artifact, Host


class Binding:
    """One model's ties to the gateway; used from any thread."""

    def __init__(self, artifact: Artifact) -> None:
        self.model = artifact.model
        self.version = artifact.version
        self.log = logging.getLogger(f"sluice.models.{artifact.model}")
        self._host = artifact.host

    @property
    def host(self) -> Host:
        """Raises `InferenceFailed` where no gateway runs."""
        if self._host is None:
            raise InferenceFailed("other models cannot be called: no gateway runs here")
        return self._host

    def call(self, request: InferenceRequest) -> Future[InferenceResponse]:
        """Sends a request to another model."""
        return self.host.call(request)
